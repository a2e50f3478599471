"""Trainings that begin with weights that know something; they are kept where training makes nothing better.

With few validation items the least loss of many epochs may be chance, and few images can undo what a network has
learned from many. So what was trained is taken only where its validation loss is below that of the beginning by more
than the standard error of their difference (the rule of one standard error: Breiman, Friedman, Olshen and Stone,
"Classification and regression trees", 1984, section 3.4.3). Both losses are at the temperature that suits each best:
how sure a network is can be mended by one number (Guo et al., "On calibration of modern neural networks", ICML 2017).

Batch normalisations keep their statistics: those of a few augmented pictures are far from those of the pictures that
are answered later.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from featcache.core.progress import Progress
from featcache.evaluation.temperature import fit_temperature
from featcache.finetuning import loop
from featcache.finetuning.history import Beginning, Curve
from featcache.finetuning.schedule import Schedule


def train_on(
    model: nn.Module,
    stages: loop.Stages,
    batches: loop.Batches,
    validation: loop.Validation,
    schedule: Schedule,
    *,
    checkpoint: Path | None = None,
    task: Mapping[str, Any] | None = None,
    precision: str = "float32",
    units: np.ndarray,
    progress: Progress,
) -> Curve:
    """Train as `loop.train` does, and go back to the weights of the beginning where that was no better.

    Args:
        model, stages, batches, validation, schedule, checkpoint, task, precision, progress: as for `loop.train`.
        units: (n,) unit of each validation item; items that are no independent evidence share one.

    Returns:
        The curve, whose ``beginning`` says which weights the network has.

    Raises:
        UsageError, TrainingError: as `loop.train` does.
    """
    weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    before, numbers = loop.validation_scores(model, validation, precision)
    curve = loop.train(
        model, stages, batches, validation, schedule, checkpoint=checkpoint, task=task, precision=precision,
        keep_statistics=True, progress=progress,
    )  # fmt: skip
    after, _ = loop.validation_scores(model, validation, precision)
    losses = _tempered_losses(before, numbers)
    kept = not _surely_positive(losses - _tempered_losses(after, numbers), units)
    beginning = Beginning(
        nn.functional.cross_entropy(before, numbers).item(),
        losses.mean().item(),
        (before.argmax(1) == numbers).double().mean().item(),
        kept,
    )
    if kept:
        model.load_state_dict(weights)
        worse = _surely_positive(_tempered_losses(after, numbers) - losses, units)
        found = (
            f"is worse than the beginning. A lower rate than {schedule.rate:g} may change that"
            if worse
            else "is not better than the beginning beyond one standard error. More images may change that"
        )
        progress.note(
            f"On {len(before)} validation items epoch {curve.best.number}, the best, {found}; the weights of the "
            "beginning are kept, and the output is what `train` finds on the frozen vectors."
        )
    return replace(curve, beginning=beginning)


def _tempered_losses(scores: Tensor, numbers: Tensor) -> np.ndarray:
    """(n,) cross-entropies in nats at the temperature of the least mean."""
    temperature, _ = fit_temperature(scores.numpy(), numbers.numpy())
    losses: np.ndarray = nn.functional.cross_entropy(scores / temperature, numbers, reduction="none").numpy()
    return losses


def _surely_positive(gains: np.ndarray, units: np.ndarray) -> bool:
    """Whether the mean is above 0 by more than its standard error over units; one unit alone has none.

    The error is that of a mean of clusters (Cochran, "Sampling techniques", 3rd edition, equation 9A.4).
    """
    _, numbers = np.unique(units, return_inverse=True)
    residuals = np.bincount(numbers, gains - gains.mean())
    m = len(residuals)
    if m < 2:
        return False
    error = math.sqrt(m / (m - 1) * float(residuals @ residuals)) / len(gains)
    return bool(gains.mean() > error)
