"""`Extractor`: what images can be run through, one after another, and what of it can be kept in a store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from featcache.backbones.layers import Layer
from featcache.core.recipe import Recipe

if TYPE_CHECKING:
    from PIL.Image import Image

    from featcache.images.decode import Decoded


class Extractor(Protocol):
    """A `Backbone`, or whatever else turns an image into arrays that its bytes and a recipe determine.

    `prepare` is called in many threads at once, `forward` in one.
    """

    @property
    def name(self) -> str:
        """Full name, ``family:name``."""

    @property
    def recipe(self) -> Recipe:
        """All that determines the arrays besides the image's bytes and the layer."""

    @property
    def quarantine_key(self) -> str:
        """What decides which images can be used and does not change the arrays of those that can; mostly nothing.

        Images in quarantine are tried again when it is another text than when they were put there.
        """

    def resolve_layers(self, layers: Sequence[str]) -> list[Layer]:
        """Check the names of layers and put them into order."""

    def load(self) -> None:
        """Load what `forward` needs, if that was not done before."""

    def decode(self, data: bytes) -> Decoded:
        """An image file's bytes as an upright RGB image.

        Raises:
            UnusableImageError: they are none.
        """

    def prepare(self, image: Image | Decoded, sha256: bytes | None = None) -> np.ndarray:
        """One image's part of a batch.

        Args:
            image: an upright RGB image, or what `decode` made.
            sha256: SHA-256 of the image's bytes, where it is known.

        Raises:
            UnusableImageError: the image cannot be used.
        """

    def forward(self, batch: np.ndarray, layers: Sequence[Layer]) -> dict[str, np.ndarray]:
        """For each layer's name an array (n, …) float32, of a batch (n, …) of what `prepare` gave."""
