"""Batches of cached activations, and of images that are decoded and augmented while the network trains.

The items of an epoch are in the same order whenever the epoch is run.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from featcache.backbones.compute import cores
from featcache.core.recipe import StandardTransform
from featcache.extraction.stored_source import image_of_item
from featcache.images.augmentation import Augmentation, AugmentedView

if TYPE_CHECKING:
    from featcache.backbones import Backbone
    from featcache.images.entry import Entry
    from featcache.store import Item
    from featcache.training.dataset import FeatureDataset


def batch_count(items: int, batch_size: int) -> int:
    """Batches that hold *items*: none of a single item where there are two or more, else each at most *batch_size*."""
    return max(1, min(-(-items // batch_size), items // 2))


def shuffled(items: int, batch_size: int, seed: int, epoch: int) -> Iterator[np.ndarray]:
    """The places 0 … items - 1 in random order, in batches whose sizes differ by one at most.

    Batch normalization needs two items in each batch, so the last one is not what happens to be left.
    """
    order = np.random.default_rng([seed, epoch]).permutation(items)
    yield from np.array_split(order, batch_count(items, batch_size))


class CachedBatches:
    """The training items; an epoch has each of them once, in one of its views drawn at random.

    Args:
        dataset: with the activations as their only layer.
        rows: (m,) rows to train on.
        class_ids: (m,) int64 class ids.
        batch_size: items of a step.
        seed: of the order and the views.
    """

    def __init__(
        self, dataset: FeatureDataset, rows: np.ndarray, class_ids: np.ndarray, batch_size: int, seed: int
    ) -> None:
        self._dataset, self._rows, self._class_ids = dataset, rows, torch.from_numpy(class_ids)
        self._batch_size, self._seed = batch_size, seed

    @property
    def steps(self) -> int:
        """Batches of an epoch."""
        return batch_count(len(self._rows), self._batch_size)

    def __call__(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Activations (b, d), flattened, and class ids (b,)."""
        count = len(self._dataset.views)
        views = np.random.default_rng([self._seed, epoch, 1]).integers(0, count, len(self._rows))
        for places in shuffled(len(self._rows), self._batch_size, self._seed, epoch):
            X = self._dataset.read_views(self._rows[places] * count + views[places])
            yield torch.from_numpy(X), self._class_ids[places]


def activations_in_order(
    dataset: FeatureDataset, rows: np.ndarray, class_ids: np.ndarray, batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """View 0 of some rows, as they stand: activations (b, d), flattened, and class ids (b,)."""
    for start in range(0, len(rows), batch_size):
        part = slice(start, start + batch_size)
        yield torch.from_numpy(dataset.read(rows[part])), torch.from_numpy(class_ids[part])


_AHEAD = 2
"""Batches that are made before their turn."""


class ItemImages:
    """The images of items as a network's input; may be asked from many threads.

    Args:
        backbone: whose pixels they are.
        items: n items.
        entries: where the image of each item is.
        seed: of the augmentation.
    """

    def __init__(self, backbone: Backbone, items: Sequence[Item], entries: Sequence[Entry], seed: int) -> None:
        self._backbone, self._items, self._entries, self._seed = backbone, items, entries, seed
        self._policy = Augmentation()
        self._transform = backbone.recipe.pixels.transform

    def pixels(self, row: int, epoch: int | None = None) -> np.ndarray:
        """The image of one item, (h, w, 3) uint8.

        Args:
            row: number of the item.
            epoch: whose view is wanted, from 1: a part of the image that is cut out, mirrored and colored at
                random, by the same rules as stored views (`featcache.images.augmentation`); None for view 0.

        Raises:
            UnusableImageError: the image cannot be read, or is not the one that the store knows.
        """
        item = self._items[row]
        image = image_of_item(item, self._entries[row], self._backbone)
        if epoch is None:
            return self._backbone.prepare(image, item.sha256)
        transform = self._transform
        assert isinstance(transform, StandardTransform)
        view = AugmentedView(self._policy, self._seed, epoch)
        return view.pixels(image.image, transform, item.sha256, image.box)


class ImageBatches:
    """The training items, each in another view every epoch.

    Args:
        images: makes the network's input.
        rows: (m,) rows to train on.
        class_ids: (m,) int64 class ids.
        batch_size: items of a step.
        seed: of the order.
    """

    def __init__(self, images: ItemImages, rows: np.ndarray, class_ids: np.ndarray, batch_size: int, seed: int) -> None:
        self._images, self._rows, self._class_ids = images, rows, torch.from_numpy(class_ids)
        self._batch_size, self._seed = batch_size, seed

    @property
    def steps(self) -> int:
        """Batches of an epoch."""
        return batch_count(len(self._rows), self._batch_size)

    def __call__(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Images (b, h, w, 3) uint8 and class ids (b,)."""
        batches = shuffled(len(self._rows), self._batch_size, self._seed, epoch)
        chosen = [(self._rows[places], self._class_ids[places]) for places in batches]
        for pixels, (_, class_ids) in zip(
            _made(self._images, [rows for rows, _ in chosen], epoch), chosen, strict=True
        ):
            yield torch.from_numpy(pixels), class_ids


def images_in_order(
    images: ItemImages, rows: np.ndarray, class_ids: np.ndarray, batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """View 0 of some rows, as they stand: images (b, h, w, 3) uint8 and class ids (b,)."""
    parts = [slice(start, start + batch_size) for start in range(0, len(rows), batch_size)]
    for pixels, part in zip(_made(images, [rows[part] for part in parts], None), parts, strict=True):
        yield torch.from_numpy(pixels), torch.from_numpy(class_ids[part])


def _made(images: ItemImages, batches: Sequence[np.ndarray], epoch: int | None) -> Iterator[np.ndarray]:
    """The pixels of each batch in order, made in threads a few batches ahead."""
    with ThreadPoolExecutor(cores()) as threads:
        waiting: deque[list[Future[np.ndarray]]] = deque()
        left = iter(batches)
        try:
            for _ in range(len(batches)):
                while len(waiting) < _AHEAD and (batch := next(left, None)) is not None:
                    waiting.append([threads.submit(images.pixels, int(row), epoch) for row in batch])
                yield np.stack([future.result() for future in waiting.popleft()])
        finally:
            for futures in waiting:
                for future in futures:
                    future.cancel()
