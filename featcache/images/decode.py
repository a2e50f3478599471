"""From bytes to RGB pixels, the same for every backbone (decoder ``pillow/1``).

EXIF orientation is applied, transparency is laid on white, 16-bit samples are scaled to 8, of an
animation the first frame is taken. What has no defined reading as RGB is refused, never guessed.
"""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from featcache.errors import UnusableImageError, UsageError

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM")
MAX_PIXELS = 178_956_970
"""Twice Pillow's own warning threshold: a quarter of a gigabyte of RGB, beyond which Pillow refuses too."""

# Damaged metadata and large sizes are dealt with here, image by image; Pillow would also print them.
warnings.filterwarnings("ignore", module=r"PIL\.")

_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")


def decode_rgb(data: bytes) -> Image.Image:
    """Decode one image file's bytes.

    Args:
        data: the bytes of a JPEG, PNG, GIF, WebP, BMP, TIFF or PPM file.

    Returns:
        An RGB image, loaded and upright.

    Raises:
        UnusableImageError: the bytes are no such image, are cut off, or have no reading as RGB.
        UsageError: Pillow was told to accept files that are cut off.
    """
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise UsageError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set in this process, so images that are cut off would "
            "be filled up with grey and pass for whole ones. Set it to False."
        )
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        _check_size(image)
        image.load()
        return rgb_from(image)
    except UnusableImageError:
        raise
    except UnidentifiedImageError as error:
        raise UnusableImageError("it is not an image that can be read (JPEG, PNG, GIF, WebP, BMP, TIFF)") from error
    except Image.DecompressionBombError as error:
        raise UnusableImageError(f"it has more than {MAX_PIXELS:,} pixels") from error
    except Exception as error:  # decoders raise nearly anything on damaged data
        text = str(error) or type(error).__name__
        cut = "truncated" in text or isinstance(error, EOFError)
        raise UnusableImageError("the file is cut off" if cut else f"it cannot be decoded: {text}") from error


def rgb_from(image: Image.Image) -> Image.Image:
    """The same reading for an image that is open already.

    Args:
        image: any PIL image.

    Returns:
        An upright RGB image.

    Raises:
        UnusableImageError: its pixels have no reading as RGB.
    """
    _check_size(image)
    # Some versions of Pillow open a 16-bit PNG as 32-bit integers.
    sixteen_bit = image.mode in _SIXTEEN_BIT or (image.mode == "I" and image.format == "PNG")
    image = _upright(image)
    if sixteen_bit:
        levels = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((levels * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise UnusableImageError(f"its pixels (mode {image.mode}) have no defined range")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        flat = image.convert("RGBA")
        white = Image.new("RGBA", flat.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, flat).convert("RGB")
    return image.convert("RGB")


def rgb_from_array(array: np.ndarray) -> Image.Image:
    """The same reading for an array.

    Args:
        array: (h, w) or (h, w, 1) gray, (h, w, 3) RGB or (h, w, 4) RGBA, of uint8, or of uint16, which
            is scaled to 8 bits.

    Raises:
        UsageError: another shape or dtype.
    """
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    fits = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if not fits or array.dtype not in (np.uint8, np.uint16) or 0 in array.shape:
        raise UsageError(
            "An image array has shape (h, w), (h, w, 1), (h, w, 3) or (h, w, 4) and dtype uint8 or uint16, "
            f"not {array.shape} and {array.dtype}."
        )
    if array.dtype == np.uint16:
        array = ((array.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    return rgb_from(Image.fromarray(np.ascontiguousarray(array)))


def _check_size(image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise UnusableImageError(f"it has {width} × {height} pixels, more than {MAX_PIXELS:,}")
    if not width or not height:
        raise UnusableImageError("it has no pixels")


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except UnusableImageError:
        raise
    except Exception:  # damaged EXIF data say nothing of the orientation; the pixels are sound
        return image
