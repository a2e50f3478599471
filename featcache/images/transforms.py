"""Resize and crop as published with a network's weights.

The arithmetic is that of torchvision's ``Resize`` and ``CenterCrop`` on PIL images, which timm uses too,
to the integer: one pixel's shift of the crop lowers the cosine of the vectors to 0.945. ``pillow/1`` is equal to
theirs and computes the whole resized image; ``pillow/2`` computes the crop alone and agrees to two gray levels (on real
photographs, to one).
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from PIL import Image

from featcache.core.recipe import PixelPath, StandardTransform
from featcache.images.decode import DECODERS, SCALED, Decoded

IMPLEMENTATIONS = ("pillow/2", "pillow/1")
"""The names in a recipe, the one for new recipes first."""

PUBLISHED = "pillow/1"
"""The decoder and the resizing that are equal to those of timm and torchvision, to the last gray level."""

MAX_RESIZED = 64 << 20
"""Pixels of the whole resized image beyond which, for a very wide or tall image, only the crop is computed."""

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}

_JUMPING = ("nearest", "box")
"""If a source pixel's border falls on the middle of a resized one, rounding decides which neighbor these take, and it
decides differently for the crop alone."""

_REACH = 3
"""Most pixels to each side that a filter reads (Lanczos); times the scale when downscaling."""

_STAYS_LONG = 1024
"""More of a long image than the filters need. Pillow decides by the sizes whether to resize rows or columns first,
which differs by up to 20 levels: a long image must stay long when it is cropped first."""

_LONG_SIDE = 8192
_LONG_ASPECT = 50
"""Beyond these the part of the image that the crop needs is cut out first."""


def published(pixels: PixelPath) -> PixelPath:
    """The same pixel path, decoded and resized by `PUBLISHED`."""
    transform = pixels.transform
    if isinstance(transform, StandardTransform):
        transform = replace(transform, implementation=PUBLISHED)
    return replace(pixels, transform=transform, decoder=PUBLISHED)


class PixelTransform:
    """Resize and center crop; normalization is left to the network's runtime.

    Args:
        transform: as published with the weights.

    Raises:
        ValueError: an interpolation or implementation that this version does not have.
    """

    def __init__(self, transform: StandardTransform) -> None:
        if transform.implementation not in IMPLEMENTATIONS or transform.interpolation not in _FILTERS:
            raise ValueError(f"no such way to resize: {transform.implementation}, {transform.interpolation}")
        self.transform = transform
        self._filter = _FILTERS[transform.interpolation]
        self._alone = transform.implementation == "pillow/2" and transform.interpolation not in _JUMPING

    def __call__(self, image: Image.Image | Decoded) -> np.ndarray:
        """The network's input.

        Args:
            image: an RGB image, or a `Decoded` one.

        Returns:
            (h, w, 3) uint8, of the crop's size.
        """
        decoded = image if isinstance(image, Decoded) else Decoded.whole(image)
        width, height = self.resized(*decoded.size)
        if self._alone:
            return np.array(self._crop_alone(decoded, (width, height)))
        if width * height > MAX_RESIZED:
            return np.array(self._strip_alone(decoded, (width, height)))
        image = decoded.image
        if (width, height) != image.size:
            image = image.resize((width, height), self._filter, box=decoded.box)
        return np.array(_centre_crop(image, *self.transform.crop))

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of the whole resized image, from those of an image."""
        wanted = self.transform.resize
        if len(wanted) == 2:
            return wanted[1], wanted[0]
        (side,) = wanted
        if width <= height:
            return side, int(side * height / width)
        return int(side * width / height), side

    def _strip_alone(self, decoded: Decoded, resized: tuple[int, int]) -> Image.Image:
        """`_centre_crop` of the image *resized* to (w, h), computing only the strip across the long axis that holds it.

        Equal to a gray level, except for `_JUMPING` filters and those with negative lobes: along the short axis Pillow
        gets the very numbers that it has for the whole image, so sums that end in a half are rounded in the same way.
        """
        image, (left, top, right, bottom), crop = decoded.image, decoded.box, self.transform.crop
        rows_first = not _columns_first(image.size, resized)
        if resized[0] > resized[1]:
            span = _Span(image.width, left, right, resized[0], crop[1])
            # Pillow takes the box in single precision, too coarse far from the corner, so the image is cropped first.
            first, last = span.needed()
            image = image.crop((first, 0, last, image.height))
            left, right = span.box(first, last)
            size = (span.length, resized[1])
        else:
            span = _Span(image.height, top, bottom, resized[1], crop[0])
            first, last = span.needed()
            image = image.crop((0, first, image.width, last))
            top, bottom = span.box(first, last)
            size = (resized[0], span.length)
        if rows_first:
            image = image.resize((size[0], image.height), self._filter, box=(left, 0, right, image.height))
            image = image.resize(size, self._filter, box=(0, top, size[0], bottom))
        else:
            image = image.resize((image.width, size[1]), self._filter, box=(0, top, image.width, bottom))
            image = image.resize(size, self._filter, box=(left, 0, right, size[1]))
        return _centre_crop(image, *crop)

    def _crop_alone(self, decoded: Decoded, resized: tuple[int, int]) -> Image.Image:
        """`_centre_crop` of the image *resized* to (w, h), computing no more than the crop.

        Equal to two gray levels, except for `_JUMPING` filters.
        """
        image, (left, top, right, bottom), crop = decoded.image, decoded.box, self.transform.crop
        across = _Span(image.width, left, right, resized[0], crop[1])
        down = _Span(image.height, top, bottom, resized[1], crop[0])
        x, y = (0, image.width), (0, image.height)
        sides = sorted(image.size)
        if sides[1] > min(_LONG_SIDE, _LONG_ASPECT * sides[0]):
            # Pillow takes the box in single precision, too coarse far from the corner, so the image is cropped first.
            x, y = across.needed(), down.needed()
            image = image.crop((x[0], y[0], x[1], y[1]))
        (x0, x1), (y0, y1) = across.box(*x), down.box(*y)
        size = (across.length, down.length)
        rows_first = not _columns_first(decoded.image.size, resized)
        if _columns_first(image.size, size) != rows_first:
            part = image.resize(size, self._filter, box=(x0, y0, x1, y1))
        elif rows_first:
            part = image.resize((size[0], image.height), self._filter, box=(x0, 0, x1, image.height))
            part = part.resize(size, self._filter, box=(0, y0, size[0], y1))
        else:
            part = image.resize((image.width, size[1]), self._filter, box=(0, y0, image.width, y1))
            part = part.resize(size, self._filter, box=(x0, 0, x1, size[1]))
        if part.size == (crop[1], crop[0]):
            return part
        padded = Image.new("RGB", (crop[1], crop[0]))
        padded.paste(part, (across.place, down.place))
        return padded


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


def _columns_first(size: tuple[int, int], resized: tuple[int, int]) -> bool:
    """Whether Pillow (13.0) resizes the columns before the rows; found by experiment, the same for every filter.

    It rounds to 8 bits between the two, so noise differs by up to 60 levels: the crop alone must be computed in the
    order of the whole image. Older versions always begin with the rows, which gives other pixels under the same name,
    so featcache needs 13.0 or newer.

    Args:
        size: width and height of the image, whatever part of it is resized.
        resized: width and height of the result.
    """
    return size[1] - resized[1] > 2 * max(0, size[0] - resized[0])


class _Span:
    """One axis of a crop: *length* resized pixels, which begin at its pixel *place*.

    Args:
        side: pixels of the decoded image.
        first, last: where the image begins and ends among them.
        resized: pixels of the whole resized image.
        crop: pixels of the crop, which may be more.
    """

    def __init__(self, side: int, first: float, last: float, resized: int, crop: int) -> None:
        self._side, self._scale = side, (last - first) / resized
        start = 0 if crop > resized else round((resized - crop) / 2.0)
        self.place = (crop - resized) // 2 if crop > resized else 0
        self.length = min(crop, resized)
        self._ends = first + start * self._scale, first + (start + self.length) * self._scale

    def needed(self) -> tuple[int, int]:
        """The range of the image's pixels that the span is made of, and some more."""
        margin = _REACH * self._scale + _STAYS_LONG if self._scale > 1 else _REACH + 1
        return max(0, math.floor(self._ends[0] - margin)), min(self._side, math.ceil(self._ends[1] + margin))

    def box(self, first: int, last: int) -> tuple[float, float]:
        """Where the span begins and ends, counted from the image's pixel *first*; the range ends at *last*."""
        return max(0.0, self._ends[0] - first), min(float(last - first), self._ends[1] - first)


def with_size_of(own: PixelPath, other: PixelPath) -> PixelPath:
    """*own* with the sizes of *other*, where both are of one network: with equal interpolation, mean and std."""
    transform, theirs = own.transform, other.transform
    if isinstance(transform, StandardTransform) and isinstance(theirs, StandardTransform):
        sized = replace(transform, resize=theirs.resize, crop=theirs.crop)
        if replace(sized, implementation=theirs.implementation) == theirs:
            return replace(own, transform=sized)
    return own


def with_code_of(own: PixelPath, other: PixelPath) -> PixelPath:
    """*own* with the implementations that *other* names: decoder, resize and ``scaled``.

    Implementations that this version does not have are not taken over, and neither are sizes, mean and std.
    """
    transform, theirs = own.transform, other.transform
    if isinstance(transform, StandardTransform) and isinstance(theirs, StandardTransform):
        if theirs.implementation in IMPLEMENTATIONS:
            transform = replace(transform, implementation=theirs.implementation)
        if other.scaled in (None, SCALED):
            own = replace(own, scaled=other.scaled)
    decoder = other.decoder if other.decoder in DECODERS else own.decoder
    return replace(own, transform=transform, decoder=decoder)
