"""What the samples of a file mean where Pillow does not say it: the range they fill, and the one that is transparent.

Pillow gives the transparent sample of a PNG as the file has it, but the pixels scaled to 8 bits, and of 16-bit color
the upper byte alone; it passes over ``sBIT`` in a PNG and ``MaxSampleValue`` in a TIFF. So images of 12-bit cameras
would be nearly black, and transparency at less than 8 or at 16 bits would not be seen.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from PIL import Image

SIXTEEN_BITS = 65535
NARROW = 4095
"""Samples of 16 bits of which none is above this, a sixteenth of the range, are probably of 12 bits or fewer."""

_KEPT = "_featcache_samples"
_TIFF_MAX_SAMPLE, _TIFF_BITS = 281, 258
_PNG_DEPTHS = {"1": 1, "L;2": 2, "L;4": 4, "L": 8, "I;16B": 16, "RGB": 8, "RGB;16B": 16}
"""By Pillow's name of the layout: bits per sample."""


@dataclass(frozen=True, slots=True)
class Samples:
    """The samples of a file.

    Attributes:
        depth: bits per sample of a PNG that can have a transparent one; None elsewhere.
        largest: the largest sample that the file says it has; `SIXTEEN_BITS` where it says nothing.
        is_scaled: whether by the standard the samples were scaled from `largest` to 16 bits, as those of a PNG with
            ``sBIT``. Many programs do not scale them.
        low: of 16-bit RGB the lower bytes, (h, w, 3) uint8; None where they are not needed.
        is_deep: whether the file has 16 bits per sample.
    """

    depth: int | None = None
    largest: int = SIXTEEN_BITS
    low: np.ndarray | None = None
    is_deep: bool = False
    is_scaled: bool = False

    def range_for(self, levels: Callable[[], Iterable[np.ndarray]]) -> tuple[int, bool]:
        """The largest sample that there can be, and whether the samples are `NARROW` without the file saying so.

        A range that the brightest sample exceeds is not believed, nor one that all samples may have been scaled from:
        so a dark image is read as the bright ones beside it are.

        Args:
            levels: gives the samples of the image, part by part, as often as it is called.
        """
        brightest = max(int(part.max()) for part in levels())
        is_told = self.largest < SIXTEEN_BITS
        if is_told and brightest <= self.largest and not (self.is_scaled and all(map(self._may_be_scaled, levels()))):
            return self.largest, False
        return SIXTEEN_BITS, 0 < brightest <= NARROW and not (is_told and self.is_scaled)

    def _may_be_scaled(self, levels: np.ndarray) -> bool:
        """Whether each sample is one of fewer bits that was shifted up, or scaled and rounded, to 16."""
        levels = levels.astype(np.uint32)
        shift = 16 - self.largest.bit_length()
        before = levels >> shift
        scaled = (before * SIXTEEN_BITS + self.largest // 2) // self.largest
        return bool((levels == before << shift).all() or (levels == scaled).all())


def samples_of(image: Image.Image) -> Samples:
    """Find out before the image is loaded; what was found stays with the image, as loading closes its file."""
    kept: Samples | None = getattr(image, _KEPT, None)
    if kept is None:
        kept = _found(image)
        setattr(image, _KEPT, kept)
    return kept


def _found(image: Image.Image) -> Samples:
    layout = _layout(image)
    is_deep = ";16" in layout or ";12" in layout or image.mode.startswith("I;16")
    if image.format == "TIFF":
        return Samples(largest=_tiff_largest(image), is_deep=is_deep)
    file = getattr(image, "fp", None)
    if image.format != "PNG" or file is None:
        return Samples(is_deep=is_deep)
    depth = _PNG_DEPTHS.get(layout)
    if not is_deep:
        return Samples(depth)
    largest = _png_largest(file)
    needs_low = image.mode == "RGB" and (largest < SIXTEEN_BITS or "transparency" in image.info)
    return Samples(depth, largest, _lower_bytes(file) if needs_low else None, is_deep, is_scaled=True)


def _layout(image: Image.Image) -> str:
    """Pillow's name of how the samples lie in the file; empty once the image is loaded."""
    tiles: Any = getattr(image, "tile", None)
    if not tiles:
        return ""
    given = tiles[0][3]
    return str(given[0] if isinstance(given, tuple) and given else given)


def _png_largest(file: IO[bytes]) -> int:
    """From ``sBIT``, the bits that the samples had before they were stored in 16."""
    before = file.tell()
    try:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length, name = struct.unpack(">I4s", head)
            if name == b"sBIT" and 1 <= length <= 4:
                bits = max(file.read(length))
                return (1 << bits) - 1 if 8 < bits < 16 else SIXTEEN_BITS
            if name in (b"IDAT", b"IEND"):
                break
            file.seek(length + 4, io.SEEK_CUR)
    finally:
        file.seek(before)
    return SIXTEEN_BITS


def _tiff_largest(image: Image.Image) -> int:
    """From ``BitsPerSample`` or ``MaxSampleValue``.

    The latter counts only where it ends a whole number of bits: many programs write the brightest pixel there.
    """
    tags: Any = getattr(image, "tag_v2", {})
    bits, largest = (_first(tags.get(tag)) for tag in (_TIFF_BITS, _TIFF_MAX_SAMPLE))
    if bits is not None and 8 < bits < 16:
        return int((1 << bits) - 1)
    if largest is not None and 255 < largest < SIXTEEN_BITS and largest & (largest + 1) == 0:
        return int(largest)
    return SIXTEEN_BITS


def _first(value: Any) -> int | None:
    if isinstance(value, tuple):
        value = value[0] if value else None
    return value if isinstance(value, int) else None


def _lower_bytes(file: IO[bytes]) -> np.ndarray:
    """The image decoded once more, with the second byte of each sample in place of the first."""
    before = file.tell()
    try:
        file.seek(0)
        with Image.open(io.BytesIO(file.read()), formats=("PNG",)) as again:
            # In a PNG the upper byte stands first, so for Pillow's other order the lower one is the upper.
            again.tile = [tile._replace(args="RGB;16L") for tile in again.tile]
            again.info.pop("transparency", None)
            return np.asarray(again)
    finally:
        file.seek(before)


def eight_bits(levels: np.ndarray, largest: int) -> np.ndarray:
    """Samples from 0 to *largest* as uint8 from 0 to 255, rounded to the nearest."""
    return ((levels.astype(np.uint32) * 255 + largest // 2) // largest).astype(np.uint8)


def transparent_at_8_bits(depth: int | None, transparent: Any) -> Any:
    """The transparent sample or color of a PNG of at most 8 bits, scaled as Pillow scales the pixels."""
    if depth is None or depth == 1 or depth > 8:  # Pillow scales that of one bit itself
        return transparent
    most = (1 << depth) - 1
    if isinstance(transparent, tuple):
        return tuple(value & most for value in transparent)
    return (transparent & most) * (255 // most) if isinstance(transparent, int) else transparent
