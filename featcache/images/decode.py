"""Image files and open images to upright RGB pixels, the same for every backbone.

The decoder ``simplejpeg/1`` reads gray and color JPEG files with libjpeg-turbo: the pixels of Pillow in half the time,
and of large photographs fewer (`reduction`). Only what it reads without a warning is taken from it; all else (other
formats, CMYK, damaged files) is left to Pillow, so that both decoders refuse the same files for the same reasons. The
older ``pillow/1`` reads all with Pillow.

EXIF orientation is applied, transparency is laid on white, 16-bit samples are scaled to 8, of an animation the first
frame is taken. What has no defined reading as RGB is refused, never guessed. 16-bit gray is rounded to the nearest of
256 levels; 16-bit color comes from Pillow as 8 bits, for PNG and TIFF the upper byte: at most one level from the
nearest. What the file says of its samples beyond that is in `featcache.images.samples`.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import simplejpeg
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from featcache.core.errors import ImageMemoryError, UnusableImageError, UsageError
from featcache.core.progress import counted
from featcache.images.formats import READ, is_heic, opened_image
from featcache.images.samples import SIXTEEN_BITS, Samples, eight_bits, samples_of, transparent_at_8_bits

DECODERS = ("simplejpeg/1", "pillow/1")
"""The names in a recipe, the one for new recipes first."""

SCALED = "dct/1"
"""The name of `reduction` in a recipe."""

REDUCTIONS = (8, 4, 2)
"""Factors by which libjpeg downscales; those between are slower and gain little."""

MARGIN = 2
"""A reduced image keeps this many times the pixels of the resized one on each side; see `reduction`."""

NO_IMAGE = "it is not an image that can be read (JPEG, PNG, GIF, WebP, AVIF, JPEG 2000, TIFF, BMP, …)"
MAX_PIXELS = 178_956_970
"""Twice Pillow's own warning threshold: a quarter of a gigabyte of RGB, beyond which Pillow refuses too."""

# Damaged metadata and large sizes are handled here per image; Pillow would print warnings too.
warnings.filterwarnings("ignore", module=r"PIL\.")

_NO_MEMORY = "there is not enough memory to decode it"
_TILE_PIXELS = 1 << 20

_NARROW = "narrow 16-bit samples"
"""Key in the ``info`` of a decoded image, see `Decoded.is_narrow`."""

_UNUSED_ALPHA = ("BMP", "DIB", "TGA", "ICO", "DDS")
"""Formats whose files have a fourth byte that is often not used: where it is 0 everywhere the image is opaque."""

_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")

_TO_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_LYING = (5, 6, 7, 8)
_FROM_RIGHT = (2, 3, 6, 7)
"""Where the upright image's left is the last column of the file, or its last row; likewise its top below."""
_FROM_BELOW = (3, 4, 7, 8)

_JPEG = ("JPEG", "MPO")


@dataclass(frozen=True, slots=True)
class Decoded:
    """A decoded image, possibly downscaled.

    Attributes:
        image: RGB, loaded and upright.
        size: width and height of the full image.
        box: left, top, right and bottom of the full image within *image*, in pixels, with fractions: the last pixels of
            a downscaled image can reach beyond the border.
    """

    image: Image.Image
    size: tuple[int, int]
    box: tuple[float, float, float, float]

    @property
    def is_narrow(self) -> bool:
        """Whether its 16-bit samples fill no more than a sixteenth of their range, and the file does not say why."""
        return _NARROW in self.image.info

    @classmethod
    def whole(cls, image: Image.Image) -> Decoded:
        """An RGB image as it is."""
        return cls(image, image.size, (0.0, 0.0, float(image.width), float(image.height)))


def narrow_note(count: int) -> str:
    """What to tell of *count* images that are `Decoded.is_narrow`."""
    return (
        f"{counted(count, 'images')} use no more than 1/16 of the 16-bit range, so the network sees them nearly "
        "black. If their samples have fewer bits, let the files say so (PNG: sBIT; TIFF: BitsPerSample or "
        "MaxSampleValue, 4095 for 12 bits), or save them at 8 bits."
    )


def decode_rgb(data: bytes, decoder: str = DECODERS[0]) -> Image.Image:
    """Decode one image file's bytes.

    Args:
        data: the bytes of a JPEG, PNG, GIF, WebP, BMP, TIFF or PPM file.
        decoder: one of `DECODERS`.

    Returns:
        An RGB image, loaded and upright.

    Raises:
        UnusableImageError: the bytes are no such image, are cut off, or have no reading as RGB.
        ImageMemoryError: there is not enough memory to decode it.
        UsageError: Pillow is set to accept truncated files, or to refuse images of a size that is read here.
    """
    return decode(data, decoder).image


def decode(
    data: bytes, decoder: str = DECODERS[0], resized: Callable[[int, int], tuple[int, int]] | None = None
) -> Decoded:
    """As `decode_rgb`; with *resized* the image may be downscaled (`reduction`).

    Args:
        data: as for `decode_rgb`.
        decoder: one of `DECODERS`; only ``simplejpeg/1`` downscales.
        resized: maps the image's width and height to those it will be resized to.

    Raises:
        UnusableImageError, ImageMemoryError, UsageError: as for `decode_rgb`.
    """
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise UsageError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set in this process, so truncated images would be filled "
            "with gray and pass for whole ones. Set it to False."
        )
    with _errors_of_pillow():
        if decoder == "simplejpeg/1" and data.startswith(b"\xff\xd8"):
            found = _decoded_jpeg(data, resized)
            if found is not None:
                return found
        return Decoded.whole(rgb_from(opened_image(data)))


def _decoded_jpeg(data: bytes, resized: Callable[[int, int], tuple[int, int]] | None) -> Decoded | None:
    """Decode with simplejpeg; None if Pillow has to decide."""
    # Pillow reads no more than the header here.
    header = Image.open(io.BytesIO(data), formats=READ)
    if header.format not in _JPEG or header.mode not in ("L", "RGB"):
        return None
    _check_size(header)
    size, orientation = header.size, _orientation(header)
    lying = orientation in _LYING
    upright = (size[1], size[0]) if lying else size
    by = 1
    if resized is not None:
        wanted = resized(*upright)
        by = reduction(size, (wanted[1], wanted[0]) if lying else wanted)
    image = decoded(data, size, by)
    if image is None:
        return None
    over = (image.width - size[0] / by, image.height - size[1] / by)  # right and bottom, as the file has them
    method = _TO_UPRIGHT.get(orientation)
    if method is not None:
        image = image.transpose(method)
    if lying:
        over = (over[1], over[0])
    left = over[0] if orientation in _FROM_RIGHT else 0.0
    top = over[1] if orientation in _FROM_BELOW else 0.0
    return Decoded(image, upright, (left, top, left + upright[0] / by, top + upright[1] / by))


def reduction(size: tuple[int, int], resized: tuple[int, int]) -> int:
    """The factor by which a photograph can be downscaled while it is decoded.

    The mean of 2 × 2, 4 × 4 or 8 × 8 pixels follows from the lowest coefficients of the cosine transform alone, so the
    others are never transformed back. The resampling that follows does the rest.

    Args:
        size: width and height in the file.
        resized: width and height that the transform gives the whole image.

    Returns:
        8, 4 or 2 if `MARGIN` times the resized image is left on each side, else 1.
    """
    for by in REDUCTIONS:
        if all(side >= by * MARGIN * wanted for side, wanted in zip(size, resized, strict=True)):
            return by
    return 1


def decoded(data: bytes, size: tuple[int, int], by: int = 1) -> Image.Image | None:
    """Decode a JPEG file with libjpeg-turbo, its orientation not applied.

    Args:
        data: the bytes of a gray, YCbCr or RGB JPEG file; of several images in it the first is taken.
        size: its width and height, read and checked before.
        by: downscaling factor, see `reduction`.

    Returns:
        An RGB image, each side that of *size* divided by *by* and rounded up; None if the data are not wholly valid.

    Raises:
        MemoryError: there is not enough of it.
    """
    width, height = (math.ceil(side / by) for side in size)
    try:
        found = simplejpeg.decode_jpeg_header(data)
        if found[:2] != (size[1], size[0]):
            return None
        # Four bytes per pixel as in Pillow, so that the array serves as an image without a copy.
        pixels: np.ndarray = simplejpeg.decode_jpeg(
            data, "RGBX", min_height=height if by > 1 else 0, min_width=width if by > 1 else 0
        )
    except ValueError:
        return None
    if pixels.shape[:2] != (height, width):
        return None
    return Image.frombuffer("RGBX", (width, height), pixels, "raw", "RGBX", 0, 1).convert("RGB")


def is_no_image(path: str) -> bool:
    """Whether a file does not even begin like an image; `decode_rgb` finds all other faults."""
    try:
        Image.open(path, formats=READ).close()
    except UnidentifiedImageError:
        with open(path, "rb") as file:
            return not is_heic(file.read(12))
    except Exception:  # decoders raise nearly anything on damaged data
        return False
    return False


def rgb_from(image: Image.Image) -> Image.Image:
    """Convert an open image to upright RGB, in the same way as a file.

    Args:
        image: any PIL image.

    Returns:
        A new RGB image, upright and without metadata, so that nothing downstream turns it again.

    Raises:
        UnusableImageError: it cannot be loaded, or its pixels have no reading as RGB.
        UsageError: as for `decode_rgb`.
    """
    _check_size(image)
    with _errors_of_pillow():
        samples = samples_of(image)
        image.load()
        _check_size(image)  # some formats hold another one, whose size is known only now
        method = _TO_UPRIGHT.get(_orientation(image))
        rgb, is_narrow = _flat(image, samples)
        del image  # where nobody else holds it, its memory is free before the image is turned
        if method is not None:
            rgb = rgb.transpose(method)
    rgb.info = {_NARROW: True} if is_narrow else {}
    return rgb


def _flat(image: Image.Image, samples: Samples) -> tuple[Image.Image, bool]:
    """The pixels as RGB, as they lie in the file, and whether they are narrow, see `Decoded.is_narrow`."""
    # 32-bit integers are 16-bit samples in a PGM and, in some versions of Pillow, in a PNG.
    if image.mode in _SIXTEEN_BIT or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return _deep_gray(image, samples)
    if samples.low is not None and image.mode == "RGB":
        return _deep_color(image, samples, samples.low)
    if image.mode in ("I", "F"):
        raise UnusableImageError(f"its pixels (mode {image.mode}) have no defined range")
    is_narrow = samples.is_deep and 0 < _brightest(image) < 16
    if image.mode == "RGBA" and image.format in _UNUSED_ALPHA and not image.getchannel("A").getbbox():
        return image.convert("RGB"), is_narrow
    if image.mode in ("RGBA", "LA", "La", "PA", "RGBa") or "transparency" in image.info:
        clear = transparent_at_8_bits(samples.depth, image.info.get("transparency"))
        return _by_tiles(image, lambda tile: _on_white(tile, clear)), is_narrow
    return image.convert("RGB"), is_narrow


def _brightest(image: Image.Image) -> int:
    """The largest sample of gray or color; transparency does not count."""
    bands = [image.getchannel(band) for band in image.getbands() if band not in "Aa"]
    return max(int(np.asarray(band).max()) for band in bands)


def _deep_gray(image: Image.Image, samples: Samples) -> tuple[Image.Image, bool]:
    clear = image.info.get("transparency")
    largest, is_narrow = samples.range_for(lambda: (np.asarray(tile) for _, tile in _tiles(image)))

    def rgb(tile: Image.Image) -> Image.Image:
        levels = np.asarray(tile)
        gray = eight_bits(levels, largest)
        if clear is not None:
            gray[levels == clear] = 255
        return Image.fromarray(gray).convert("RGB")

    return _by_tiles(image, rgb), is_narrow


def _deep_color(image: Image.Image, samples: Samples, low: np.ndarray) -> tuple[Image.Image, bool]:
    levels = np.asarray(image).astype(np.uint16) << 8 | low
    largest, is_narrow = samples.range_for(lambda: [levels])
    # At the full range the upper byte, as of color without a transparent sample.
    color = np.array(image) if largest == SIXTEEN_BITS else eight_bits(levels, largest)
    clear = image.info.get("transparency")
    if clear is not None:
        color[(levels == np.array(clear, np.uint16)).all(axis=2)] = 255
    return Image.fromarray(color), is_narrow


def _tiles(image: Image.Image) -> Iterator[tuple[tuple[int, int], Image.Image]]:
    """Parts of an image with the place of each: a copy of the whole image takes too much memory."""
    width, height = image.size
    across = min(width, _TILE_PIXELS)
    down = max(1, _TILE_PIXELS // across)
    for top in range(0, height, down):
        for left in range(0, width, across):
            yield (left, top), image.crop((left, top, min(left + across, width), min(top + down, height)))


def _by_tiles(image: Image.Image, rgb: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Apply *rgb* tile by tile."""
    whole = Image.new("RGB", image.size)
    for place, tile in _tiles(image):
        whole.paste(rgb(tile), place)
    return whole


def _on_white(tile: Image.Image, clear: Any) -> Image.Image:
    if clear is not None:
        tile.info["transparency"] = clear
    if tile.mode == "La":
        tile = tile.convert("LA")
    flat = tile.convert("RGBA")
    white = Image.new("RGBA", flat.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, flat).convert("RGB")


def rgb_from_array(array: np.ndarray) -> Image.Image:
    """Convert an array to RGB, in the same way as a file.

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
    is_narrow = False
    if array.dtype == np.uint16:
        largest, is_narrow = Samples().range_for(lambda: [array])
        array = eight_bits(array, largest)
    rgb = rgb_from(Image.fromarray(np.ascontiguousarray(array)))
    if is_narrow:
        rgb.info[_NARROW] = True
    return rgb


def _check_size(image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise UnusableImageError(f"it has {width} × {height} pixels, more than {MAX_PIXELS:,}")
    if not width or not height:
        raise UnusableImageError("it has no pixels")


def _orientation(image: Image.Image) -> int:
    """EXIF's number, 1 for upright; 1 also where the EXIF data are damaged: the pixels are sound.

    `ImageOps.exif_transpose` also writes the EXIF data anew, and fails if any other field is damaged.
    """
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        return 1


@contextmanager
def _errors_of_pillow() -> Iterator[None]:
    try:
        yield
    except (UnusableImageError, UsageError):
        raise
    except UnidentifiedImageError as error:
        raise UnusableImageError(NO_IMAGE) from error
    except Image.DecompressionBombError as error:
        # Pillow refuses twice this number: by default the very limit that holds here.
        limit = Image.MAX_IMAGE_PIXELS
        if limit is not None and 2 * limit < MAX_PIXELS:
            raise UsageError(
                f"PIL.Image.MAX_IMAGE_PIXELS is {limit:,} in this process, which refuses valid images. "
                f"Set it to {MAX_PIXELS // 2:,} (Pillow's default), or more, or None."
            ) from error
        raise UnusableImageError(f"it has more than {MAX_PIXELS:,} pixels") from error
    except MemoryError as error:
        raise ImageMemoryError(_NO_MEMORY) from error
    except Exception as error:  # decoders raise nearly anything on damaged data
        text = str(error) or type(error).__name__
        if text.startswith("out of memory"):  # so Pillow says it of its decoders in C
            raise ImageMemoryError(_NO_MEMORY) from error
        cut = "truncated" in text or isinstance(error, EOFError)
        raise UnusableImageError("the file is cut off" if cut else f"it cannot be decoded: {text}") from error
