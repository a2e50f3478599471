"""The cells of `finetune` and of the trials of `advise`: a way of fine-tuning, trained on some rows, answers others."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from featcache.backbones.split import split_network
from featcache.core.errors import GridEdgeWarning, MissingVectorsError
from featcache.core.names import VIEW_0
from featcache.core.progress import Progress
from featcache.extraction.stored_source import present_images
from featcache.finetuning.batches import ItemImages, activations_in_order, images_in_order
from featcache.finetuning.config import Schedule
from featcache.finetuning.loop import validation_scores
from featcache.finetuning.trainers import TrainingResult, TrainingRun, train_full, train_tail, trainable_copy
from featcache.metrics.calibration import softmax
from featcache.metrics.classification import right_and_losses
from featcache.training.activations import StoredItems, view_names
from featcache.training.dataset import FeatureDataset

if TYPE_CHECKING:
    from featcache.backbones import Backbone
    from featcache.store import FeatureStore

Rows = tuple[np.ndarray, np.ndarray]
"""Rows to train on, and rows to answer."""
Batches = Callable[[np.ndarray, np.ndarray, int], Iterable[tuple[Tensor, Tensor]]]
"""From rows, class numbers and a batch size to view 0 of the rows in order."""
Train = Callable[[FeatureDataset, Rows, Schedule, int, Progress], tuple[TrainingResult, Batches]]
"""From items with ``pooled``, rows, a configuration and the number of views to a trained network and its batches."""


@dataclass(frozen=True)
class Cell:
    """A way of fine-tuning.

    Attributes:
        train: trains on some rows.
        cached: the layer whose activations have to be stored before; None where the images themselves are read.
    """

    train: Train
    cached: str | None = None

    def answer(
        self, items: FeatureDataset, rows: Rows, config: Schedule, views: int, progress: Progress
    ) -> tuple[np.ndarray, np.ndarray, float]:
        """Train on some rows and answer others.

        Returns:
            Whether each answer is right (m,), its log-loss (m,), and the seconds of an epoch per training row.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", GridEdgeWarning)  # told when the head that is kept is trained
            trained, batches = self.train(items, rows, config, views, progress)
        test, epochs = rows[1], [epoch.seconds for epoch in trained.curve.epochs]
        numbers = np.zeros(len(test), np.int64)
        scores, _ = validation_scores(trained.model, lambda: batches(test, numbers, config.batch_size), "float32")
        predicted = np.array(trained.classes)[scores.argmax(1)]
        right, losses = right_and_losses(items.y[test], softmax(scores.numpy()), predicted, trained.classes)
        assert losses is not None
        return right.astype(np.float64), losses, sum(epochs) / (len(epochs) * len(rows[0]))

    def seconds(self, items: FeatureDataset, config: Schedule, progress: Progress) -> float:
        """Of an epoch per training row, measured by two epochs on a few items of two classes; nothing is stored."""
        _, firsts = np.unique(items.groups, return_index=True)
        names, counts = np.unique(items.y[firsts], return_counts=True)
        few = np.concatenate([firsts[items.y[firsts] == name][:8] for name in names[np.argsort(-counts)[:2]]])
        rows = np.arange(len(few)), np.arange(0)
        trained, _ = self.train(items.subset(np.sort(few)), rows, replace(config, epochs=2), 0, progress)
        return min(epoch.seconds for epoch in trained.curve.epochs) / len(few)


def partial_cell(backbone: Backbone, layer: str, stored: StoredItems) -> Cell:
    """Partial fine-tuning from *layer* on stored activations; without views on noise, to measure the speed."""

    def train(
        items: FeatureDataset, rows: Rows, config: Schedule, views: int, progress: Progress
    ) -> tuple[TrainingResult, Batches]:
        split = split_network(backbone.network, layer)
        if views:
            activations = stored.select([split.cached], view_names(views, config.seed))
        else:
            noise = np.random.default_rng(0).random((len(items.y), math.prod(split.shape)), np.float32)
            alone = replace(items, views=(VIEW_0,), view_reader=None, shapes=[split.shape])
            activations = replace(alone, read=lambda at: noise[at])
        trained = train_tail(split, items.read, TrainingRun(activations, *rows, config, progress))
        return trained, partial(activations_in_order, activations)

    return Cell(train, split_network(backbone.network, layer).cached)


def full_cell(backbone: Backbone, init: str, store: FeatureStore) -> Cell:
    """Fine-tuning of the whole network on the images, from ``pretrained`` weights or from ``scratch``."""

    def train(
        items: FeatureDataset, rows: Rows, config: Schedule, views: int, progress: Progress
    ) -> tuple[TrainingResult, Batches]:
        there = present_images(store, items.items, progress)
        keys = [(item.source, item.uri) for item in items.items]
        if missing := [uri for source, uri in keys if (source, uri) not in there]:
            raise MissingVectorsError(f"{len(missing)} images are gone or have changed (first: {missing[0]})")
        images = ItemImages(backbone, items.items, [there[key] for key in keys], config.seed)
        network = trainable_copy(backbone, init, config.seed)
        trained = train_full(network, images, init, TrainingRun(items, *rows, config, progress))
        return trained, partial(images_in_order, images)

    return Cell(train)
