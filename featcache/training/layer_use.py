"""The layers that a head reads, each with the scale that its vectors are divided by.

A module of its own, so that a bundle can predict without loading the store.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class LayerUse:
    """A layer that a head reads.

    Attributes:
        name: the layer.
        shape: shape of one image's activations.
        scale: its vectors are divided by this: their root mean square on the images the head was fitted on; 1 for
            a head that reads one layer.
    """

    name: str
    shape: tuple[int, ...]
    scale: float

    @property
    def width(self) -> int:
        """Size of one image's activations."""
        return math.prod(self.shape)


def scale_layers(X: np.ndarray, layers: Sequence[LayerUse]) -> np.ndarray:
    """Vectors (n, d), each layer's part divided by its scale."""
    if all(use.scale == 1.0 for use in layers):
        return X
    return X / np.repeat(np.array([u.scale for u in layers], np.float32), [u.width for u in layers])
