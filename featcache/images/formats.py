"""Which image formats are read, by which endings they are found, and what is said of the others.

All that Pillow opens is in `READ` or, with the reason, in `NOT_READ`; a test compares them with Pillow's own list.
"""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING

from featcache.core.errors import UnusableImageError
from featcache.core.progress import counted

if TYPE_CHECKING:
    from PIL import Image

READ = (
    "JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "DIB", "PCX", "PSD", "QOI", "SGI", "SUN",
    "DDS", "ICO", "ICNS", "DCX", "TGA",
)  # fmt: skip
"""Pillow's names. TGA is the last to be tried, since its files have no signature."""

HEIC = "HEIF"
"""Pillow's name, once the package of the extra ``heic`` is registered there."""

READS_HEIC = find_spec("pi_heif") is not None
INSTALL_HEIC = "pip install 'featcache[heic]'"
_HEIC_ENDINGS = frozenset([".heic", ".heics", ".heif", ".heifs", ".hif"])
_HEIC_BRANDS = (
    b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1",
)  # fmt: skip

NOT_READ = {
    "it runs another program": ("EPS", "WMF"),
    "Pillow has no decoder of its own for it": ("BUFR", "GRIB", "HDF5"),
    "it is a film": ("FLI", "MPEG"),
    "its values have no defined range": ("FITS", "MCIDAS", "SPIDER"),
    "its files have no signature": ("IM", "IMT", "IPTC", "XBM", "XPM"),
    "it is rare among photographs": ("BLP", "CUR", "FTEX", "GBR", "MSP", "PCD", "PIXAR", "XVTHUMB"),
}
"""Formats that Pillow opens and featcache does not, by the reason."""

EXTENSIONS = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".mpo",
        ".png",
        ".apng",
        ".gif",
        ".webp",
        ".bmp",
        ".dib",
        ".tif",
        ".tiff",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
        ".avif",
        ".avifs",
        ".jp2",
        ".j2k",
        ".j2c",
        ".jpc",
        ".jpf",
        ".jpx",
        ".pcx",
        ".dcx",
        ".dds",
        ".ico",
        ".icns",
        ".psd",
        ".qoi",
        ".sgi",
        ".rgb",
        ".rgba",
        ".bw",
        ".ras",
        ".tga",
        ".icb",
        ".vda",
        ".vst",
    ]
) | (_HEIC_ENDINGS if READS_HEIC else frozenset())
"""File name extensions, in lower case, by which images are recognized in a folder."""

OTHER_IMAGES = frozenset(
    [
        ".jxl",
        ".svg",
        ".jxr",
        ".eps",
        ".ps",
        ".cur",
        ".pcd",
        ".pfm",
        ".blp",
        ".ftc",
        ".ftu",
        ".gbr",
        ".msp",
        ".palm",
        ".pxr",
        ".im",
        ".iim",
        ".exr",
        ".hdr",
        ".fits",
        ".fit",
        ".xbm",
        ".xpm",
        ".wmf",
        ".emf",
        ".dng",
        ".cr2",
        ".cr3",
        ".nef",
        ".arw",
        ".orf",
        ".rw2",
        ".raf",
        ".pef",
        ".srw",
        ".xcf",
        ".psb",
        ".ai",
    ]
) | (frozenset() if READS_HEIC else _HEIC_ENDINGS)
"""Those of images in formats that are not read."""


def is_image_name(name: str) -> bool:
    """Whether a file is taken for an image by its name."""
    return os.path.splitext(name)[1].lower() in EXTENSIONS


def is_heic(start: bytes) -> bool:
    """Whether a file that begins so may be HEIC. An AVIF file may begin so too, and is read by Pillow."""
    return start[4:8] == b"ftyp" and start[8:12] in _HEIC_BRANDS


def opened_image(data: bytes) -> Image.Image:
    """Open an image file's bytes with Pillow, which reads no more than the header.

    Raises:
        UnusableImageError: it is HEIC, and the extra is not installed.
        UnidentifiedImageError: it is no image that is read.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(io.BytesIO(data), formats=READ)
    except UnidentifiedImageError:
        if not is_heic(data[:12]):
            raise
    if not READS_HEIC:
        raise UnusableImageError(f"it is HEIC, which is read after {INSTALL_HEIC}")
    import pi_heif

    pi_heif.register_heif_opener()
    return Image.open(io.BytesIO(data), formats=[HEIC])


def versions() -> str:
    """What reads images, with versions: another release may read what this one refuses."""
    heic = f"; pi-heif {version('pi_heif')}" if READS_HEIC else ""
    return f"featcache {version('featcache')}; pillow {version('pillow')}{heic}"


def is_unread_name(name: str) -> bool:
    """Whether a file is, by its name, an image in a format that is not read."""
    return os.path.splitext(name)[1].lower() in OTHER_IMAGES


class Unread:
    """Counts the images that are not read, by ending and by class.

    Attributes:
        endings: how many of each ending, in lower case.
    """

    def __init__(self) -> None:
        self.endings: Counter[str] = Counter()
        self._of_class: dict[str | None, Counter[str]] = {}

    def add(self, name: str, label: str | None) -> None:
        """Note a file that is no image by its name, and the class in whose folder it lies."""
        if is_unread_name(name):
            ending = os.path.splitext(name)[1].lower()
            self.endings[ending] += 1
            self._of_class.setdefault(label, Counter())[ending] += 1

    def notes(self, labels: Iterable[str | None]) -> Iterator[str]:
        """What to tell: how many of each ending, and which classes have no images besides.

        Args:
            labels: the classes of the images that are read.
        """
        if not self.endings:
            return
        without = sorted({label for label in self._of_class if label is not None} - {*labels})
        said = f"{counted(self.endings.total(), 'images')} in formats that are not read ({listed(self.endings)})"
        if without:
            named = ", ".join(without[:5]) + (" …" if len(without) > 5 else "")
            said += f"; the class {named} has no other" if len(without) == 1 else f"; the classes {named} have no other"
        hint = f"; HEIC is read after {INSTALL_HEIC}" if _HEIC_ENDINGS & self.endings.keys() else ""
        yield f"{said}. Convert them to JPEG or PNG to use them{hint}."


def unread_among(endings: Mapping[str, int]) -> str:
    """What follows a number of other files if images that are not read are among them."""
    hint = f"; HEIC is read after {INSTALL_HEIC}" if _HEIC_ENDINGS & endings.keys() else ""
    return f", images in formats that are not read among them ({listed(endings)}{hint})" if endings else ""


def listed(endings: Mapping[str, int]) -> str:
    """The endings with their counts, for a person."""
    return ", ".join(f"{ending} {count:,}" for ending, count in sorted(endings.items()))
