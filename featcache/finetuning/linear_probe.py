"""The output layer that a training begins with: the softmax that the path solver finds on the frozen vectors.

A random output would at first send random gradients into pretrained weights and undo what they know (Kumar et al.,
"Fine-tuning can distort pretrained features and underperform out-of-distribution", ICLR 2022: probing first, then
fine-tuning).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from featcache.core.progress import Progress
from featcache.evaluation.temperature import fit_temperature
from featcache.heads import make_head
from featcache.heads.held_out_choice import FEWEST_TO_TEMPER
from featcache.heads.predictors import LinearForm
from featcache.heads.serialise import form_of
from featcache.metrics.calibration import held_out_temperature
from featcache.training.dataset import LabelledVectors


def outset(
    frozen: Callable[[np.ndarray], np.ndarray],
    examples: LabelledVectors,
    rows: np.ndarray,
    seed: int,
    progress: Progress,
) -> tuple[nn.Linear, dict[str, object]]:
    """A linear layer from the frozen network's vectors to the classes in sorted order, and what was chosen for it.

    It is as sure as the path solver's fit is, since training goes on from its optimum.

    Args:
        frozen: from row numbers (m,) to vectors (m, d) float32.
        examples: the items; those of one unit stay in one fold.
        rows: (m,) to learn from.
        seed: of the folds.
        progress: is told of the fit.
    """
    head = _softmax(frozen, examples, np.sort(rows), seed, progress)
    form = form_of(head)
    assert isinstance(form, LinearForm)
    output = nn.Linear(form.weight.shape[1], len(form.classes))
    _fill(output, form)
    return output, _chosen(head)


def refit(
    output: nn.Linear,
    frozen: Callable[[np.ndarray], np.ndarray],
    examples: LabelledVectors,
    rows: np.ndarray,
    seed: int,
    progress: Progress,
) -> tuple[dict[str, object], float | None]:
    """Make an output the head of `featcache.train` on view 0: with no epoch to be chosen, all items teach.

    Args:
        output: changed where it stands.
        frozen, examples, rows, seed, progress: as for `outset`.

    Returns:
        What was chosen, and the temperature of the head's own out-of-fold logits, by which it is divided.
    """
    rows = np.sort(rows)  # as `train` does, so that the folds are the same
    head = _softmax(frozen, examples, rows, seed, progress)
    form = form_of(head)
    assert isinstance(form, LinearForm)
    temperature = held_out_temperature(head, examples.y[rows])
    _fill(output, form.tempered(temperature or 1.0))
    return _chosen(head), temperature


def _softmax(
    frozen: Callable[[np.ndarray], np.ndarray],
    examples: LabelledVectors,
    rows: np.ndarray,
    seed: int,
    progress: Progress,
) -> Any:
    progress.start("fit the output on the frozen vectors", None, "items")
    head = make_head("softmax", seed, "classify").fit(frozen(rows), examples.y[rows], groups=examples.units[rows])
    progress.finish()
    return head


def _fill(output: nn.Linear, form: LinearForm) -> None:
    with torch.no_grad():
        output.weight.copy_(torch.from_numpy(form.weight))
        output.bias.copy_(torch.from_numpy(form.bias))


def _chosen(head: Any) -> dict[str, object]:
    return {f"output_{name}": value for name, value in head.chosen_.items()}


def temper(output: nn.Linear, scores: Tensor, numbers: Tensor) -> float | None:
    """Divide an output by the temperature that suits held-out items best.

    Label smoothing, and training until the loss is low, leave a network less or more sure than it is right
    (Guo et al., "On calibration of modern neural networks", ICML 2017). The items may be those that chose the epoch:
    epochs are compared each at its own temperature, so the choice does not favour any.

    Args:
        output: the last layer, changed where it stands.
        scores: (n, k) float64 that it gives of items that were not trained on.
        numbers: (n,) their classes.

    Returns:
        The temperature; None, and the output stays as it is, for fewer than 50 items.
    """
    if len(scores) < FEWEST_TO_TEMPER:
        return None
    temperature, _ = fit_temperature(scores.numpy(), numbers.numpy())
    with torch.no_grad():
        output.weight.div_(temperature)
        output.bias.div_(temperature)
    return temperature


def linear_form(output: nn.Linear, classes: tuple[str, ...]) -> LinearForm:
    """The same as a form that answers from vectors."""
    weight, bias = (tensor.detach().cpu().numpy().copy() for tensor in (output.weight, output.bias))
    return LinearForm(weight, bias, classes, "softmax")
