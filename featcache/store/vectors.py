"""Vectors of one layer and view: by position, and gathered by (shard, row)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from featcache.errors import DamagedStoreError
from featcache.store.catalogue import Catalogue
from featcache.store.commit import shard_folder
from featcache.store.shard_map import ShardMaps, ShardRef


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
        self._folder = shard_folder(fingerprint)
        self.shards: dict[int, tuple[ShardRef, str, tuple[int, ...], int]] = {}
        self.reload()

    def reload(self) -> None:
        """Read from the catalogue again which shards hold this column."""
        self.shards = {}
        for id_, name, rows, size, dtype, shape, live in self.catalogue.query(
            "SELECT s.id, s.name, s.rows, s.bytes, c.dtype, c.shape, c.live FROM shard_columns c "
            "JOIN shards s ON s.id = c.shard_id WHERE c.column_id = ? AND c.live > 0 ORDER BY s.id",
            (self.column,),
        ):
            if not (isinstance(name, str) and Path(name).name == name and name):
                raise DamagedStoreError(f"The catalogue names a shard {name!r}, which is no file name.")
            ref = ShardRef(int(id_), name, self._folder, int(rows), int(size))
            self.shards[ref.id] = (ref, str(dtype), tuple(json.loads(shape)), int(live))

    @property
    def row_shape(self) -> tuple[int, ...]:
        """The shape of one image's activations; () where nothing is stored."""
        return next(iter(self.shards.values()))[2] if self.shards else ()

    def shard_array(self, shard: int) -> np.ndarray:
        """All rows of one shard, (rows, …), as stored, read-only and mapped."""
        ref, dtype, shape, _ = self.shards[shard]
        return self.maps.array(ref, self.layer, self.view, dtype, shape)

    def gather(self, shards: np.ndarray, rows: np.ndarray, out: np.ndarray) -> None:
        """Fill *out* (n, …) with the rows asked for, in the order asked; each shard is visited once.

        Args:
            shards: (n,) numbers of shards.
            rows: (n,) rows in them.
            out: (n, …) float array of the row shape.
        """
        for shard in np.unique(shards):
            at = np.flatnonzero(shards == shard)
            source = self.shard_array(int(shard))
            wanted = rows[at]
            if wanted.size and (wanted.min() < 0 or wanted.max() >= len(source)):
                raise DamagedStoreError(
                    f"The catalogue names rows of shard {self.shards[int(shard)][0].name} "
                    "that it does not have. Run `featcache verify`."
                )
            if _run(at) and _run(wanted):
                out[at[0] : at[-1] + 1] = source[wanted[0] : wanted[-1] + 1]
            else:
                out[at] = source[wanted]

    def gather_known(self, pairs: np.ndarray, out: np.ndarray) -> None:
        """`gather` for (n, 2) pairs of shard and row, which may be newer than this reader."""
        if set(np.unique(pairs[:, 0]).tolist()) - self.shards.keys():
            self.reload()
        self.gather(pairs[:, 0], pairs[:, 1], out)


class Vectors:
    """All vectors of one column by position: ``vectors[i:j]`` and ``vectors[[7, 3]]`` copy rows out.

    The order is that of the shards and of the rows in them. ``len``, ``shape`` and ``dtype`` are as of
    an array; the dtype is the widest that is stored.
    """

    def __init__(self, reader: ColumnReader) -> None:
        self._reader = reader
        live = [entry[3] for entry in reader.shards.values()]
        self._ids = np.array(list(reader.shards), dtype=np.int64)
        self._starts = np.concatenate([[0], np.cumsum(live, dtype=np.int64)])
        kept = {entry[1] for entry in reader.shards.values()}
        self.dtype = np.dtype("float32" if "float32" in kept or not kept else "float16")
        self._live_rows: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self), *self._reader.row_shape)

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
        rows = positions - self._starts[which]
        for shard in np.unique(which):
            live = self._live(int(shard))
            if live is not None:
                rows[which == shard] = live[rows[which == shard]]
        out = np.empty((len(positions), *self._reader.row_shape), self.dtype)
        self._reader.gather(self._ids[which], rows, out)
        return out

    def _range(self, start: int, stop: int) -> np.ndarray:
        out = np.empty((stop - start, *self._reader.row_shape), self.dtype)
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        for shard in range(first, len(self._ids)):
            begin, end = int(self._starts[shard]), int(self._starts[shard + 1])
            if begin >= stop:
                break
            low, high = max(begin, start) - begin, min(end, stop) - begin
            source = self._reader.shard_array(int(self._ids[shard]))
            live = self._live(shard)
            out[begin + low - start : begin + high - start] = (
                source[low:high] if live is None else source[live[low:high]]
            )
        return out

    def _live(self, shard: int) -> np.ndarray | None:
        """The rows of a shard that exist; None where all do."""
        id_ = int(self._ids[shard])
        ref, _, _, live = self._reader.shards[id_]
        if live == ref.rows:
            return None
        if id_ not in self._live_rows:
            found = self._reader.catalogue.query(
                "SELECT row FROM rows WHERE column_id = ? AND shard_id = ? ORDER BY row",
                (self._reader.column, id_),
            )
            self._live_rows[id_] = np.array([row for (row,) in found], dtype=np.int64)
        return self._live_rows[id_]


def _run(values: np.ndarray) -> bool:
    """Whether the numbers follow one another, so that a slice serves."""
    return bool(len(values) and values[-1] - values[0] == len(values) - 1 and np.all(np.diff(values) == 1))
