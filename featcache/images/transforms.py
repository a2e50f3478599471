"""Resize and crop as published with a network's weights (implementation ``pillow/1``).

The arithmetic is that of torchvision's ``Resize`` and ``CenterCrop`` on PIL images, which timm uses too,
to the integer: one pixel's shift of the crop lowers the cosine of the vectors to 0.945.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from featcache.errors import UnusableImageError
from featcache.recipe import StandardTransform

MAX_RESIZED = 64 << 20
"""Pixels of the whole resized picture beyond which a very wide or tall image is refused."""

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}


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

        Raises:
            UnusableImageError: the image is so wide or tall that resizing it would take too much memory.
        """
        width, height = self._resized(*image.size)
        if width * height > MAX_RESIZED:
            raise UnusableImageError(
                f"its sides ({image.size[0]} × {image.size[1]} pixels) differ too much to be resized"
            )
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
