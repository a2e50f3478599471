"""The input that a network gets, from the bytes of an image or from its pixels, by a recipe's pixel path."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from featcache.core.errors import UnusableImageError, UsageError
from featcache.core.recipe import PixelPath, StandardTransform
from featcache.images import decode as decoding
from featcache.images.pixels import decoded_image
from featcache.images.transforms import PixelTransform

if TYPE_CHECKING:
    from PIL.Image import Image

    from featcache.images.decode import Decoded


def decoded(data: bytes, pixels: PixelPath) -> Decoded:
    """An image file's bytes, decoded by the decoder of a pixel path, at a fraction of the size where it says so.

    Raises:
        UnusableImageError, ImageMemoryError, UsageError: as for `featcache.images.decode.decode_rgb`.
    """
    resized = None
    if pixels.scaled is not None and isinstance(pixels.transform, StandardTransform):
        resized = PixelTransform(pixels.transform).resized
    return decoding.decode(data, pixels.decoder, resized)


def made(image: Image | np.ndarray | Decoded, transform: StandardTransform | Callable[[Any], Any] | None) -> np.ndarray:
    """The input for one image.

    Args:
        image: as for `featcache.backbones.Backbone.prepare`.
        transform: a published one, or a callable.

    Returns:
        (h, w, 3) uint8 for a published transform, (3, h, w) float32 for a callable.

    Raises:
        UnusableImageError: as there.
    """
    upright = decoded_image(image)
    if isinstance(transform, StandardTransform):
        return PixelTransform(transform)(upright)
    assert transform is not None
    array = np.asarray(transform(upright.image), dtype=np.float32)
    if array.ndim != 3 or array.shape[0] != 3:
        raise UnusableImageError(f"the transform returned shape {array.shape}, not (3, height, width)")
    return array


def check(batch: np.ndarray, pixels: PixelPath) -> None:
    """Check that a batch is a stack of what `made` gives.

    Raises:
        UsageError: it is not.
    """
    fits = batch.ndim == 4 and batch.dtype.kind in "uf"
    if fits and isinstance(pixels.transform, StandardTransform):
        fits = batch.shape[1:] == (*pixels.transform.crop, 3)
    elif fits:
        fits = batch.shape[1] == 3
    if not fits:
        raise UsageError(
            f"A batch stacks what `prepare` gave for n images; this one has shape {batch.shape} and dtype "
            f"{batch.dtype}."
        )
