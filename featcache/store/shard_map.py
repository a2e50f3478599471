"""Reading sealed shards through memory maps.

A shard is validated once per process when it is first needed, then its datasets are views of one map
of the file. Maps are never carried across a fork: each process opens its own. Only so many are kept
open at a time; arrays that were handed out keep theirs alive.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featcache.errors import DamagedStoreError, MissingVectorsError
from featcache.store.catalogue import foreign_errors
from featcache.store.shard import Extent, ShardLayout, read_layout

OPEN_SHARDS = 256


@dataclass(frozen=True, slots=True)
class ShardRef:
    """A shard as the catalogue names it."""

    id: int
    name: str
    folder: str
    rows: int
    bytes: int


class ShardMaps:
    """The mapped shards of one store in this process."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._open: OrderedDict[int, tuple[mmap.mmap, ShardLayout]] = OrderedDict()

    def array(self, shard: ShardRef, layer: str, view: str, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
        """One dataset of a shard as a read-only array (rows, …).

        Args:
            shard: the shard.
            layer: the layer's name.
            view: the view's name.
            dtype: the dtype that the catalogue promises.
            shape: the shape of one row that the catalogue promises.

        Raises:
            MissingVectorsError: the file is gone.
            DamagedStoreError: the file is not what the catalogue says.
        """
        mapped, layout = self._get(shard)
        extent = layout.vectors.get((layer, view))
        if extent is None or extent.dtype != dtype or extent.shape != (shard.rows, *shape):
            raise DamagedStoreError(
                f"Shard {shard.name} does not hold {layer} of view {view} as the catalogue describes it. "
                "Run `featcache verify` to see what is damaged."
            )
        return _view(mapped, extent)

    def sha256s(self, shard: ShardRef) -> np.ndarray:
        """The SHA-256s of a shard's rows, (rows, 32) uint8."""
        mapped, layout = self._get(shard)
        return _view(mapped, layout.sha256)

    def _get(self, shard: ShardRef) -> tuple[mmap.mmap, ShardLayout]:
        if self._pid != os.getpid():
            # After a fork; the lock may have come along held by a thread that did not.
            self._lock, self._open, self._pid = threading.Lock(), OrderedDict(), os.getpid()
        with self._lock:
            held = self._open.get(shard.id)
            if held is None:
                held = self._map(shard)
                self._open[shard.id] = held
                if len(self._open) > OPEN_SHARDS:
                    self._open.popitem(last=False)
            self._open.move_to_end(shard.id)
            return held

    def _map(self, shard: ShardRef) -> tuple[mmap.mmap, ShardLayout]:
        path = self._root / "shards" / shard.folder / f"{shard.name}.h5"
        if not path.is_file():
            raise MissingVectorsError(
                f"The shard {path} is gone, and with it {shard.rows} images' vectors. "
                "If another process removed it, open the store again; else run `featcache verify`."
            )
        with foreign_errors(str(path)):
            if path.stat().st_size != shard.bytes:
                raise DamagedStoreError(
                    f"{path} has {path.stat().st_size} bytes where the catalogue says {shard.bytes}. "
                    "Run `featcache verify` to see what is damaged."
                )
            layout = read_layout(path)
            if layout.rows != shard.rows:
                raise DamagedStoreError(f"{path} has {layout.rows} rows, not {shard.rows} as in the catalogue.")
            with path.open("rb") as file:
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), layout


def _view(mapped: mmap.mmap, extent: Extent) -> np.ndarray:
    count = int(np.prod(extent.shape, dtype=np.int64))
    flat = np.frombuffer(mapped, dtype=np.dtype(extent.dtype).newbyteorder("<"), count=count, offset=extent.offset)
    return flat.reshape(extent.shape)
