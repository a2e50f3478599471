"""Batches of cached activations, read as they are needed."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from featcache.strategies.batches import batch_count, shuffled
from featcache.training.dataset import LabelledVectors


class CachedBatches:
    """The training items; an epoch has each of them once, in one of its views drawn at random.

    Args:
        examples: with the activations as their only layer.
        rows: (m,) rows to train on.
        numbers: (m,) int64 class numbers.
        batch_size: items of a step.
        seed: of the order and the views.
    """

    def __init__(
        self, examples: LabelledVectors, rows: np.ndarray, numbers: np.ndarray, batch_size: int, seed: int
    ) -> None:
        self._examples, self._rows, self._numbers = examples, rows, torch.from_numpy(numbers)
        self._batch_size, self._seed = batch_size, seed

    @property
    def steps(self) -> int:
        """Batches of an epoch."""
        return batch_count(len(self._rows), self._batch_size)

    def __call__(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Activations (b, d), flattened, and class numbers (b,)."""
        count = len(self._examples.views)
        views = np.random.default_rng([self._seed, epoch, 1]).integers(0, count, len(self._rows))
        for places in shuffled(len(self._rows), self._batch_size, self._seed, epoch):
            X = self._examples.read_learned(self._rows[places] * count + views[places])
            yield torch.from_numpy(X), self._numbers[places]


def in_order(
    examples: LabelledVectors, rows: np.ndarray, numbers: np.ndarray, batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """View 0 of some rows, as they stand: activations (b, d), flattened, and class numbers (b,)."""
    for start in range(0, len(rows), batch_size):
        part = slice(start, start + batch_size)
        yield torch.from_numpy(examples.read(rows[part])), torch.from_numpy(numbers[part])
