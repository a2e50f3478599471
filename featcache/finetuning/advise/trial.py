"""A short trial of what trains more than a head, scored on the items of a fold that the probes answered too."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from featcache.backbones import Backbone
from featcache.backbones.split import SplitNetwork
from featcache.core.errors import GridEdgeWarning
from featcache.core.progress import Progress
from featcache.finetuning import batches
from featcache.finetuning.advise.outcome import Outcome
from featcache.finetuning.batches import ItemImages
from featcache.finetuning.config import PRETRAINED, SCRATCH, TrainingConfig
from featcache.finetuning.trainers import TrainingResult, TrainingRun, train_full, train_tail, trainable_copy
from featcache.heads.softmax import GridEdgeWarning
from featcache.images.entry import Entry
from featcache.metrics.calibration import softmax
from featcache.metrics.classification import right_and_losses
from featcache.training.dataset import FeatureDataset

Fold = tuple[np.ndarray, np.ndarray]
Pass = Callable[[np.ndarray, np.ndarray, int], Iterable[tuple[Tensor, Tensor]]]
"""From rows, class numbers and the size of a batch to view 0 of the rows in order."""

SCHEDULES = {"tune": PRETRAINED, "finetune": PRETRAINED, "scratch": SCRATCH}
FEWEST_EPOCHS = {"tune": 5, "finetune": 3, "scratch": 15}
"""A trial of fewer epochs would say nothing of the strategy."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What a trial gave.

    Attributes:
        outcome: the answers.
        epoch: seconds of an epoch for each item that the fold learns from, validation included.
        epochs: how many were run.
    """

    outcome: Outcome
    epoch: float
    epochs: int


def try_suffix(
    name: str,
    cut: SplitNetwork,
    frozen: FeatureDataset,
    activations: FeatureDataset,
    fold: Fold,
    epochs: int,
    seed: int,
    shown: Progress,
) -> Trial:
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
    schedule = replace(PRETRAINED, epochs=min(epochs, PRETRAINED.epochs), seed=seed)
    return _trial(
        name,
        lambda: train_tail(cut, frozen.read, TrainingRun(activations, *fold, schedule, shown)),
        partial(batches.activations_in_order, activations),
        frozen, fold, schedule, PRETRAINED,
    )  # fmt: skip


def try_network(
    init: str,
    backbone: Backbone,
    entries: Sequence[Entry],
    frozen: FeatureDataset,
    fold: Fold,
    epochs: int,
    seed: int,
    shown: Progress,
) -> Trial:
    """Train a whole network on what one fold learns from, and answer for the others.

    Args:
        init: ``pretrained`` or ``scratch``.
        backbone: the network.
        entries: where the image of each item is.
        frozen, fold, epochs, seed, shown: as for `try_suffix`.
    """
    name = "finetune" if init == "pretrained" else "scratch"
    usual = SCHEDULES[name]
    schedule = replace(usual, epochs=min(epochs, usual.epochs), seed=seed)
    pictures = ItemImages(backbone, frozen.items, entries, seed)
    network = trainable_copy(backbone, init, seed)
    return _trial(
        name,
        lambda: train_full(network, pictures, init, TrainingRun(frozen, *fold, schedule, shown)),
        partial(batches.images_in_order, pictures),
        frozen, fold, schedule, usual,
    )  # fmt: skip


def _trial(
    name: str,
    train: Callable[[], TrainingResult],
    in_order: Pass,
    frozen: FeatureDataset,
    fold: Fold,
    schedule: TrainingConfig,
    usual: TrainingConfig,
) -> Trial:
    train_rows, test = fold
    began = time.monotonic()
    with warnings.catch_warnings():
        # Whether the grid of C is wide enough is told when the head is trained that is kept.
        warnings.simplefilter("ignore", GridEdgeWarning)
        trained = train()
    batches = in_order(test, np.zeros(len(test), np.int64), schedule.batch_size)
    device = next(trained.model.parameters()).device
    with torch.inference_mode():
        scores = torch.cat([trained.model(x.to(device)).double().cpu() for x, _ in batches]).numpy()
    said = np.array(trained.classes)[scores.argmax(1)]
    right, losses = right_and_losses(frozen.y[test], softmax(scores), said, trained.classes)
    assert losses is not None
    note = shortened = None
    if schedule.epochs < usual.epochs:
        note = f"a trial of {schedule.epochs} epochs at most, of {usual.epochs}"
        shortened = schedule.epochs
    seconds = time.monotonic() - began
    outcome = Outcome(name, test, right.astype(np.float64), losses, len(train_rows), seconds, 1, note, shortened)
    epochs = trained.curve.epochs
    return Trial(outcome, sum(epoch.seconds for epoch in epochs) / (len(epochs) * len(train_rows)), len(epochs))
