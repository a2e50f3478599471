"""One image as a source lists it.

What identifies an image: the SHA-256 of a file's bytes, or of the pixels of an image in memory.

An image file's bytes, with the state of the file they came from.
"""

from __future__ import annotations

import hashlib
import os
import stat as modes
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable
from urllib.parse import quote

from featcache.core.errors import UnusableImageError

if TYPE_CHECKING:
    from PIL.Image import Image


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


EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"}
)
"""File name endings, in lower case, by which an image is recognised in a folder."""


class Content(Protocol):
    """The bytes of an image that is no file of its own: what a new kind of source has to give."""

    def read(self) -> tuple[bytes, FileStat]:
        """The bytes of the image's file, and the state of where they came from; called in threads.

        Raises:
            UnusableImageError: they cannot be read.
        """

    def state(self) -> FileStat | None:
        """The same state without reading, or None where nothing tells whether the bytes are still those."""


@dataclass(frozen=True, slots=True)
class Unusable:
    """Content of which the listing knows already that it cannot be used, and why; a `Content`."""

    reason: str

    def read(self) -> tuple[bytes, FileStat]:
        raise UnusableImageError(self.reason)

    def state(self) -> FileStat | None:
        return None


@dataclass(frozen=True, slots=True)
class Entry:
    """One image of a source."""

    uri: str
    """Relative to the source's root, with ``/`` between the parts."""
    place: str
    """Where its bytes are; text, as a source may list very many, and a `Path` takes four times the memory."""
    label: str | None
    split: str | None
    group: str | None
    make_image: Callable[[], Image] | None = None
    """Makes the upright RGB image of an image that is in memory and has no bytes at *place*."""
    content: Content | None = None
    """Reads the bytes of an image that is no file of its own; *place* then only tells a person where they are."""

    def read(self) -> tuple[bytes, FileStat]:
        """The bytes of its file, and the file's state.

        Raises:
            UnusableImageError: as `read_image_file`.
        """
        return read_image_file(self.path) if self.content is None else self.content.read()

    def state(self) -> FileStat | None:
        """The state of its file now; None where there is none, or where nothing tells whether it was changed."""
        if self.content is not None:
            return self.content.state()
        try:
            return None if self.make_image is not None else FileStat.of(os.stat(self.place))
        except OSError:
            return None

    @property
    def path(self) -> Path:
        """Where its bytes are."""
        return Path(self.place)


@runtime_checkable
class Source(Protocol):
    """A named collection of images.

    Attributes:
        name: the source's name.
        root: absolute path that URIs are relative to, or what stands for it where the images are in no file.
        ignored: files found by `entries` that are no images.
        incomplete: beginnings of URIs of which `entries` could not list all.
        within: beginnings of the URIs that `entries` looks at, ``("",)`` where it looks at the whole source. What it
            does not look at is not judged to be gone.
    """

    name: str
    root: str
    ignored: int = 0
    incomplete: tuple[str, ...] = ()
    within: tuple[str, ...] = ("",)

    def entries(self) -> list[Entry]:
        """List the images, each URI once, in an order that depends on nothing else and is good to read in."""


def as_text(name: str) -> str:
    """A file name that is not valid text, with its stray bytes as ``%XX``: the catalogue holds text only."""
    try:
        name.encode("utf-8")
        return name
    except UnicodeEncodeError:
        return "".join(quote(os.fsencode(c)) if "\udc80" <= c <= "\udcff" else c for c in name)


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


def pixels_sha256(image: Image) -> bytes:
    """SHA-256 of an image's mode, width, height and raw pixels.

    Args:
        image: upright RGB, as `featcache.images.decode` makes it: before that, equal pixels can be
            different images (palettes, transparency, orientation).
    """
    digest = hashlib.sha256(f"{image.mode} {image.width} {image.height}\n".encode())
    digest.update(image.tobytes())
    return digest.digest()


@lru_cache(maxsize=1 << 18)
def _remembered(path: str, stat: FileStat) -> bytes:
    return _hashed(path)


def _hashed(path: str) -> bytes:
    return hashlib.sha256(read_image_file(Path(path))[0]).digest()
