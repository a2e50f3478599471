"""How the layers behind a cut are trained on cached activations: for `tune`, and for the trials of `advise`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from featcache.backbones.split import Cut
from featcache.core.progress import Progress
from featcache.finetuning import loop
from featcache.finetuning.linear_probe import outset, refit, temper
from featcache.finetuning.schedule import Schedule
from featcache.finetuning.validation import validation_rows
from featcache.strategies.beginning import train_on
from featcache.strategies.cached_batches import CachedBatches, in_order
from featcache.strategies.trained import Trained
from featcache.strategies.training_items import class_numbers, items_digest
from featcache.training.dataset import LabelledVectors


def train_suffix(
    cut: Cut,
    examples: LabelledVectors,
    frozen: Callable[[np.ndarray], np.ndarray],
    learn: np.ndarray,
    scored: np.ndarray,
    schedule: Schedule,
    *,
    checkpoint: Path | None = None,
    task: Mapping[str, Any] | None = None,
    progress: Progress,
) -> Trained:
    """Train what follows a cut, with an output that begins as the path solver's softmax on the frozen vectors.

    Args:
        cut: a new one, since its suffix is trained where it stands.
        examples: the items, with the activations at the cut as their only layer.
        frozen: from row numbers (m,) to the frozen network's vectors (m, d).
        learn, scored: rows to learn from, and rows that the result is scored on.
        schedule: of the training; its seed is that of all that is drawn.
        checkpoint: as for `featcache.finetuning.loop.train`.
        task: what the training is, beside its classes, views and items.
        progress: is told of the epochs.

    Raises:
        UsageError, TrainingError: as for `featcache.finetuning.loop.train`.
    """
    fit, validation = validation_rows(examples, learn, scored, schedule.seed, progress)
    classes, numbers = class_numbers(examples.y, learn)
    output, chosen = outset(frozen, examples, fit, schedule.seed, progress)
    output.to(next(cut.suffix.parameters()).device)
    model = nn.Sequential(nn.Unflatten(1, cut.shape), cut.suffix, output)

    def held_out() -> Iterable[tuple[Tensor, Tensor]]:
        return in_order(examples, validation, numbers[validation], schedule.batch_size)

    curve = train_on(
        model,
        [*((name, list(part.parameters())) for name, part in cut.stages), ("output", list(output.parameters()))],
        CachedBatches(examples, fit, numbers[fit], schedule.batch_size, schedule.seed),
        held_out,
        schedule,
        checkpoint=checkpoint,
        task={
            **(task or {}), "views": list(examples.views), "classes": classes,
            "items": items_digest(examples, fit, validation),
        },
        units=examples.units[validation],
        progress=progress,
    )  # fmt: skip
    if curve.kept:
        temperature = temper(output, *loop.validation_scores(model, held_out, "float32"))
    else:
        chosen, temperature = refit(output, frozen, examples, learn, schedule.seed, progress)
    return Trained(
        model, output, classes, curve, fit, validation, {"epoch": curve.kept, **chosen}, temperature, len(learn)
    )
