"""The only way in which a shard is read and validated.

A shard is self-describing: ``/sha256`` (rows, 32) uint8 and ``/vectors/<layer>/<view>`` of shape
(rows, …), contiguous, float32 or float16, little-endian; name and recipe stand in the root's attributes,
the SHA-256 of its bytes with every dataset. Once sealed it never changes.

A file is data, not a program: `read_layout` follows hard links inside a regular file only, takes no
external, virtual or chunked dataset, and checks every size before anything is allocated. Readers map
the ranges of bytes that it returns and never go through HDF5 again.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from featcache.core.errors import DamagedStoreError, ShardGoneError, StoreFormatError
from featcache.core.recipe import Recipe

if TYPE_CHECKING:
    import h5py

SHARD_FORMAT = 2
"""What is written; format 1, whose attributes have no fixed length, is read."""
DTYPES = ("float16", "float32")
_CHUNK = 8 << 20
_ATTRIBUTE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Extent:
    """Where the bytes of one dataset lie in its file, and what their SHA-256 was when they were sealed."""

    offset: int
    dtype: str
    shape: tuple[int, ...]
    """(rows, …), one row an image."""
    sha256: str

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, slots=True)
class ShardLayout:
    """What a validated shard holds."""

    recipe: Recipe
    sha256: Extent
    vectors: dict[tuple[str, str], Extent]
    """By (layer, view)."""
    positions: dict[tuple[str, str], int]
    """Where each layer stands in the network's order."""

    @property
    def rows(self) -> int:
        return self.sha256.shape[0]


def read_layout(path: Path) -> ShardLayout:
    """Validate a shard and say where its data lie.

    Raises:
        StoreFormatError: a shard of a format that this version does not read.
        ShardGoneError: there is no such file.
        DamagedStoreError: anything that a featcache shard cannot be; the message says what.
    """
    import h5py  # only here: maps of sealed shards, and a run with nothing to do, have no need of it

    try:
        size = _regular_size(path)
        with h5py.File(path, "r") as file:
            found = _attribute(file, "featcache_shard", path)
            if not isinstance(found, int) or found < 1:
                raise DamagedStoreError(f"{path}: {found!r} is no shard format.")
            if found > SHARD_FORMAT:
                raise StoreFormatError(
                    f"{path} has shard format {found}; this featcache reads formats 1 to {SHARD_FORMAT}. "
                    "Upgrade featcache to read it."
                )
            if _attribute(file, "name", path) != path.stem:
                raise DamagedStoreError(f"{path} was sealed under another name, so it stands for another shard.")
            recipe = Recipe.from_json(str(_attribute(file, "recipe", path)))
            if recipe.fingerprint != _attribute(file, "fingerprint", path):
                raise DamagedStoreError(f"{path}: its fingerprint is not that of the recipe it carries.")
            sha256 = _extent(file, "sha256", size, path)
            if sha256.dtype != "uint8" or len(sha256.shape) != 2 or sha256.shape[1] != 32 or not sha256.shape[0]:
                raise DamagedStoreError(f"{path}: /sha256 is not an array of 32-byte hashes.")
            vectors, positions = {}, {}
            for layer in _group(file, "vectors", path):
                for view in _group(file, f"vectors/{layer}", path):
                    name = f"vectors/{layer}/{view}"
                    extent = _extent(file, name, size, path)
                    if extent.dtype not in DTYPES or extent.shape[0] != sha256.shape[0]:
                        raise DamagedStoreError(f"{path}: /{name} has a wrong dtype or row count.")
                    vectors[layer, view] = extent
                    positions[layer, view] = _position(file[name], path)
            return ShardLayout(recipe, sha256, vectors, positions)
    except FileNotFoundError as error:
        raise ShardGoneError(
            f"The shard {path} is gone. Run `featcache repair` on the store, then `featcache extract` again."
        ) from error
    except (OSError, KeyError, RuntimeError, ValueError, TypeError, OverflowError) as error:
        raise DamagedStoreError(f"{path} cannot be read as a shard: {error}.") from error


def layout_check(name: str, keys: Extent, vectors: Mapping[tuple[str, str], Extent]) -> bytes:
    """SHA-256 over where the data of a shard lie: kept in the catalogue, and tested against the file."""
    columns = [[layer, view, *_plain(vectors[layer, view])] for layer, view in sorted(vectors)]
    return hashlib.sha256(json.dumps([name, _plain(keys), columns]).encode()).digest()


def _plain(extent: Extent) -> list[object]:
    return [extent.offset, extent.dtype, list(extent.shape), extent.sha256]


def hash_file(path: Path) -> bytes:
    """SHA-256 of a file's bytes."""
    total = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while block := file.read(_CHUNK):
            total.update(block)
    return total.digest()


def _regular_size(path: Path) -> int:
    """The size of a file that is neither a link nor in a folder that is one: both could lead out of the store."""
    if not stat.S_ISDIR(os.lstat(path.parent).st_mode):
        raise DamagedStoreError(f"{path.parent} is a link, so what is in it is not the store's own.")
    state = os.lstat(path)
    if not stat.S_ISREG(state.st_mode):
        raise DamagedStoreError(f"{path} is not a regular file.")
    return state.st_size


def _attribute(node: h5py.HLObject, name: str, path: Path) -> str | int:
    if name not in node.attrs:
        raise DamagedStoreError(f"{path}: the attribute {name!r} is missing.")
    attribute = node.attrs.get_id(name)
    if attribute.shape != () or attribute.get_storage_size() > _ATTRIBUTE_BYTES:
        raise DamagedStoreError(f"{path}: the attribute {name!r} is no single value.")
    value = node.attrs[name]
    if isinstance(value, np.integer):
        return int(value)
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.decode()
    raise DamagedStoreError(f"{path}: the attribute {name!r} is neither text nor a whole number.")


def _position(node: h5py.HLObject, path: Path) -> int:
    position = _attribute(node, "position", path)
    if not isinstance(position, int) or not 0 <= position < 1 << 31:
        raise DamagedStoreError(f"{path}: {node.name} has no place in the network's order.")
    return position


def _group(file: h5py.File, name: str, path: Path) -> list[str]:
    import h5py

    _only_hard_links(file, name, path)
    group = file[name]
    if not isinstance(group, h5py.Group):
        raise DamagedStoreError(f"{path}: /{name} is not a group.")
    for member in group:
        if not str(member).isprintable():
            raise DamagedStoreError(f"{path}: /{name} has a member whose name is not text: {member!r}.")
    return list(group)


def _extent(file: h5py.File, name: str, size: int, path: Path) -> Extent:
    import h5py

    _only_hard_links(file, name, path)
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset):
        raise DamagedStoreError(f"{path}: /{name} is not a dataset.")
    plan = dataset.id.get_create_plist()
    if plan.get_layout() != h5py.h5d.CONTIGUOUS or plan.get_external_count():
        raise DamagedStoreError(f"{path}: /{name} is not stored in one piece inside the file.")
    dtype = dataset.dtype
    if dtype.hasobject or dtype.newbyteorder("<") != dtype:
        raise DamagedStoreError(f"{path}: /{name} does not hold little-endian numbers.")
    offset = dataset.id.get_offset()
    digest = str(_attribute(dataset, "sha256", path))
    extent = Extent(offset or 0, dtype.name, tuple(int(n) for n in dataset.shape), digest)
    if not extent.shape or offset is None or offset + extent.bytes > size:
        raise DamagedStoreError(f"{path}: /{name} claims more bytes than the file has.")
    return extent


def _only_hard_links(file: h5py.File, name: str, path: Path) -> None:
    import h5py

    parts = name.split("/")
    for depth in range(1, len(parts) + 1):
        link = "/".join(parts[:depth])
        if not isinstance(file.get(link, getlink=True), h5py.HardLink):
            raise DamagedStoreError(f"{path}: /{link} is missing, or a link that leads elsewhere.")
