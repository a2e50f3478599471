"""One image as a source lists it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"}
)
"""File name endings, in lower case, by which an image is recognised in a folder."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One image of a source."""

    uri: str
    """Relative to the source's root, with ``/`` between the parts."""
    path: Path
    """Where its bytes are."""
    label: str | None
    split: str | None
    group: str | None
