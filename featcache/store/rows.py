"""The items of a source together with where their vectors lie."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from featcache.errors import ShardGoneError
from featcache.store.items import Item
from featcache.store.vectors import ColumnReader

if TYPE_CHECKING:
    from featcache.store.feature_store import FeatureStore


class ItemRows:
    """Items by position, with their vectors read on demand.

    It holds the items and two numbers a layer for each, so it stays small however large the cache is.
    Only the path travels to another process, which opens the store for itself.

    Attributes:
        items: n items, in URI order.
        layers: names of the layers, in network order.
    """

    def __init__(
        self,
        store: FeatureStore,
        space: str | None,
        layers: list[str],
        items: list[Item],
        where: dict[str, np.ndarray],
    ) -> None:
        self._store, self._space, self._where = store, space, where
        self.layers, self.items = layers, items
        self._readers: list[ColumnReader] | None = None

    @classmethod
    def of(
        cls,
        store: FeatureStore,
        layers: str | Sequence[str] | None = None,
        *,
        split: str | None = None,
        source: str | None = None,
        space: str | None = None,
    ) -> ItemRows:
        """The items that have vectors of these layers; the arguments are those of `FeatureStore.arrays`."""
        names = store.layer_names(layers, space)
        items, where = store.locate(names, split=split, source=source, space=space)
        return cls(store, space, names, items, where)

    def __len__(self) -> int:
        return len(self.items)

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """The shape of one image's activations, for each layer."""
        return [reader.row_shape for reader in self._open()]

    def read(self, rows: np.ndarray) -> np.ndarray:
        """The vectors at these positions.

        Args:
            rows: (n,) int64 positions.

        Returns:
            (n, d) float32, each layer flattened, the layers one after another.

        Raises:
            MissingVectorsError: another process removed some of them since this was made.
        """
        try:
            return self._read(rows)
        except ShardGoneError:
            # Another process compacted the store, or took rows away: ask the catalogue once more.
            self._where = self._store.where(self.layers, [item.sha256 for item in self.items], self._space)
            self._readers = None
            return self._read(rows)

    def _read(self, rows: np.ndarray) -> np.ndarray:
        readers = self._open()
        widths = [math.prod(reader.row_shape) for reader in readers]
        out = np.empty((len(rows), sum(widths)), np.float32)
        start = 0
        for layer, reader, width in zip(self.layers, readers, widths, strict=True):
            pairs = self._where[layer][rows]
            if len(readers) == 1:
                reader.gather(pairs, out.reshape(len(rows), *reader.row_shape))
            else:
                part = np.empty((len(rows), *reader.row_shape), np.float32)
                reader.gather(pairs, part)
                out[:, start : start + width] = part.reshape(len(rows), width)
            start += width
        return out

    def _open(self) -> list[ColumnReader]:
        if self._readers is None:
            self._readers = [self._store.column(layer, self._space) for layer in self.layers]
        return self._readers

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_readers": None}
