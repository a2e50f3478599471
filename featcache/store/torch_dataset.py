"""A torch `Dataset` over stored vectors.

It holds only numbers (class, shard and row of each item), so it stays small however large the cache
is. Batches are read with one pass over the shards concerned (``__getitems__``). A forked or spawned
worker opens the store for itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.data import Dataset

from featcache.core.errors import MissingVectorsError
from featcache.core.labels import given_label
from featcache.store.rows import ItemRows

if TYPE_CHECKING:
    from featcache.store.reader import StoreReader
    from featcache.store.spaces import Item


class TorchDataset(Dataset[tuple[torch.Tensor, int]]):
    """Vectors and class numbers of the labeled items of one or more sources.

    Attributes:
        classes: the labels of the whole source, sorted; a class number is a place in this list, the same in every
            split.
        class_to_idx: the number of each class.
        items: the items, in the order of the dataset.
        targets: (n,) int64 class numbers.

    Each element is ``(vector (d,) float32, class number)``; several layers are concatenated.
    """

    def __init__(
        self,
        store: StoreReader,
        layers: str | Sequence[str] | None = None,
        *,
        split: str | None = None,
        source: str | Sequence[str] | None = None,
        space: str | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> None:
        self._rows = ItemRows.of(store, layers, split=split, source=source, space=space)
        self.layers = self._rows.layers
        items = self._rows.items
        named = [item.label if labels is None else given_label(labels.get(item.uri)) for item in items]
        self._kept = np.array([i for i, label in enumerate(named) if label is not None], dtype=np.int64)
        if not len(self._kept):
            raise MissingVectorsError("No item has a label. Give labels with `--labels FILE` or class folders.")
        self.items: list[Item] = [items[i] for i in self._kept]
        self.classes = store.classes(source) if labels is None else sorted(set(labels.values()))
        self.class_to_idx = {name: i for i, name in enumerate(self.classes)}
        self.targets = np.array([self.class_to_idx[str(named[i])] for i in self._kept], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[torch.Tensor, int]]:
        """A batch at once; torch's `DataLoader` calls this."""
        rows = np.asarray(indices, dtype=np.int64)
        vectors = torch.from_numpy(self.read(rows))
        return list(zip(vectors.unbind(0), self.targets[rows].tolist(), strict=True))

    def read(self, rows: np.ndarray) -> np.ndarray:
        """The vectors of these positions, (n, d) float32."""
        return self._rows.read(self._kept[rows])
