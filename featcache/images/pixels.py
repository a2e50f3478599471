"""The one door from whatever an image is given as to its upright RGB pixels.

Extraction, prediction, faces, fine-tuning and modules converted to torch all come through here, so the same image has
the same pixels at each.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featcache.core.errors import SourceError, UsageError
from featcache.images.decode import Decoded, rgb_from, rgb_from_array
from featcache.images.entry import Entry, read_image_file
from featcache.images.image_list import one_image

if TYPE_CHECKING:
    from PIL.Image import Image


def decoded_image(image: Image | np.ndarray | Decoded) -> Decoded:
    """An image in memory as upright RGB.

    Args:
        image: any PIL image, an array as for `rgb_from_array`, or what a decoder returned, which stays as it is.

    Raises:
        UnusableImageError: it cannot be loaded, or its pixels have no reading as RGB.
        UsageError: it is no image.
    """
    from PIL import Image as pil

    if isinstance(image, Decoded):
        return image
    if isinstance(image, pil.Image):
        return Decoded.whole(rgb_from(image))
    if isinstance(image, np.ndarray):
        return Decoded.whole(rgb_from_array(image))
    raise UsageError(f"An image is a path, a PIL image or a NumPy array, not {type(image).__name__}.")


def load_image(image: Any, decode: Callable[[bytes], Decoded], place: int = 0) -> Decoded:
    """An image given in any way as upright RGB.

    Args:
        image: a path, an `Entry`, or as for `decoded_image`.
        decode: reads a file's bytes, such as `Backbone.decode`.
        place: its index among those given, for messages.

    Raises:
        SourceError: the path does not exist.
        UnusableImageError, UsageError: as for `decoded_image`.
    """
    if isinstance(image, Entry):
        made = image.make_image
        return decode(image.read()[0]) if made is None else Decoded.whole(made())
    one: Any = one_image(image, place)
    if isinstance(one, str | Path):
        if not os.path.exists(one):
            raise SourceError(f"There is no image {one}.")
        return decode(read_image_file(Path(one))[0])
    return decoded_image(one)
