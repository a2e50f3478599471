"""What people give as images, as a list of single images: one rule for every function that takes some."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from featcache.core.arguments import check_path, described
from featcache.core.errors import UsageError

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_KINDS = "a path, a PIL image or a NumPy array"


def image_list(images: Any) -> list[Any]:
    """One image, or several in whatever holds them.

    Args:
        images: a path, a PIL image or an array of one image; or a list, tuple, series, iterator or array (n,) of these;
            or an array (n, h, w, c), which is n images.

    Returns:
        The images: text, `Path`, PIL images and arrays.

    Raises:
        UsageError: there are no images in it; the message names what was given.

    Example:
        >>> image_list("a.png"), image_list(np.array(["a.png", "b.png"]))
        (['a.png'], ['a.png', 'b.png'])
    """
    from PIL import Image as pil

    if isinstance(images, (str, os.PathLike, pil.Image)):
        return [one_image(images, 0)]
    if isinstance(images, np.ndarray) and images.dtype.kind in "biuf" and images.ndim in (2, 3):
        return [images]
    if hasattr(images, "columns") or isinstance(images, dict):
        raise UsageError(
            f"The images are {described(images)}, which is a table. Give one column of it, such as table['path']."
        )
    if isinstance(images, (bytes, bytearray)) or hasattr(images, "read") or not _is_iterable(images):
        raise UsageError(f"Images are {_KINDS}, or a list of these, not {_named(images)}.")
    if isinstance(images, np.ndarray) and images.ndim not in (1, 4):
        raise UsageError(
            f"An array of images has shape (n,) with paths or images, or (n, h, w, c), not {images.shape}."
        )
    return [one_image(image, place) for place, image in enumerate(images)]


def one_image(image: Any, place: int) -> Any:
    """One image as it is; a path of another kind as a `Path`.

    Args:
        image: what was given.
        place: its place in the list, for the message.

    Raises:
        UsageError: it is no image.
    """
    from PIL import Image as pil

    if isinstance(image, (str, os.PathLike)):
        path = os.fspath(image)
        if not isinstance(path, str):
            raise UsageError(f"Image {place} is the path {path!r}, which is bytes. Give os.fsdecode(path).")
        check_path(f"Image {place}", path)
        if _ADDRESS.match(path) and not os.path.exists(path):
            raise UsageError(f"{path} is an address on the net. Download the image first, and give the file.")
        return image if isinstance(image, (str, Path)) else Path(path)
    if isinstance(image, pil.Image) or (isinstance(image, np.ndarray) and image.ndim):
        return image
    raise UsageError(f"Image {place} is {_named(image)}. An image is {_KINDS}.")


def _named(image: Any) -> str:
    if isinstance(image, (bytes, bytearray)):
        return f"{type(image).__name__} (PIL.Image.open(io.BytesIO(data)) makes an image of them)"
    if hasattr(image, "read"):
        return f"an open file of type {type(image).__name__} (PIL.Image.open reads it)"
    return f"of type {type(image).__name__}" if image is None else described(image)


def _is_iterable(images: Any) -> bool:
    return hasattr(images, "__iter__") and not isinstance(images, type)
