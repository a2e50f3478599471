"""Whether two runtimes give the same activations of the same images."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from featcache.core.errors import ConversionError

TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1}
"""Largest ‖a - b‖/‖b‖ of an image's activations at one layer, by precision. A bfloat16 number keeps eight binary
digits, so after many layers two right answers differ by some percent; the bound tells these from a wrong graph."""


def check_agreement(
    got: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], precision: str
) -> dict[str, float]:
    """Compare activations with those of the reference, image by image and layer by layer.

    An image that the reference loses at any layer is not compared: a graph may tell of NaN for all layers at once. It
    has to be lost at that layer, though.

    Args:
        got, expected: for each layer's name (n, …) float32 of the same n images.
        precision: ``float32`` or ``bfloat16``, that of *got*.

    Returns:
        For each layer the largest relative error.

    Raises:
        ConversionError: they differ by more than `TOLERANCE` or in shape, values are not finite in one alone, or there
            is no image of which all values of the reference are finite.
    """
    whole = np.logical_and.reduce([_finite(reference) for reference in expected.values()])
    largest = {}
    for name, reference in expected.items():
        if got[name].shape != reference.shape:
            raise ConversionError(f"the layer {name} has shape {got[name].shape}, in eager torch {reference.shape}")
        n = len(reference)
        a, b = (array.reshape(n, -1).astype(np.float64) for array in (got[name], reference))
        if (_finite(a) != _finite(b))[whole | ~_finite(b)].any():
            raise ConversionError(
                f"the layer {name} has values that are not finite, and not where eager torch has them"
            )
        if not whole.any():
            raise ConversionError("no image has finite values at every layer, so nothing can be compared")
        away, length = (np.linalg.norm(part[whole], axis=1) for part in (a - b, b))
        # Where the reference is all zeros, so must be the other.
        errors = np.divide(away, length, out=np.where(away > 0, np.inf, 0.0), where=length > 0)
        largest[name] = float(errors.max())
        if largest[name] > TOLERANCE[precision]:
            raise ConversionError(
                f"the layer {name} differs from eager torch by {largest[name]:.1e} relative to its norm, "
                f"more than {TOLERANCE[precision]:.0e}"
            )
    return largest


def _finite(array: np.ndarray) -> np.ndarray:
    """(n,) bool, whether all values of an image are finite."""
    finite: np.ndarray = np.isfinite(array.reshape(len(array), -1)).all(axis=1)
    return finite
