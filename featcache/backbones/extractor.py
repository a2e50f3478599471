"""`Extractor`: the interface of whatever turns images into arrays that a store can hold."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

    from featcache.backbones.layers import Layer
    from featcache.core.recipe import Recipe
    from featcache.images.decode import Decoded


class Extractor(Protocol):
    """A `Backbone`, or anything else that turns an image into arrays determined by its bytes and a recipe.

    `prepare` is called from many threads at once, `forward` from one.
    """

    @property
    def name(self) -> str:
        """Full name, ``family:name``."""

    @property
    def recipe(self) -> Recipe:
        """Everything that determines the arrays besides the image's bytes and the layer."""

    @property
    def quarantine_key(self) -> str:
        """Settings that decide which images are usable without changing the arrays of those that are; mostly empty.

        Quarantined images are tried again when it has changed.
        """

    def resolve_layers(self, layers: Sequence[str]) -> list[Layer]:
        """Expand and check layer names, in network order."""

    def load(self) -> None:
        """Load what `forward` needs, unless it is loaded."""

    def decode(self, data: bytes) -> Decoded:
        """Decode an image file's bytes to an upright RGB image.

        Raises:
            UnusableImageError: the bytes are not an image.
        """

    def prepare(self, image: Image | Decoded, sha256: bytes | None = None) -> np.ndarray:
        """One image's row of a batch.

        Args:
            image: any PIL image, or what `decode` returned.
            sha256: SHA-256 of the image's bytes, if it is known.

        Raises:
            UnusableImageError: the image cannot be used.
        """

    def forward(self, batch: np.ndarray, layers: Sequence[Layer]) -> dict[str, np.ndarray]:
        """By layer name an array (n, …) float32, for a batch (n, …) of what `prepare` returned."""

    def reference(self) -> Extractor:
        """What its vectors are checked against: the same in eager torch at float32, on pixels made by published code.

        If nothing is published for the pixels, they are made as the recipe says.

        Raises:
            UsageError: no network computes these arrays.
        """


def held(extractor: Extractor | str | None) -> AbstractContextManager[None]:
    """Within it the weights of a network given in Python are digested once, and once more at its end.

    It is the method ``held`` of an extractor that has one.
    """
    found: AbstractContextManager[None] = getattr(extractor, "held", nullcontext)()
    return found
