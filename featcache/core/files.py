"""Files that are whole or not there: written aside, flushed to the disk, renamed into their place; reads at a place."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def absolute(path: str | os.PathLike[str]) -> str:
    """A path from the root on, without ``.`` and ``..``.

    As for the system, a ``..`` behind a link leads to what lies above the place that the link leads to;
    `os.path.abspath` takes both away.
    """
    plain = os.path.abspath(path)
    if os.pardir not in os.fspath(path).split(os.sep) or os.path.realpath(path) == os.path.realpath(plain):
        return plain
    folder, name = os.path.split(path)
    return os.path.normpath(os.path.join(os.path.realpath(folder), name))


def place_of(path: str | os.PathLike[str]) -> Path:
    """Where a file of this name lies, through whatever links to folders it is named; it may be a link itself."""
    whole = absolute(path)
    return Path(os.path.realpath(os.path.dirname(whole)), os.path.basename(whole))


@contextmanager
def partial_beside(path: Path) -> Iterator[Path]:
    """A new, empty file beside *path*, which is gone after the block unless it was renamed.

    Raises:
        OSError: it cannot be made.
    """
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.partial")
    os.close(os.open(aside, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0), 0o666))
    try:
        yield aside
    finally:
        with suppress(OSError):
            aside.unlink(missing_ok=True)


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A file to write in the place of *path*: it lies beside it, and is flushed and renamed in the end.

    If the block raises, nothing is left of the file, and *path* is as it was. The umask says who may read it, whatever
    wrote the file aside.

    Raises:
        OSError: it cannot be written.

    Example:
        >>> with written_whole(Path("report.txt")) as aside:
        ...     _ = aside.write_text("done")
    """
    with partial_beside(path) as aside:
        mode = aside.stat().st_mode & 0o777
        yield aside
        if aside.stat().st_mode & 0o777 != mode:  # safetensors makes a file of its own, for this user alone
            aside.chmod(mode)
        sync(aside)
        aside.replace(path)


def sync(path: Path) -> None:
    """Flush one file's bytes, or one folder's names, to the disk."""
    if sys.platform == "win32" and path.is_dir():
        return  # Windows opens no folder, and keeps names by its own journal
    handle = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_at(handle: int, length: int, offset: int) -> bytes:
    """Up to *length* bytes from *offset* on, as `os.pread`; on Windows, which lacks it, *handle* moves there."""
    if sys.platform == "win32":
        os.lseek(handle, offset, os.SEEK_SET)
        return os.read(handle, length)
    return os.pread(handle, length, offset)
