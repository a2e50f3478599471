"""Vectors of one layer and view: by position, and gathered by (shard, row)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from featcache.core.errors import DamagedStoreError, ShardGoneError
from featcache.store.commit import live_rows, places
from featcache.store.shard_maps import OPEN_SHARDS, ShardMaps, ShardRef, row_shape

if TYPE_CHECKING:
    from featcache.store.catalogue import Catalogue


class ColumnReader:
    """Reads one (space, layer, view) by shard and row.

    Args:
        catalogue: the store's catalogue.
        maps: the store's mapped shards.
        column: the column's number.
        fingerprint: the space's.
        layer: the layer's name.
        view: the view's name.
    """

    def __init__(
        self, catalogue: Catalogue, maps: ShardMaps, column: int, fingerprint: str, layer: str, view: str
    ) -> None:
        self.catalogue, self.maps, self.column = catalogue, maps, column
        self.layer, self.view = layer, view
        self._fingerprint = fingerprint
        self.shards: dict[int, tuple[ShardRef, str, tuple[int, ...], int]] = {}
        self.reload()

    def reload(self) -> None:
        """Read from the catalogue again which shards hold this column."""
        self.shards = {
            id_: (ShardRef(id_, name, self._fingerprint, rows, size, sha256), dtype, row_shape(shape), live)
            for id_, name, rows, size, sha256, dtype, shape, live in self.catalogue.query(
                "itiihtti",
                "SELECT s.id, s.name, s.rows, s.bytes, s.sha256, c.dtype, c.shape, c.live FROM shard_columns c "
                "JOIN shards s ON s.id = c.shard_id WHERE c.column_id = ? AND c.live > 0 ORDER BY s.id",
                (self.column,),
            )
        }

    @property
    def row_shape(self) -> tuple[int, ...]:
        """The shape of one image's activations, as one of the shards confirms it; () where nothing is stored."""
        shapes = {shape for _, _, shape, _ in self.shards.values()}
        if len(shapes) > 1:
            raise DamagedStoreError(
                f"The catalogue gives {self.layer} several shapes: {sorted(shapes)}. "
                "Run `featcache repair` on the store."
            )
        if not shapes:
            return ()
        # Whoever asks is about to allocate: a catalogue alone is not believed.
        self.shard_array(next(iter(self.shards)))
        return shapes.pop()

    def shard_array(self, shard: int) -> np.ndarray:
        """All rows of one shard, (rows, …), as stored, read-only and mapped."""
        ref, dtype, shape, _ = self.shards[shard]
        return self.maps.array(ref, self.layer, self.view, dtype, shape)

    def places(self, sha256s: Sequence[bytes]) -> dict[bytes, tuple[int, int]]:
        """Shard and row of those of these images (SHA-256s, each once) that are stored."""
        return places(self.catalogue, self.column, sha256s)

    def gather(self, pairs: np.ndarray, out: np.ndarray) -> None:
        """Fill *out* with the rows asked for, in the order asked.

        Args:
            pairs: (n, 2) numbers of shards, which may be newer than this reader, and rows in them.
            out: (n, …) float array of the row shape.

        Raises:
            ShardGoneError: a shard was compacted or removed meanwhile; its rows have other places now.
        """
        unknown = set(np.unique(pairs[:, 0]).tolist()) - self.shards.keys()
        if unknown:
            self.reload()
            if unknown - self.shards.keys():
                raise ShardGoneError(
                    f"{self.layer}: rows were moved or removed by another process meanwhile. "
                    "Open the store again; if that does not help, run `featcache verify`."
                )
        _gather(self.shard_array, pairs[:, 0], pairs[:, 1], out)


class Vectors:
    """All vectors of one column by position: ``vectors[i:j]`` and ``vectors[[7, 3]]`` copy rows out.

    The order is that of the shards and of the rows in them, as of the moment when it was opened: its
    shards are mapped at once (the first `OPEN_SHARDS` of them) and stay readable when another process
    compacts the store. ``len``, ``shape`` and ``dtype`` are as of an array; the dtype is the widest
    that is stored.
    """

    def __init__(self, reader: ColumnReader) -> None:
        self._reader = reader
        live = [entry[3] for entry in reader.shards.values()]
        self._ids = np.array(list(reader.shards), dtype=np.int64)
        self._starts = np.concatenate([[0], np.cumsum(live, dtype=np.int64)])
        kept = {entry[1] for entry in reader.shards.values()}
        self.dtype = np.dtype("float32" if "float32" in kept or not kept else "float16")
        self._row_shape = reader.row_shape
        # What is mapped stays readable; a row that dies later was there when this was opened.
        self._mapped = {shard: reader.shard_array(shard) for shard in list(reader.shards)[:OPEN_SHARDS]}
        self._live_rows = {
            id_: np.flatnonzero(live_rows(reader.catalogue, reader.column, id_, reader.maps.sha256s(ref)))
            for id_, (ref, _, _, live) in reader.shards.items()
            if live < ref.rows
        }

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self), *self._row_shape)

    def __getitem__(self, index: slice | Sequence[int] | np.ndarray) -> np.ndarray:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step == 1:
                return self._range(start, max(start, stop))
            index = np.arange(start, stop, step)
        positions = np.asarray(index, dtype=np.int64)
        positions = np.where(positions < 0, positions + len(self), positions)
        if positions.size and (positions.min() < 0 or positions.max() >= len(self)):
            raise IndexError(f"positions run from 0 to {len(self) - 1}")
        which = np.searchsorted(self._starts, positions, side="right") - 1
        shards, rows = self._ids[which], positions - self._starts[which]
        for shard, live in self._live_rows.items():
            rows[shards == shard] = live[rows[shards == shard]]
        out = np.empty((len(positions), *self._row_shape), self.dtype)
        _gather(self._array, shards, rows, out)
        return out

    def _range(self, start: int, stop: int) -> np.ndarray:
        out = np.empty((stop - start, *self._row_shape), self.dtype)
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        for place in range(first, len(self._ids)):
            begin, end = int(self._starts[place]), int(self._starts[place + 1])
            if begin >= stop:
                break
            low, high = max(begin, start) - begin, min(end, stop) - begin
            shard = int(self._ids[place])
            source, live = self._array(shard), self._live_rows.get(shard)
            out[begin + low - start : begin + high - start] = (
                source[low:high] if live is None else source[live[low:high]]
            )
        return out

    def _array(self, shard: int) -> np.ndarray:
        mapped = self._mapped.get(shard)
        return self._reader.shard_array(shard) if mapped is None else mapped


def _gather(array: Callable[[int], np.ndarray], shards: np.ndarray, rows: np.ndarray, out: np.ndarray) -> None:
    """Fill *out* from (shard, row) pairs; each shard, given by *array*, is visited once."""
    for shard in np.unique(shards):
        at = np.flatnonzero(shards == shard)
        source = array(int(shard))
        wanted = rows[at]
        if wanted.size and (wanted.min() < 0 or wanted.max() >= len(source)):
            raise DamagedStoreError(
                f"The catalogue names rows that shard number {shard} does not have. "
                "Run `featcache verify`, then `featcache repair`."
            )
        if _run(at) and _run(wanted):
            out[at[0] : at[-1] + 1] = source[wanted[0] : wanted[-1] + 1]
        else:
            out[at] = source[wanted]


def _run(values: np.ndarray) -> bool:
    """Whether the numbers follow one another, so that a slice serves."""
    return bool(len(values) and values[-1] - values[0] == len(values) - 1 and np.all(np.diff(values) == 1))
