"""The linear probe that fine-tuning begins with, and goes back to where it does not beat it.

The probe is the softmax that the path solver finds on the frozen vectors. A random output would at first send random
gradients into pretrained weights and undo what they know (Kumar et al., "Fine-tuning can distort pretrained features
and underperform out-of-distribution", ICLR 2022: probing first, then fine-tuning).

With few validation items the least loss of many epochs may be chance, and few images can undo what a network has
learned from many. So what was trained is taken only where the best epoch is better than the probe beyond what the best
of so many epochs is by chance (`featcache.metrics.best_of_many`). All losses are at the temperature that suits each
best: one number corrects how sure a network is (Guo et al., "On calibration of modern neural networks", ICML 2017).

Batch normalizations keep their statistics: those of a few augmented images are far from those of the images that
are predicted later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from featcache.finetuning import loop
from featcache.finetuning.history import Curve, ProbeScore
from featcache.heads import resolve_head
from featcache.heads.duration import told_if_long
from featcache.heads.minibatch import FEWEST_TO_TEMPER
from featcache.heads.predictors import LinearPredictor
from featcache.heads.serialize import export_predictor
from featcache.metrics.best_of_many import p_of_best
from featcache.metrics.calibration import fit_temperature, held_out_temperature

CHANCE = 0.07
"""A best epoch that is as good by chance as often as this, or more often, is not taken; 0.07 leaves room to 0.1."""

if TYPE_CHECKING:
    from featcache.core.progress import Progress
    from featcache.finetuning.config import Schedule
    from featcache.training.dataset import FeatureDataset


def linear_probe_init(
    frozen: Callable[[np.ndarray], np.ndarray],
    dataset: FeatureDataset,
    rows: np.ndarray,
    seed: int,
    progress: Progress,
) -> tuple[nn.Linear, dict[str, object]]:
    """A linear layer from the frozen network's vectors to the classes in sorted order, and its hyper-parameters.

    Its logits are not scaled by a temperature, since training continues from the path solver's optimum.

    Args:
        frozen: from row numbers (m,) to vectors (m, d) float32.
        dataset: the items; those of one group stay in one fold.
        rows: (m,) to train on.
        seed: of the folds.
        progress: reports the fit.
    """
    head = _softmax(frozen, dataset, np.sort(rows), seed, progress)
    predictor = export_predictor(head)
    assert isinstance(predictor, LinearPredictor)
    output = nn.Linear(predictor.weight.shape[1], len(predictor.classes))
    _fill(output, predictor)
    return output, _chosen(head)


def refit(
    output: nn.Linear,
    frozen: Callable[[np.ndarray], np.ndarray],
    dataset: FeatureDataset,
    rows: np.ndarray,
    seed: int,
    progress: Progress,
) -> tuple[dict[str, object], float | None]:
    """Fit an output as `featcache.train` does on view 0: with no epoch to choose, on all rows.

    Args:
        output: changed in place.
        frozen, dataset, rows, seed, progress: as for `linear_probe_init`.

    Returns:
        The hyper-parameters, and the temperature of the head's out-of-fold logits, by which it is divided.
    """
    rows = np.sort(rows)  # as `train` does, so that the folds are the same
    head = _softmax(frozen, dataset, rows, seed, progress)
    predictor = export_predictor(head)
    assert isinstance(predictor, LinearPredictor)
    temperature = held_out_temperature(head, dataset.y[rows])
    _fill(output, predictor.with_temperature(temperature or 1.0))
    return _chosen(head), temperature


def _softmax(
    frozen: Callable[[np.ndarray], np.ndarray],
    dataset: FeatureDataset,
    rows: np.ndarray,
    seed: int,
    progress: Progress,
) -> Any:
    progress.start("fit the linear probe", None, "items")
    head, vectors = resolve_head("softmax", seed=seed).make(), frozen(rows)
    n, d = vectors.shape
    if (text := told_if_long(head, "softmax", n, d, len(np.unique(dataset.y[rows])))) is not None:
        progress.note(text)
    head.fit(vectors, dataset.y[rows], groups=dataset.groups[rows])
    progress.finish()
    return head


def _fill(output: nn.Linear, predictor: LinearPredictor) -> None:
    with torch.no_grad():
        output.weight.copy_(torch.from_numpy(predictor.weight))
        output.bias.copy_(torch.from_numpy(predictor.bias))


def _chosen(head: Any) -> dict[str, object]:
    return {f"output_{name}": value for name, value in head.chosen_.items()}


def scale_by_temperature(output: nn.Linear, scores: Tensor, class_ids: Tensor) -> float | None:
    """Divide an output by the temperature that suits held-out items best.

    Label smoothing, and training until the loss is low, leave a network less or more sure than it is right
    (Guo et al., "On calibration of modern neural networks", ICML 2017). The items may be those that chose the epoch:
    epochs are compared each at its own temperature, so the choice does not favor any.

    Args:
        output: the last layer, changed where it stands.
        scores: (n, k) float64 that it gives of items that were not trained on.
        class_ids: (n,) int64.

    Returns:
        The temperature; None, and the output stays as it is, for fewer than 50 items.
    """
    if len(scores) < FEWEST_TO_TEMPER:
        return None
    temperature, _ = fit_temperature(scores.numpy(), class_ids.numpy())
    with torch.no_grad():
        output.weight.div_(temperature)
        output.bias.div_(temperature)
    return temperature


def linear_predictor(output: nn.Linear, classes: tuple[str, ...]) -> LinearPredictor:
    """The output as a predictor on vectors."""
    weight, bias = (tensor.detach().cpu().numpy().copy() for tensor in (output.weight, output.bias))
    return LinearPredictor(weight, bias, classes, "softmax")


def train_from_probe(
    model: nn.Module,
    stages: loop.Stages,
    batches: loop.Batches,
    validation: loop.Validation,
    config: Schedule,
    *,
    checkpoint: Path | None = None,
    task: Mapping[str, Any] | None = None,
    units: np.ndarray,
    progress: Progress,
) -> Curve:
    """Train as `loop.train` does, and return to the linear probe unless training beats it beyond chance.

    Args:
        model: the frozen network's weights with the linear probe's output.
        stages, batches, validation, config, checkpoint, task, progress: see `loop.train`.
        units: (n,) group of each validation item; dependent items share one.

    Returns:
        The curve, whose ``linear_probe`` says which weights the network has.

    Raises:
        UsageError, TrainingError: as `loop.train` does.
    """
    weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    before, class_ids = loop.validation_scores(model, validation, config.precision)
    curve = loop.train(
        model, stages, batches, validation, config, checkpoint=checkpoint, task=task,
        keep_statistics=True, progress=progress,
    )  # fmt: skip
    curve = compared(curve, before, class_ids, units, config, progress)
    if not curve.kept:
        model.load_state_dict(weights)
    return curve


def compared(
    curve: Curve, before: Tensor, class_ids: Tensor, units: np.ndarray, config: Schedule, progress: Progress
) -> Curve:
    """A training compared with the linear probe on the validation items.

    Args:
        curve: of `loop.train`.
        before: (n, k) float64 scores of the validation items by the probe.
        class_ids: (n,) int64.
        units: (n,) group of each item.
        config: of the training.
        progress: is told where the probe is kept.

    Returns:
        The curve with its ``linear_probe``.
    """
    losses = loop.tempered_losses(before, class_ids)
    gains = losses - curve.losses
    p = p_of_best(gains.T, units)
    probe = ProbeScore(
        nn.functional.cross_entropy(before, class_ids).item(),
        losses.mean().item(),
        (before.argmax(1) == class_ids).double().mean().item(),
        p > CHANCE,
        p,
    )
    if probe.kept:
        best = curve.best
        worse = p_of_best(-gains[best.number - 1, :, None], units) <= CHANCE
        found = (
            f"is worse than the linear probe (a lower learning rate than {config.lr:g} may change that)"
            if worse
            else "does not beat the linear probe beyond chance (more images may change that)"
        )
        progress.note(
            f"On {len(before)} validation items epoch {best.number}, the best, {found}: validation loss "
            f"{best.tempered_loss:.4g}, the probe's {probe.tempered_loss:.4g}, each at its best temperature. The probe "
            "is returned, fitted to all items that are learned from."
        )
    return replace(curve, linear_probe=probe)
