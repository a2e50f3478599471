"""One image as a source lists it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

if TYPE_CHECKING:
    from PIL.Image import Image

EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"}
)
"""File name endings, in lower case, by which an image is recognised in a folder."""


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
