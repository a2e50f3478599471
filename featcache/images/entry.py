"""One image as a source lists it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import quote

from featcache.core.errors import UnusableImageError
from featcache.images.reading import FileStat, read_image_file

if TYPE_CHECKING:
    from PIL.Image import Image

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
    picture: Callable[[], Image] | None = None
    """Makes the upright RGB picture of an image that is in memory and has no bytes at *place*."""
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
            return None if self.picture is not None else FileStat.of(os.stat(self.place))
        except OSError:
            return None

    @property
    def path(self) -> Path:
        """Where its bytes are."""
        return Path(self.place)


def as_text(name: str) -> str:
    """A file name that is not valid text, with its stray bytes as ``%XX``: the catalogue holds text only."""
    try:
        name.encode("utf-8")
        return name
    except UnicodeEncodeError:
        return "".join(quote(os.fsencode(c)) if "\udc80" <= c <= "\udcff" else c for c in name)
