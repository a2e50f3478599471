"""Short trials of what trains more than a head, scored on the items of a fold that the probes answered too."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from featcache.backbones import Backbone, Layer
from featcache.backbones.cut import Cut
from featcache.backbones.layers import POOLED
from featcache.evaluation.comparison import right_and_losses
from featcache.evaluation.temperature import softmax
from featcache.heads.grid_edge import GridEdgeWarning
from featcache.images.entry import Entry
from featcache.labelled_vectors import LabelledVectors
from featcache.progress import Progress
from featcache.strategies import loop, picture_batches
from featcache.strategies.advise.outcome import Outcome
from featcache.strategies.cached_batches import CachedBatches, in_order
from featcache.strategies.finetune import DROPOUT, PRETRAINED, SCRATCH, Whole, beginning
from featcache.strategies.output import probed
from featcache.strategies.picture_batches import PictureBatches, Pictures
from featcache.strategies.schedule import Schedule
from featcache.strategies.stages import stages_of
from featcache.strategies.tune import SCHEDULE
from featcache.strategies.validation_rows import SHARE, validation_rows

Fold = tuple[np.ndarray, np.ndarray]
Pass = Callable[[np.ndarray], Iterable[tuple[Tensor, Tensor]]]

SCHEDULES = {"tune": SCHEDULE, "finetune": PRETRAINED, "scratch": SCRATCH}
FEWEST_EPOCHS = {"tune": 5, "finetune": 3, "scratch": 15}
"""A trial of fewer epochs would say nothing of the strategy."""


def epoch_seconds(item: float, items: int) -> float:
    """Of an epoch, by the seconds that a step takes for an item; validation is a pass without its way back."""
    return item * items * (1 - SHARE + SHARE / 3)


def tune_trial(
    name: str,
    cut: Cut,
    frozen: LabelledVectors,
    activations: LabelledVectors,
    fold: Fold,
    epochs: int,
    seed: int,
    shown: Progress,
) -> Outcome:
    """Train the layers behind a cut on what one fold learns from, and answer for the others.

    Args:
        name: of the outcome.
        cut: a new one, since its suffix is trained.
        frozen: the items to learn from with ``pooled``.
        activations: the same items with the activations at the cut.
        fold: rows to learn from, and to answer for.
        epochs: at most.
        seed: of the training.
        shown: is told of the epochs.
    """
    began = time.monotonic()
    numbers, classes = _numbered(frozen)
    fit, validation = validation_rows(frozen, *fold, seed, shown)
    output = _output(frozen, fit, seed)
    schedule = replace(SCHEDULE, epochs=min(epochs, SCHEDULE.epochs), seed=seed)
    model = nn.Sequential(nn.Unflatten(1, cut.shape), cut.suffix, output)

    def read(rows: np.ndarray) -> Iterable[tuple[Tensor, Tensor]]:
        return in_order(activations, rows, numbers[rows], schedule.batch_size)

    loop.train(
        model,
        [*((stage, list(part.parameters())) for stage, part in cut.stages), ("output", list(output.parameters()))],
        CachedBatches(activations, fit, numbers[fit], schedule.batch_size, seed),
        lambda: read(validation),
        schedule,
        progress=shown,
    )
    return _outcome(name, model, read, frozen, fold, classes, schedule, SCHEDULE, began)


def finetune_trial(
    init: str,
    backbone: Backbone,
    entries: Sequence[Entry],
    frozen: LabelledVectors,
    fold: Fold,
    epochs: int,
    seed: int,
    shown: Progress,
) -> Outcome:
    """Train a whole network on what one fold learns from, and answer for the others.

    Args:
        init: ``pretrained`` or ``scratch``.
        backbone: the network.
        entries: where the image of each item is.
        frozen, fold, epochs, seed, shown: as for `tune_trial`.
    """
    began = time.monotonic()
    name = "finetune" if init == "pretrained" else "scratch"
    usual = SCHEDULES[name]
    numbers, classes = _numbered(frozen)
    fit, validation = validation_rows(frozen, *fold, seed, shown)
    schedule = replace(usual, epochs=min(epochs, usual.epochs), seed=seed)
    model = whole_network(init, backbone, len(classes), seed, None if init == "scratch" else _output(frozen, fit, seed))
    pictures = Pictures(backbone, frozen.items, entries, seed)

    def read(rows: np.ndarray) -> Iterable[tuple[Tensor, Tensor]]:
        return picture_batches.in_order(pictures, rows, numbers[rows], schedule.batch_size)

    loop.train(
        model,
        [*stages_of(model.network), ("output", list(model.output.parameters()))],
        PictureBatches(pictures, fit, numbers[fit], schedule.batch_size, seed),
        lambda: read(validation),
        schedule,
        progress=shown,
    )
    return _outcome(name, model, read, frozen, fold, classes, schedule, usual, began)


def whole_network(init: str, backbone: Backbone, classes: int, seed: int, output: nn.Linear | None = None) -> Whole:
    """A network that trains, with an output of zeros where none is given, on the backbone's device."""
    network = beginning(backbone, init, seed)
    network.to(backbone.device)
    if output is None:
        (width,) = network.shapes_of([Layer(POOLED, 0, ())])[POOLED]
        output = nn.Linear(width, classes)
        nn.init.zeros_(output.weight)
        nn.init.zeros_(output.bias)
    return Whole(network, output.to(backbone.device), DROPOUT if init == "scratch" else 0.0)


def _numbered(examples: LabelledVectors) -> tuple[np.ndarray, tuple[str, ...]]:
    names, numbers = np.unique(examples.y, return_inverse=True)
    return numbers, tuple(str(name) for name in names)


def _output(frozen: LabelledVectors, fit: np.ndarray, seed: int) -> nn.Linear:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GridEdgeWarning)
        return probed(frozen.read(fit), frozen.y[fit], frozen.units[fit], seed)[0]


def _outcome(
    name: str,
    model: nn.Module,
    read: Pass,
    frozen: LabelledVectors,
    fold: Fold,
    classes: tuple[str, ...],
    schedule: Schedule,
    usual: Schedule,
    began: float,
) -> Outcome:
    learn, test = fold
    device = next(model.parameters()).device
    with torch.inference_mode():
        scores = torch.cat([model(x.to(device)).double().cpu() for x, _ in read(test)]).numpy()
    said = np.array(classes)[scores.argmax(1)]
    right, losses = right_and_losses(frozen.y[test], softmax(scores), said, classes)
    assert losses is not None
    note = None
    if schedule.epochs < usual.epochs:
        note = f"a trial of {schedule.epochs} epochs at most, of {usual.epochs}"
    return Outcome(name, test, right.astype(np.float64), losses, len(learn), time.monotonic() - began, 1, note)
