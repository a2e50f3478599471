"""Resize and crop as published with a network's weights (implementation ``pillow/1``).

The arithmetic is that of torchvision's ``Resize`` and ``CenterCrop`` on PIL images, which timm uses too,
to the integer: one pixel's shift of the crop lowers the cosine of the vectors to 0.945.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from featcache.recipe import StandardTransform

MAX_RESIZED = 64 << 20
"""Pixels of the whole resized picture beyond which, for a very wide or tall image, only the crop is computed."""

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}

_REACH = 3
"""Pixels to each side that a filter looks at, at most (Lanczos); times the scale where it makes smaller."""

_STAYS_LONG = 1024
"""More of a long image than the filters need. Pillow tells by the sizes it is given whether to resize the rows or
the columns first, which differs by up to 20 levels: a long image that is made smaller must stay a long one."""


class PixelTransform:
    """Resize and centre crop; normalisation is left to the network's runtime.

    Args:
        transform: what was published.

    Raises:
        ValueError: an interpolation or implementation that this version does not have.
    """

    def __init__(self, transform: StandardTransform) -> None:
        if transform.implementation != "pillow/1" or transform.interpolation not in _FILTERS:
            raise ValueError(f"no such way to resize: {transform.implementation}, {transform.interpolation}")
        self.transform = transform
        self._filter = _FILTERS[transform.interpolation]

    def __call__(self, image: Image.Image) -> np.ndarray:
        """Make the network's picture.

        Args:
            image: an RGB image.

        Returns:
            (h, w, 3) uint8, of the crop's size.
        """
        width, height = self._resized(*image.size)
        if width * height > MAX_RESIZED:
            return np.array(_crop_of_resized(image, (width, height), self.transform.crop, self._filter))
        if (width, height) != image.size:
            image = image.resize((width, height), self._filter)
        return np.array(_centre_crop(image, *self.transform.crop))

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        wanted = self.transform.resize
        if len(wanted) == 2:
            return wanted[1], wanted[0]
        (side,) = wanted
        if width <= height:
            return side, int(side * height / width)
        return int(side * width / height), side


def _centre_crop(image: Image.Image, crop_height: int, crop_width: int) -> Image.Image:
    width, height = image.size
    if crop_width > width or crop_height > height:
        left = (crop_width - width) // 2 if crop_width > width else 0
        top = (crop_height - height) // 2 if crop_height > height else 0
        padded = Image.new("RGB", (max(width, crop_width), max(height, crop_height)))
        padded.paste(image, (left, top))
        image, (width, height) = padded, padded.size
    # Python's round goes to even at a half, as in the reference.
    top, left = round((height - crop_height) / 2.0), round((width - crop_width) / 2.0)
    return image.crop((left, top, left + crop_width, top + crop_height))


def _crop_of_resized(
    image: Image.Image, size: tuple[int, int], crop: tuple[int, int], method: Image.Resampling
) -> Image.Image:
    """`_centre_crop` of the image resized to *size* (w, h), of which no more than the crop is ever computed.

    Equal to a grey level, but for ``nearest`` and ``box`` where a source pixel's border falls on the middle of
    a resized one: rounding decides to which side.
    """
    across, down = _Span(image.width, size[0], crop[1]), _Span(image.height, size[1], crop[0])
    (left, right), (top, bottom) = across.needed(), down.needed()
    # Pillow takes the box in single precision, too coarse for places far from the corner: so they are moved there.
    near = image.crop((left, top, right, bottom))
    (x0, x1), (y0, y1) = across.box(left, right), down.box(top, bottom)
    part = near.resize((across.length, down.length), method, box=(x0, y0, x1, y1))
    if part.size == (crop[1], crop[0]):
        return part
    padded = Image.new("RGB", (crop[1], crop[0]))
    padded.paste(part, (across.place, down.place))
    return padded


class _Span:
    """One axis: *length* resized pixels from *start* on are seen in the crop, from its pixel *place* on.

    Args:
        side: the image's pixels.
        resized: the pixels of the whole resized picture.
        crop: the pixels of the crop, which may be more.
    """

    def __init__(self, side: int, resized: int, crop: int) -> None:
        self._side, self._scale = side, side / resized
        self.start = 0 if crop > resized else round((resized - crop) / 2.0)
        self.place = (crop - resized) // 2 if crop > resized else 0
        self.length = min(crop, resized)

    def needed(self) -> tuple[int, int]:
        """The image's pixels, from and to, that the span is made of, and some more."""
        margin = _REACH * self._scale + _STAYS_LONG if self._scale > 1 else _REACH + 1
        start, end = self.start * self._scale, (self.start + self.length) * self._scale
        return max(0, math.floor(start - margin)), min(self._side, math.ceil(end + margin))

    def box(self, first: int, last: int) -> tuple[float, float]:
        """Where the span begins and ends in the image's pixels *first* to *last*, counted from there."""
        start, end = self.start * self._scale - first, (self.start + self.length) * self._scale - first
        return max(0.0, start), min(float(last - first), end)
