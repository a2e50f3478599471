"""An HDF5 file without its data: everything that describes the datasets, composed in memory.

HDF5 decides where each dataset lies; the data themselves are written there by plain writes. A full
disk met inside the HDF5 library would leave it in a state from which a file can be neither closed nor
used again.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import h5py
import numpy as np

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
        super().__init__()
        self.size = 0
        self.offsets: dict[str, int] = {}
        self._pages: dict[int, bytearray] = {}
        self._at = 0
        # From 1.10 on, HDF5 keeps a checksum with every piece of metadata.
        options = {"libver": ("v110", "v110"), "alignment_threshold": _PAGE, "alignment_interval": _PAGE}
        with h5py.File(self, "w", **options) as file:
            file.attrs.update(attributes)
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

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        view = memoryview(buffer).cast("B")
        view[:] = self.read(len(view))
        return len(view)

    def write(self, data: memoryview) -> int:  # type: ignore[override]
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
    h5py.Dataset(made).attrs.update(dataset.attributes)
    return int(made.get_offset())
