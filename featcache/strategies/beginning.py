"""Trainings that begin with weights that know something; they are kept where training makes nothing better.

With few validation items the least loss of many epochs may be chance, and few images can undo what a network has
learned from many. So what was trained is taken only where its validation loss is below that of the beginning by more
than the standard error of their difference (the rule of one standard error: Breiman, Friedman, Olshen and Stone,
"Classification and regression trees", 1984, section 3.4.3). Batch normalisations keep their statistics: those of a
few augmented pictures are far from those of the pictures that are answered later.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from featcache.progress import Progress
from featcache.strategies import loop
from featcache.strategies.curve import Beginning, Curve
from featcache.strategies.schedule import Schedule


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
    progress: Progress,
) -> Curve:
    """Train as `loop.train` does, and go back to the weights of the beginning where that was no better.

    Args:
        model, stages, batches, validation, schedule, checkpoint, task, precision, progress: as for `loop.train`.

    Returns:
        The curve, whose ``beginning`` says which weights the network has.

    Raises:
        UsageError, TrainingError: as `loop.train` does.
    """
    weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    before, right = loop.losses(model, validation, precision)
    curve = loop.train(
        model, stages, batches, validation, schedule, checkpoint=checkpoint, task=task, precision=precision,
        keep_statistics=True, progress=progress,
    )  # fmt: skip
    after, _ = loop.losses(model, validation, precision)
    kept = not _surely_positive(before - after)
    beginning = Beginning(before.mean().item(), right.double().mean().item(), kept)
    if kept:
        model.load_state_dict(weights)
        progress.note(
            f"On {len(before)} validation items no epoch is better than the beginning (loss "
            f"{beginning.validation_loss:.4g}) beyond one standard error, so the weights of the beginning are kept. "
            "More images may change that."
        )
    return replace(curve, beginning=beginning)


def _surely_positive(gains: Tensor) -> bool:
    """Whether the mean is above 0 by more than its standard error; one number alone has none."""
    return len(gains) > 1 and gains.mean().item() > gains.std().item() / math.sqrt(len(gains))
