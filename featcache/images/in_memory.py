"""Images given one by one in Python, files or in memory, as a source.

Such a source is never scanned, so an image that is not given again is not taken to be removed.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featcache.core.errors import SourceError, UnusableImageError
from featcache.core.files import absolute
from featcache.core.names import MEMORY, PATHS
from featcache.images.entry import Entry, Source, as_text, file_sha256, pixels_sha256
from featcache.images.image_list import one_image
from featcache.images.pixels import decoded_image

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, slots=True)
class GivenImage:
    """One image that was given.

    Attributes:
        name: for messages: its path, or its index among those given.
        sha256: identifies it.
        source: the source it belongs to, ``paths`` or ``memory``.
        entry: its entry there.
    """

    name: str
    sha256: bytes
    source: str
    entry: Entry


class GivenImages(Source):
    """Some images of the source ``paths`` or ``memory``.

    Args:
        name: of the source.
        images: its images, each content once.
    """

    within = ()  # no folder was scanned

    def __init__(self, name: str, images: Sequence[GivenImage]) -> None:
        self.name, self._images = name, images
        self.root = os.path.abspath(os.sep) if name == PATHS else ""  # images in memory have none

    def entries(self) -> list[Entry]:
        """The images, sorted by URI."""
        return sorted((one.entry for one in self._images), key=lambda entry: entry.uri)


def given(image: Any, place: int) -> GivenImage:
    """Identify one image.

    Args:
        image: a path, a PIL image, or an array as for `rgb_from_array`.
        place: its index among those given, for messages.

    Raises:
        SourceError: the path does not exist.
        UnusableImageError: it cannot be read or has no defined reading as RGB; the message names it.
        UsageError: it is no image.
    """
    image = one_image(image, place)
    if isinstance(image, (str, Path)):
        path = Path(absolute(image))
        if not path.exists():
            raise SourceError(f"There is no image {image}.")
        sha256 = _naming(str(image), functools.partial(file_sha256, path))
        uri = as_text(path.relative_to(path.anchor).as_posix())
        return GivenImage(str(image), sha256, PATHS, Entry(uri, str(path), None, None, None))
    name = f"image {place}"

    def make_image() -> Image:
        # Made again when it is computed: to hold all of them would take their memory twice.
        return decoded_image(image).image

    sha256 = _naming(name, lambda: pixels_sha256(make_image()))
    uri = sha256.hex()
    return GivenImage(name, sha256, MEMORY, Entry(uri, uri, None, None, None, make_image))


def _naming(name: str, identify: Callable[[], bytes]) -> bytes:
    try:
        return identify()
    except UnusableImageError as error:
        raise UnusableImageError(f"{name}: {error}.") from error
