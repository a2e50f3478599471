"""Shards: writing one sealed HDF5 file, and the single door through which one is read.

A shard is self-describing: ``/sha256`` (rows, 32) uint8 and ``/vectors/<layer>/<view>`` of shape
(rows, …), contiguous, float32 or float16, little-endian; the recipe stands in the root's attributes.
Once sealed it never changes.

A file is data, not a program: `read_layout` follows hard links inside the file only, takes no
external, virtual or chunked dataset, and checks every size before anything is allocated. Readers map
the ranges of bytes that it returns and never go through HDF5 again.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import h5py
import numpy as np

from featcache.errors import DamagedStoreError, StoreFormatError
from featcache.recipe import Recipe
from featcache.store.catalogue import sync_file

SHARD_FORMAT = 1
DTYPES = ("float16", "float32")
_CHUNK = 8 << 20


@dataclass(frozen=True, slots=True)
class Extent:
    """Where the bytes of one dataset lie in its file."""

    offset: int
    dtype: str
    shape: tuple[int, ...]
    """(rows, …), one row an image."""

    @property
    def bytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


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


@dataclass(frozen=True, slots=True)
class SealedShard:
    """A shard file that was written and flushed, not yet renamed into its place."""

    path: Path
    sha256: bytes
    bytes: int
    rows: int
    dtypes: dict[tuple[str, str], str]
    shapes: dict[tuple[str, str], tuple[int, ...]]


def write_shard(
    path: Path,
    recipe: Recipe,
    sha256s: Sequence[bytes],
    vectors: Mapping[tuple[str, str], Sequence[np.ndarray]],
    dtypes: Mapping[tuple[str, str], str],
    positions: Mapping[tuple[str, str], int],
) -> SealedShard:
    """Write one shard, close it, hash it and flush it to the disk.

    Args:
        path: the file to make, in a folder of the writer's own.
        recipe: what made the vectors.
        sha256s: the images' SHA-256s, 32 bytes each, one a row.
        vectors: for each (layer, view) float arrays of shape (n_i, …) that follow one another.
        dtypes: the storage dtype wished for each; values that float16 cannot hold make it float32.
        positions: where each layer stands in the network's order.
    """
    rows = len(sha256s)
    final = {key: _holding(parts, dtypes[key]) for key, parts in vectors.items()}
    shapes: dict[tuple[str, str], tuple[int, ...]] = {}
    with h5py.File(path, "w", libver=("earliest", "v110")) as file:
        file.attrs["featcache_shard"] = SHARD_FORMAT
        file.attrs["recipe"] = recipe.to_json()
        file.attrs["fingerprint"] = recipe.fingerprint
        file.attrs["created"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
        file.attrs["libraries"] = (
            f"python {platform.python_version()}; h5py {h5py.__version__}; hdf5 {h5py.version.hdf5_version}; "
            f"numpy {np.__version__}"
        )
        keys = np.frombuffer(b"".join(sha256s), dtype=np.uint8).reshape(rows, 32)
        file.create_dataset("sha256", data=keys)
        for (layer, view), parts in vectors.items():
            shape = tuple(parts[0].shape[1:])
            shapes[layer, view] = shape
            dataset = file.create_dataset(
                f"vectors/{layer}/{view}",
                shape=(rows, *shape),
                dtype=np.dtype(final[layer, view]).newbyteorder("<"),
            )
            dataset.attrs["position"] = positions[layer, view]
            start = 0
            for part in parts:
                dataset[start : start + len(part)] = part.astype(final[layer, view], copy=False)
                start += len(part)
    digest = hash_file(path)
    sync_file(path)
    return SealedShard(path, digest, path.stat().st_size, rows, final, shapes)


def read_layout(path: Path) -> ShardLayout:
    """Validate a shard and say where its data lie.

    Raises:
        StoreFormatError: a shard of a format that this version does not read.
        DamagedStoreError: anything that a featcache shard cannot be; the message says what.
    """
    try:
        size = path.stat().st_size
        with h5py.File(path, "r") as file:
            found = file.attrs.get("featcache_shard")
            if found != SHARD_FORMAT:
                raise StoreFormatError(
                    f"{path} has shard format {found!r}; this featcache reads format {SHARD_FORMAT}."
                )
            recipe = Recipe.from_json(str(file.attrs["recipe"]))
            if recipe.fingerprint != file.attrs.get("fingerprint"):
                raise DamagedStoreError(f"{path}: its fingerprint is not that of the recipe it carries.")
            sha256 = _extent(file, "sha256", size, path)
            if sha256.dtype != "uint8" or len(sha256.shape) != 2 or sha256.shape[1] != 32:
                raise DamagedStoreError(f"{path}: /sha256 is not an array of 32-byte hashes.")
            vectors, positions = {}, {}
            for layer in _group(file, "vectors", path):
                for view in _group(file, f"vectors/{layer}", path):
                    extent = _extent(file, f"vectors/{layer}/{view}", size, path)
                    if extent.dtype not in DTYPES or extent.shape[0] != sha256.shape[0]:
                        raise DamagedStoreError(f"{path}: /vectors/{layer}/{view} has a wrong dtype or row count.")
                    vectors[layer, view] = extent
                    positions[layer, view] = int(file[f"vectors/{layer}/{view}"].attrs["position"])
            return ShardLayout(recipe, sha256, vectors, positions)
    except (OSError, KeyError, RuntimeError, ValueError, TypeError) as error:
        if isinstance(error, (DamagedStoreError, StoreFormatError)):
            raise
        raise DamagedStoreError(f"{path} cannot be read as a shard: {error}.") from error


def hash_file(path: Path) -> bytes:
    """SHA-256 of a file's bytes."""
    total = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while block := file.read(_CHUNK):
            total.update(block)
    return total.digest()


def _holding(parts: Sequence[np.ndarray], dtype: str) -> str:
    """The dtype wished for, or float32 where a finite value would become infinite in float16."""
    if dtype == "float16":
        limit = float(np.finfo(np.float16).max)
        if any(part.size and float(np.abs(part).max()) > limit for part in parts):
            return "float32"
    return dtype


def _group(file: h5py.File, name: str, path: Path) -> list[str]:
    _only_hard_links(file, name, path)
    group = file[name]
    if not isinstance(group, h5py.Group):
        raise DamagedStoreError(f"{path}: /{name} is not a group.")
    return list(group)


def _extent(file: h5py.File, name: str, size: int, path: Path) -> Extent:
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
    extent = Extent(offset or 0, dtype.name, tuple(int(n) for n in dataset.shape))
    if not extent.shape or offset is None or offset + extent.bytes > size:
        raise DamagedStoreError(f"{path}: /{name} claims more bytes than the file has.")
    return extent


def _only_hard_links(file: h5py.File, name: str, path: Path) -> None:
    parts = name.split("/")
    for depth in range(1, len(parts) + 1):
        link = "/".join(parts[:depth])
        if not isinstance(file.get(link, getlink=True), h5py.HardLink):
            raise DamagedStoreError(f"{path}: /{link} is missing, or a link that leads elsewhere.")
