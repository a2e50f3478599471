"""Batches of pictures, decoded and augmented while the network trains on those before."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from featcache.backbones import Backbone
from featcache.backbones.compute import cores
from featcache.core.recipe import StandardTransform
from featcache.extraction.stored_source import picture_of_item
from featcache.images.augmentation import Augmentation, AugmentedView
from featcache.images.entry import Entry
from featcache.store import Item
from featcache.strategies.batches import batch_count, shuffled

_AHEAD = 2
"""Batches that are made before their turn."""


class Pictures:
    """The pictures of items as a network's input; may be asked from many threads.

    Args:
        backbone: whose pixels they are.
        items: n items.
        entries: where the image of each item is.
        seed: of the augmentation.
    """

    def __init__(self, backbone: Backbone, items: Sequence[Item], entries: Sequence[Entry], seed: int) -> None:
        self._backbone, self._items, self._entries, self._seed = backbone, items, entries, seed
        self._policy = Augmentation()

    def pixels(self, row: int, epoch: int | None = None) -> np.ndarray:
        """The picture of one item, (h, w, 3) uint8.

        Args:
            row: number of the item.
            epoch: whose view is wanted, from 1: a part of the picture that is cut out, mirrored and coloured at
                random, by the same rules as stored views (`featcache.images.augmentation`); None for view 0.

        Raises:
            UnusableImageError: the image cannot be read, or is not the one that the store knows.
        """
        item = self._items[row]
        image = picture_of_item(item, self._entries[row], self._backbone)
        if epoch is None:
            return self._backbone.prepare(image, item.sha256)
        transform = self._backbone.recipe.pixels.transform
        assert isinstance(transform, StandardTransform)
        view = AugmentedView(self._policy, self._seed, epoch)
        return view.pixels(image.image, transform, item.sha256, image.box)


class PictureBatches:
    """The training items, each in another view every epoch.

    Args:
        pictures: makes the network's input.
        rows: (m,) rows to train on.
        numbers: (m,) int64 class numbers.
        batch_size: items of a step.
        seed: of the order.
    """

    def __init__(self, pictures: Pictures, rows: np.ndarray, numbers: np.ndarray, batch_size: int, seed: int) -> None:
        self._pictures, self._rows, self._numbers = pictures, rows, torch.from_numpy(numbers)
        self._batch_size, self._seed = batch_size, seed

    @property
    def steps(self) -> int:
        """Batches of an epoch."""
        return batch_count(len(self._rows), self._batch_size)

    def __call__(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Pictures (b, h, w, 3) uint8 and class numbers (b,)."""
        batches = shuffled(len(self._rows), self._batch_size, self._seed, epoch)
        chosen = [(self._rows[places], self._numbers[places]) for places in batches]
        for pixels, (_, numbers) in zip(
            _made(self._pictures, [rows for rows, _ in chosen], epoch), chosen, strict=True
        ):
            yield torch.from_numpy(pixels), numbers


def in_order(
    pictures: Pictures, rows: np.ndarray, numbers: np.ndarray, batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """View 0 of some rows, as they stand: pictures (b, h, w, 3) uint8 and class numbers (b,)."""
    parts = [slice(start, start + batch_size) for start in range(0, len(rows), batch_size)]
    for pixels, part in zip(_made(pictures, [rows[part] for part in parts], None), parts, strict=True):
        yield torch.from_numpy(pixels), torch.from_numpy(numbers[part])


def _made(pictures: Pictures, batches: Sequence[np.ndarray], epoch: int | None) -> Iterator[np.ndarray]:
    """The pixels of each batch in order, made in threads a few batches ahead."""
    with ThreadPoolExecutor(cores()) as threads:
        waiting: deque[list[Future[np.ndarray]]] = deque()
        left = iter(batches)
        try:
            for _ in range(len(batches)):
                while len(waiting) < _AHEAD and (batch := next(left, None)) is not None:
                    waiting.append([threads.submit(pictures.pixels, int(row), epoch) for row in batch])
                yield np.stack([future.result() for future in waiting.popleft()])
        finally:
            for futures in waiting:
                for future in futures:
                    future.cancel()
