"""Sealed shards as memory maps.

A shard is validated once per process, when it is first needed; its datasets are then views of one map of the file. Maps
are never carried across a fork: each process opens its own. Only `OPEN_SHARDS` are kept open; arrays that were handed
out keep theirs alive.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import re
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featcache.core.errors import DamagedStoreError, ShardGoneError
from featcache.store.catalogue import foreign_errors
from featcache.store.commit import shard_path
from featcache.store.shard import Extent, ShardLayout, layout_check, read_layout

OPEN_SHARDS = 256


_HEX = re.compile("[0-9a-f]+")


@dataclass(frozen=True, slots=True)
class ShardRef:
    """A shard as the catalogue names it.

    Raises:
        DamagedStoreError: it names what can be no shard, such as a path that leaves the store.
    """

    id: int
    name: str
    fingerprint: str
    """Of its space."""
    rows: int
    size: int
    """Bytes of its file."""
    sha256: bytes

    def __post_init__(self) -> None:
        hexadecimal = _HEX.fullmatch(self.name) and _HEX.fullmatch(self.fingerprint)
        if not hexadecimal or len(self.name) != 32 or len(self.fingerprint) != 64 or self.rows < 1:
            raise DamagedStoreError(
                f"The catalogue names a shard {self.name!r} of space {self.fingerprint!r} with {self.rows} rows, "
                "which can be no shard. Run `featcache repair` on the store."
            )

    def path(self, store: Path) -> Path:
        """Where its file lies."""
        return shard_path(store, self.fingerprint, self.name)


def row_shape(text: str) -> tuple[int, ...]:
    """The shape of one image's activations as the catalogue keeps it, a JSON list.

    Raises:
        DamagedStoreError: the text is none.
    """
    try:
        shape = json.loads(text)
    except (ValueError, RecursionError):
        shape = None
    if not isinstance(shape, list) or any(type(n) is not int or n < 0 for n in shape):
        raise DamagedStoreError(f"The catalogue gives the shape {text!r}. Run `featcache repair` on the store.")
    return tuple(shape)


class ShardMaps:
    """The mapped shards of one store in this process."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._open: OrderedDict[ShardRef, tuple[mmap.mmap, ShardLayout]] = OrderedDict()
        # What was validated once stays so: a shard never changes, and to map it again is cheap.
        self._layouts: dict[ShardRef, ShardLayout] = {}

    def array(self, shard: ShardRef, layer: str, view: str, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
        """One dataset of a shard as a read-only array (rows, …).

        Args:
            shard: the shard.
            layer: the layer's name.
            view: the view's name.
            dtype: the dtype that the catalogue promises.
            shape: the shape of one row that the catalogue promises.

        Raises:
            ShardGoneError: the file is gone.
            DamagedStoreError: the file is not what the catalogue says.
        """
        mapped, layout = self._get(shard)
        extent = layout.vectors.get((layer, view))
        if extent is None or extent.dtype != dtype or extent.shape != (shard.rows, *shape):
            raise DamagedStoreError(
                f"Shard {shard.name} does not hold {layer} of view {view} as the catalogue describes it. "
                "Run `featcache verify`, then `featcache repair`."
            )
        return _view(mapped, extent)

    def sha256s(self, shard: ShardRef) -> np.ndarray:
        """The SHA-256s of a shard's rows, (rows, 32) uint8."""
        mapped, layout = self._get(shard)
        return _view(mapped, layout.sha256)

    def layout_check(self, shard: ShardRef) -> bytes:
        """`featcache.store.shard.layout_check` of the file."""
        _, layout = self._get(shard)
        return layout_check(shard.name, layout.sha256, layout.vectors)

    def _get(self, shard: ShardRef) -> tuple[mmap.mmap, ShardLayout]:
        if self._pid != os.getpid():
            # After a fork; the lock may have come along held by a thread that did not.
            self._lock, self._open, self._pid = threading.Lock(), OrderedDict(), os.getpid()
        with self._lock:
            held = self._open.get(shard)
            if held is None:
                held = self._map(shard)
                self._open[shard] = held
                if len(self._open) > OPEN_SHARDS:
                    self._open.popitem(last=False)
            self._open.move_to_end(shard)
            return held

    def _map(self, shard: ShardRef) -> tuple[mmap.mmap, ShardLayout]:
        path = shard.path(self._root)
        layout = self._layouts.get(shard) or read_layout(path)
        with foreign_errors(str(path)):
            try:
                with path.open("rb") as file:
                    size = os.fstat(file.fileno()).st_size
                    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except FileNotFoundError as error:
                raise ShardGoneError(f"The shard {path} was taken away this moment.") from error
        if size != shard.size:
            raise DamagedStoreError(
                f"{path} has {size} bytes where the catalogue says {shard.size}. "
                "Run `featcache verify`, then `featcache repair`."
            )
        if layout.rows != shard.rows or layout.recipe.fingerprint != shard.fingerprint:
            raise DamagedStoreError(
                f"{path} holds {layout.rows} rows of space {layout.recipe.fingerprint[:12]}, where the catalogue "
                f"says {shard.rows} of {shard.fingerprint[:12]}. Run `featcache verify`, then `featcache repair`."
            )
        self._layouts[shard] = layout
        return mapped, layout


def _view(mapped: mmap.mmap, extent: Extent) -> np.ndarray:
    count = math.prod(extent.shape)
    flat = np.frombuffer(mapped, dtype=np.dtype(extent.dtype).newbyteorder("<"), count=count, offset=extent.offset)
    return flat.reshape(extent.shape)
