"""Sources and their entries: how an image is listed, how its bytes are read, and what identifies it.

An image is identified by the SHA-256 of its file's bytes; one in memory by that of its RGB pixels.
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
from featcache.core.files import absolute
from featcache.core.labels import settled

if TYPE_CHECKING:
    from PIL.Image import Image


LIMIT_BYTES = 512 << 20
"""Of one image file."""

_RACY_NS = 2_000_000_000


@dataclass(frozen=True, slots=True)
class FileStat:
    """Tells whether a file was changed: size in bytes, times in nanoseconds, inode."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int

    @classmethod
    def of(cls, result: os.stat_result) -> FileStat:
        """Those of an `os.stat_result`."""
        return cls(result.st_size, result.st_mtime_ns, result.st_ctime_ns, result.st_ino)


class Content(Protocol):
    """The bytes of an image that is no file of its own; this is what a new kind of source has to provide."""

    def read(self) -> tuple[bytes, FileStat]:
        """The bytes of the image file, and the state of where they came from. Called in threads.

        Raises:
            UnusableImageError: they cannot be read.
        """

    def state(self) -> FileStat | None:
        """The same state without reading; None if nothing tells whether the bytes are still the same."""


@dataclass(frozen=True, slots=True)
class Unusable:
    """A `Content` known to be unusable when it was listed, and why."""

    reason: str

    def read(self) -> tuple[bytes, FileStat]:
        raise UnusableImageError(self.reason)

    def state(self) -> FileStat | None:
        return None


@dataclass(frozen=True, slots=True)
class Entry:
    """One image of a source.

    Attributes:
        uri: relative to the source's root, with ``/`` between the parts.
        place: path of its file. Text, as a source may list very many and a `Path` takes four times the memory.
        label, split, group: None if unknown. They become what `featcache.core.labels.settled` makes of them.
        make_image: makes the upright RGB image of one that is in memory and has no file at *place*.
        content: reads the bytes of an image that is no file of its own; then *place* is for messages only.
    """

    uri: str
    place: str
    label: str | None
    split: str | None
    group: str | None
    make_image: Callable[[], Image] | None = None
    content: Content | None = None

    def __post_init__(self) -> None:
        # Here, so that it holds for every source, whoever wrote it.
        for name, text in settled(self.label, self.split, self.group):
            object.__setattr__(self, name, text)

    def read(self) -> tuple[bytes, FileStat]:
        """The bytes of its file, and the file's state.

        Raises:
            UnusableImageError: as `read_image_file`.
        """
        return read_image_file(self.path) if self.content is None else self.content.read()

    def state(self) -> FileStat | None:
        """The state of its file now; None if there is none, or nothing tells whether it was changed."""
        if self.content is not None:
            return self.content.state()
        try:
            return None if self.make_image is not None else FileStat.of(os.stat(self.place))
        except OSError:
            return None

    @property
    def path(self) -> Path:
        """Of its file."""
        return Path(self.place)


@runtime_checkable
class Source(Protocol):
    """A named collection of images.

    Attributes:
        name: the source's name.
        root: absolute path that URIs are relative to, or what stands for it if the images are in no file.
        ignored: files found by `entries` that are no images.
        incomplete: prefixes of URIs of which `entries` could not list all.
        within: prefixes of the URIs that `entries` looks at, ``("",)`` for the whole source. Nothing outside them is
            taken to be removed.
    """

    name: str
    root: str
    ignored: int = 0
    incomplete: tuple[str, ...] = ()
    within: tuple[str, ...] = ("",)

    def entries(self) -> list[Entry]:
        """List the images, each URI once, in a fixed order that is good to read in."""


def notes_of(source: Source) -> tuple[str, ...]:
    """What `entries` found that the user should know, as sentences: the ``notes`` of a source that has some."""
    return tuple(getattr(source, "notes", ()))  # no part of the protocol: sources written before have none


def unread_of(source: Source) -> dict[str, int]:
    """How many images `entries` found in formats that are not read, by ending; part of ``ignored``."""
    return dict(getattr(source, "unread", {}))  # as `notes_of`


def read_image_file(path: Path) -> tuple[bytes, FileStat]:
    """Read a file once, from one descriptor.

    Raises:
        UnusableImageError: it is no regular file, empty, larger than 512 MiB, unreadable, or was changed meanwhile.
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


def as_text(name: str) -> str:
    """A file name with bytes that are not valid text written as ``%XX``: the catalogue holds text only."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return "".join(quote(os.fsencode(c)) if "\udc80" <= c <= "\udcff" else c for c in name)
    return name


def file_sha256(path: Path) -> bytes:
    """SHA-256 of a file's bytes; an unchanged file is read once per process.

    Raises:
        UnusableImageError: as `read_image_file`.
    """
    place = absolute(path)
    try:
        stat = FileStat.of(os.stat(place))
    except OSError:
        return _hashed(place)  # reading it says what is wrong
    # A file touched a moment ago may change again within the clock's resolution.
    if time.time_ns() - max(stat.mtime_ns, stat.ctime_ns) <= _RACY_NS:
        return _hashed(place)
    return _remembered(place, stat)


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
