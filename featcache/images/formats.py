"""Which image formats are read, by which endings they are found, and what is said of the others.

All that Pillow opens is in `READ` or, with the reason, in `NOT_READ`; a test compares them with Pillow's own list.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from featcache.core.progress import counted

READ = (
    "JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "DIB", "PCX", "PSD", "QOI", "SGI", "SUN",
    "DDS", "ICO", "ICNS", "DCX", "TGA",
)  # fmt: skip
"""Pillow's names. TGA is the last to be tried, since its files have no signature."""

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
)
"""File name extensions, in lower case, by which images are recognized in a folder."""

OTHER_IMAGES = frozenset(
    [
        ".heic",
        ".heif",
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
)
"""Those of images in formats that are not read."""


def is_image_name(name: str) -> bool:
    """Whether a file is taken for an image by its name."""
    return os.path.splitext(name)[1].lower() in EXTENSIONS


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
        yield f"{said}. Convert them to JPEG or PNG to use them."


def unread_among(endings: Mapping[str, int]) -> str:
    """What follows a number of other files if images that are not read are among them."""
    return f", images in formats that are not read among them ({listed(endings)})" if endings else ""


def listed(endings: Mapping[str, int]) -> str:
    """The endings with their counts, for a person."""
    return ", ".join(f"{ending} {count:,}" for ending, count in sorted(endings.items()))
