"""What identifies an image: the SHA-256 of a file's bytes, or of the pixels of a picture in memory."""

from __future__ import annotations

import hashlib
import os
import time
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from featcache.images.reading import FileStat, read_image_file

if TYPE_CHECKING:
    from PIL.Image import Image

_RACY_NS = 2_000_000_000


def file_sha256(path: Path) -> bytes:
    """SHA-256 of a file's bytes; an unchanged file is read once in a process.

    Raises:
        UnusableImageError: as `read_image_file`.
    """
    absolute = os.path.abspath(path)
    try:
        stat = FileStat.of(os.stat(absolute))
    except OSError:
        return _hashed(absolute)  # reading it says what is wrong
    # A file touched a moment ago may change again within the clock's grain.
    if time.time_ns() - max(stat.mtime_ns, stat.ctime_ns) <= _RACY_NS:
        return _hashed(absolute)
    return _remembered(absolute, stat)


def picture_sha256(picture: Image) -> bytes:
    """SHA-256 of a picture's mode, width, height and raw pixels.

    Args:
        picture: upright RGB, as `featcache.images.decode` makes it: before that, equal pixels can be
            different pictures (palettes, transparency, orientation).
    """
    digest = hashlib.sha256(f"{picture.mode} {picture.width} {picture.height}\n".encode())
    digest.update(picture.tobytes())
    return digest.digest()


@lru_cache(maxsize=1 << 18)
def _remembered(path: str, stat: FileStat) -> bytes:
    return _hashed(path)


def _hashed(path: str) -> bytes:
    return hashlib.sha256(read_image_file(Path(path))[0]).digest()
