"""An image file's bytes, with the state of the file they came from."""

from __future__ import annotations

import os
import stat as modes
from dataclasses import dataclass
from pathlib import Path

from featcache.core.errors import UnusableImageError

LIMIT_BYTES = 512 << 20


@dataclass(frozen=True, slots=True)
class FileStat:
    """What tells whether a file was changed: size in bytes, times in nanoseconds, inode."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int

    @classmethod
    def of(cls, result: os.stat_result) -> FileStat:
        return cls(result.st_size, result.st_mtime_ns, result.st_ctime_ns, result.st_ino)


def read_image_file(path: Path) -> tuple[bytes, FileStat]:
    """Read a file once, from one descriptor.

    Raises:
        UnusableImageError: it is no regular file, empty, larger than 512 MiB, cannot be read, or was
            changed while it was read.
    """
    try:
        # Opening alone can act on a device (a tape rewinds, a watchdog starts), so it is not even opened.
        mode = os.stat(path).st_mode
        if not modes.S_ISREG(mode) and not modes.S_ISDIR(mode):
            raise UnusableImageError("it is not a regular file")
        with open(path, "rb", opener=_opener) as file:
            handle = file.fileno()
            before = os.fstat(handle)
            if not modes.S_ISREG(before.st_mode):
                raise UnusableImageError("it is not a regular file")  # put there since it was looked at
            if before.st_size > LIMIT_BYTES:
                raise UnusableImageError(f"it has {before.st_size >> 20} MiB, more than {LIMIT_BYTES >> 20}")
            data = file.read(before.st_size + 1)
            after = os.fstat(handle)
    except OSError as error:
        raise UnusableImageError(f"it cannot be read: {error.strerror or error}") from error
    except MemoryError as error:
        raise UnusableImageError("there is not enough memory to read it") from error
    if FileStat.of(before) != FileStat.of(after) or len(data) != before.st_size:
        raise UnusableImageError("it was changed while it was read")
    if not data:
        raise UnusableImageError("the file is empty")
    return data, FileStat.of(after)


def _opener(path: str, flags: int) -> int:
    # A pipe or device put there meanwhile must not be waited for, nor become this process's terminal.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0))
