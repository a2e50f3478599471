"""Files that are whole or not there: written aside, flushed to the disk, renamed into their place; reads at a place."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A file to write in the place of *path*: it lies beside it, and is flushed and renamed in the end.

    If the block raises, nothing is left of the file, and *path* is as it was.

    Raises:
        OSError: it cannot be written.

    Example:
        >>> with written_whole(Path("report.txt")) as aside:
        ...     _ = aside.write_text("done")
    """
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.partial")
    try:
        yield aside
        sync(aside)
        aside.replace(path)
    finally:
        with suppress(OSError):
            aside.unlink(missing_ok=True)


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
