"""Files that a person names for an output: what they may replace.

One rule for every such file, looked at before the work and once more when it is written:

- A file of the same kind that featcache wrote gives way: a head to a head, a figure to a figure. Anything else there
  is not overwritten, unless that is forced.
- What the work itself reads (a table, a head, an image in its folder or that its table or store lists) and what lies in
  a store are never replaced.
- A link is judged by what it leads to. Where it may give way, it is replaced itself, and what it leads to stays.
- Links to folders on the way to a file change nothing: what counts is where it comes to lie.
"""

from __future__ import annotations

import glob
import json
import os
import re
import stat as modes
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from featcache.core.errors import UsageError
from featcache.core.files import partial_beside, place_of, written_whole

PREDICTIONS_HEADER = ("uri", "rank", "label", "probability", "problem")
_COLUMNS = {*PREDICTIONS_HEADER, "path", "label", "split", "group"}
"""What stands in the heading of a table that featcache reads or writes."""
FIGURE_SOFTWARE = "featcache"
"""Value of the entry ``Software`` in the PNGs that featcache draws."""

HEAD_FORMAT = 2
"""The newest format of heads that this version reads; a newer one it cannot judge, and does not overwrite."""

_CATALOGUE = "catalog.sqlite"
_LONGEST_HEADER = 100 << 20
"""Of safetensors, in bytes; its own limit."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of file that featcache writes.

    Attributes:
        name: with its article, for messages: ``a head``.
        ours: whether a regular file is one; may raise anything of a file that is not.
        suffixes: that its name must have one of, if there are any.
    """

    name: str
    ours: Callable[[Path], bool]
    suffixes: tuple[str, ...] = ()


def _is_head(path: Path) -> bool:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > _LONGEST_HEADER:
            return False
        return bool(json.loads(json.loads(file.read(length))["__metadata__"]["featcache"])["format"] <= HEAD_FORMAT)


def _is_predictions(path: Path) -> bool:
    with path.open("rb") as file:
        first = file.readline(200).decode().rstrip("\r\n")
        # A table that has no row yet, only our columns or a title in plain words, is nothing to be lost.
        empty = set(first.split(",")) <= {"", *_COLUMNS} or re.fullmatch(r"[\w ]+", first)
        if path.suffix.lower() == ".csv" and empty and not file.read(1):
            return True
    return first in (",".join(PREDICTIONS_HEADER), ",".join(PREDICTIONS_HEADER[:-1]))


def _is_figure(path: Path) -> bool:
    with path.open("rb") as file:
        if file.read(8) != b"\x89PNG\r\n\x1a\n":
            return False
        while True:
            length, name = struct.unpack(">I4s", file.read(8))
            if name in (b"IDAT", b"IEND"):
                return False
            data = file.read(length)
            (check,) = struct.unpack(">I", file.read(4))
            if name == b"tEXt" and data == b"Software\0" + FIGURE_SOFTWARE.encode():
                return bool(check == zlib.crc32(name + data))


def _is_vectors(path: Path) -> bool:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return {"features.npy", "recipe.npy", "layers.npy"} <= set(archive.namelist())
    import h5py

    with h5py.File(path) as file:
        return "features" in file and {"recipe", "fingerprint", "layers"} <= set(file.attrs)


def _is_pairs(path: Path) -> bool:
    with path.open("rb") as file:
        first, second = file.readline(40).split(b"\t"), file.readline(1 << 16).split(b"\t")
    return len(first) <= 2 and all(part.strip().isdigit() for part in first) and len(second) in (3, 4)


HEAD = Kind("a head", _is_head)
PREDICTIONS = Kind("a table of predictions", _is_predictions)
FIGURE = Kind("a figure of featcache", _is_figure, (".png",))
VECTORS = Kind("a file of vectors from featcache", _is_vectors, (".h5", ".hdf5", ".npz"))
PAIRS = Kind("a list of pairs", _is_pairs)


def check_output(
    path: str | Path,
    kind: Kind,
    *,
    inputs: Iterable[str | Path] = (),
    lists: Callable[[Path, Path], bool] | None = None,
    force: bool = False,
) -> None:
    """Find out before the work whether a file can be written; its folder is made.

    Args:
        path: the file.
        kind: what it will be.
        inputs: files and folders that the work reads, and its other outputs.
        lists: whether one of the inputs, a table or a store, reads an image elsewhere.
        force: replace a file of another kind.

    Raises:
        UsageError: it cannot be written, or what is there is not replaced.

    Example:
        >>> check_output("photos/cats/cat-00.jpg", HEAD)
        Traceback (most recent call last):
        featcache.core.errors.UsageError: photos/cats/cat-00.jpg exists and is not a head, so it is not overwritten. …
    """
    path = Path(path)
    if path.is_dir():
        raise UsageError(f"{path} is a folder, which is not overwritten. Give the name of a file.")
    if kind.suffixes and path.suffix.lower() not in kind.suffixes:
        named = " or ".join(str(path.with_suffix(suffix)) for suffix in kind.suffixes)
        raise UsageError(f"The name {path} does not say what it will be: call it {named}.")
    place = place_of(path)
    store = next((folder for folder in place.parents if (folder / _CATALOGUE).is_file()), None)
    if store is not None:
        raise UsageError(f"{path} lies in the store {store}, which keeps no other files. Give another file.")
    if os.path.lexists(path):
        # Which may be the input under another name: a link, or the same file in letters of another case.
        ours = _is_ours(path, kind)
        for given in _existing(inputs):
            if os.path.exists(path) and os.path.samefile(path, given):
                raise UsageError(f"{path} is read by this command, so it is not overwritten. Give another file.")
            if not ours and given.is_dir() and any(map(given.samefile, filter(os.path.exists, place.parents))):
                raise UsageError(f"{path} lies in {given}, which is read, so it is not overwritten. Give another file.")
            if not ours and lists is not None and lists(given, path):
                raise UsageError(f"{path} is read through {given}, so it is not overwritten. Give another file.")
        if not ours and not force:
            raise UsageError(
                f"{path} exists and is not {kind.name}, so it is not overwritten. Give another file, or --force "
                "(force=True in Python)."
            )
    elif any(place == place_of(given) for given in inputs):
        raise UsageError(f"{path} is named twice. Give another file.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial_beside(path):
            pass
    except OSError as error:
        raise UsageError(
            f"{kind.name.capitalize()} cannot be written to {path}: {error.strerror}. Give another file."
        ) from error


@contextmanager
def written_output(path: str | Path, kind: Kind, *, force: bool = False) -> Iterator[Path]:
    """A file to write in the place of *path*, as `written_whole`, if that may be replaced.

    Raises:
        UsageError: as `check_output`.
        OSError: it cannot be written.
    """
    check_output(path, kind, force=force)
    with written_whole(Path(path)) as aside:
        yield aside


def _is_ours(path: Path, kind: Kind) -> bool:
    try:
        return modes.S_ISREG(path.stat().st_mode) and kind.ours(path)
    except Exception:  # of damaged or foreign bytes, which are not ours then
        return False


def _existing(inputs: Iterable[str | Path]) -> Iterator[Path]:
    for given in inputs:
        if os.path.exists(given):
            yield Path(given)
        elif glob.has_magic(str(given)):  # of tar files
            yield from map(Path, glob.glob(str(given)))
