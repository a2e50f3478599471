"""Writing one sealed shard: the skeleton from HDF5, the data by plain writes, everything hashed on its way.

HDF5 decides where each dataset lies, and the data are written there by plain writes: a full disk met inside the HDF5
library would leave it in a state from which a file can be neither closed nor used again. The hashes are of what was
meant to be written, so they also reveal a disk that kept something else. When a shard is sealed is decided in
`featcache.store.writer`.
"""

from __future__ import annotations

import hashlib
import io
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from featcache.store.shard import SHARD_FORMAT, Extent

if TYPE_CHECKING:
    import h5py

    from featcache.core.recipe import Recipe

_PAGE = 4096


@dataclass(frozen=True, slots=True)
class Described:
    """One dataset to come: its path in the file, shape, dtype and attributes."""

    path: str
    shape: tuple[int, ...]
    dtype: np.dtype
    attributes: Mapping[str, int | str]


class Skeleton(io.RawIOBase):
    """The bytes of a file around its datasets.

    Args:
        attributes: of the root.
        datasets: contiguous, each at the start of a page, in the order given.

    Attributes:
        size: bytes of the whole file.
        offsets: where each dataset begins, by its path.
    """

    def __init__(self, attributes: Mapping[str, int | str], datasets: list[Described]) -> None:
        import h5py

        super().__init__()
        self.size = 0
        self.offsets: dict[str, int] = {}
        self._pages: dict[int, bytearray] = {}
        self._at = 0
        # From 1.10 on, HDF5 keeps a checksum with every piece of metadata.
        options = {"libver": ("v110", "v110"), "alignment_threshold": _PAGE, "alignment_interval": _PAGE}
        with h5py.File(self, "w", **options) as file:
            _describe(file, attributes)
            for dataset in datasets:
                self.offsets[dataset.path] = _allocate(file, dataset)

    def between(self, start: int, stop: int) -> Iterator[bytes]:
        """The bytes of ``[start, stop)``, zeros where HDF5 wrote nothing."""
        while start < stop:
            page, inside = divmod(start, _PAGE)
            count = min(_PAGE - inside, stop - start)
            yield bytes(self._pages.get(page, bytes(_PAGE))[inside : inside + count])
            start += count

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self.size)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, count: int = -1) -> bytes:
        stop = self.size if count < 0 else self._at + count
        data = b"".join(self.between(self._at, stop))
        self._at = stop
        return data

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # HDF5 gives a memoryview
        view = memoryview(buffer).cast("B")
        view[:] = self.read(len(view))
        return len(view)

    def write(self, data: memoryview) -> int:  # type: ignore[override]  # as above
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view):
            page, inside = divmod(self._at, _PAGE)
            part = view[done : done + _PAGE - inside]
            self._pages.setdefault(page, bytearray(_PAGE))[inside : inside + len(part)] = part
            self._at += len(part)
            done += len(part)
        self.size = max(self.size, self._at)
        return done

    def truncate(self, size: int | None = None) -> int:
        self.size = self._at if size is None else size
        return self.size


def _allocate(file: h5py.File, dataset: Described) -> int:
    """Make room for a dataset without writing anything into it; returns where it begins."""
    import h5py

    how = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    how.set_layout(h5py.h5d.CONTIGUOUS)
    how.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    how.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    # One time stands in the root's attributes; with these the same contents would not be the same bytes.
    how.set_obj_track_times(False)
    groups = h5py.h5p.create(h5py.h5p.LINK_CREATE)
    groups.set_create_intermediate_group(True)
    kind, space = h5py.h5t.py_create(dataset.dtype), h5py.h5s.create_simple(dataset.shape)
    made = h5py.h5d.create(file.id, dataset.path.encode(), kind, space, how, groups)
    _describe(h5py.Dataset(made), dataset.attributes)
    return int(made.get_offset())


def _describe(node: h5py.HLObject, attributes: Mapping[str, int | str]) -> None:
    """Give an object its attributes, eight at most and each below 64 KiB.

    Text has a fixed length: of any other HDF5 makes a heap without checksums, in which a flipped bit lets it search
    for ever.
    """
    import h5py

    for name, value in attributes.items():
        if isinstance(value, str):
            data = value.encode()
            node.attrs.create(name, np.bytes_(data), dtype=h5py.string_dtype("utf-8", len(data)))
        else:
            node.attrs[name] = value


Column = tuple[str, str]
"""(layer, view)"""


@dataclass(frozen=True, slots=True)
class SealedShard:
    """A shard file that was written and flushed.

    Attributes:
        name: the file's name without its suffix.
        sha256: SHA-256 of the file.
        bytes: its size.
        rows: images in it.
        keys: where the images' SHA-256s lie.
        vectors: where the vectors of each column lie.
    """

    name: str
    sha256: bytes
    bytes: int
    rows: int
    keys: Extent
    vectors: dict[Column, Extent]


def write_shard(
    path: Path,
    recipe: Recipe,
    sha256s: Sequence[bytes],
    vectors: Mapping[Column, Sequence[np.ndarray]],
    dtypes: Mapping[Column, str],
    positions: Mapping[Column, int],
) -> SealedShard:
    """Write one shard and flush it to the disk; a file that cannot be written whole is removed again.

    Args:
        path: the file to make, in a folder of the writer's own; its stem is the shard's name.
        recipe: what made the vectors.
        sha256s: the images' SHA-256s, 32 bytes each, one a row.
        vectors: for each (layer, view) float arrays of shape (n_i, …) that follow one another.
        dtypes: the storage dtype wished for each; values that float16 cannot hold make it float32.
        positions: where each layer stands in the network's order.

    Raises:
        OSError: the disk is full or fails.
    """
    rows = len(sha256s)
    final = {column: _holding(parts, dtypes[column]) for column, parts in vectors.items()}
    keys = np.frombuffer(b"".join(sha256s), dtype=np.uint8).reshape(rows, 32)
    contents = {"sha256": [keys]}
    datasets = [Described("sha256", keys.shape, keys.dtype, {"sha256": hash_arrays([keys])})]
    for column, parts in vectors.items():
        dtype = np.dtype(final[column]).newbyteorder("<")
        name = f"vectors/{column[0]}/{column[1]}"
        contents[name] = [np.ascontiguousarray(part, dtype) for part in parts]
        attributes: dict[str, int | str] = {"position": positions[column], "sha256": hash_arrays(contents[name])}
        datasets.append(Described(name, (rows, *parts[0].shape[1:]), dtype, attributes))
    skeleton = Skeleton(_attributes(path.stem, recipe), datasets)
    total = hashlib.sha256()
    try:
        with path.open("wb", buffering=0) as file:
            for block in _blocks(skeleton, contents):
                total.update(block)
                while block:
                    block = block[os.write(file.fileno(), block) :]
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    keys_extent, *extents = (
        Extent(skeleton.offsets[d.path], d.dtype.name, d.shape, str(d.attributes["sha256"])) for d in datasets
    )
    columns = dict(zip(vectors, extents, strict=True))
    return SealedShard(path.stem, total.digest(), skeleton.size, rows, keys_extent, columns)


def hash_arrays(parts: Sequence[np.ndarray]) -> str:
    """SHA-256, in hexadecimal, of the bytes of C-contiguous arrays that follow one another."""
    total = hashlib.sha256()
    for part in parts:
        total.update(_bytes_of(part))
    return total.hexdigest()


def _attributes(name: str, recipe: Recipe) -> dict[str, int | str]:
    import h5py

    return {
        "featcache_shard": SHARD_FORMAT,
        "name": name,
        "recipe": recipe.to_json(),
        "fingerprint": recipe.fingerprint,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "libraries": (
            f"python {platform.python_version()}; h5py {h5py.__version__}; hdf5 {h5py.version.hdf5_version}; "
            f"numpy {np.__version__}"
        ),
    }


def _blocks(skeleton: Skeleton, contents: Mapping[str, Sequence[np.ndarray]]) -> Iterator[memoryview]:
    """The file from its first byte to its last."""
    at = 0
    for name, offset in sorted(skeleton.offsets.items(), key=lambda item: item[1]):
        yield from (memoryview(block) for block in skeleton.between(at, offset))
        at = offset
        for part in contents[name]:
            yield _bytes_of(part)
            at += part.nbytes
    yield from (memoryview(block) for block in skeleton.between(at, skeleton.size))


def _bytes_of(array: np.ndarray) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _holding(parts: Sequence[np.ndarray], dtype: str) -> str:
    """The dtype wished for, or float32 where a finite value would become infinite in float16."""
    if dtype == "float16":
        limit = float(np.finfo(np.float16).max)
        if any(part.size and float(np.abs(part).max()) > limit for part in parts):
            return "float32"
    return dtype
