"""The rows that a weighted head is fitted on: weights multiplied, rows of no weight left out, in float32."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.utils.class_weight import compute_class_weight

from featcache.core.errors import UsageError
from featcache.heads.validation import check_finite, to_fit


@dataclass(frozen=True, slots=True)
class TrainingRows:
    """The rows whose weight is above zero.

    Attributes:
        X: (n, d) float32, less `shift`; perhaps the array that was given, so not to be written to.
        y: (n,) class numbers.
        weights: (n,) float64, sample and class weights multiplied.
        groups: (n,) int64.
        classes: (k,) labels.
        shift: (d,) float64, what was taken off, so that float64 vectors far from 0 keep their digits.
        kept: (n,) which of the rows given these are.
        given: how many rows were given.
    """

    X: np.ndarray
    y: np.ndarray
    weights: np.ndarray
    groups: np.ndarray
    classes: np.ndarray
    shift: np.ndarray
    kept: np.ndarray
    given: int


def checked(
    estimator: Any,
    X: Any,
    y: Any,
    groups: Any = None,
    sample_weight: Any = None,
    class_weight: str | Mapping[Any, float] | None = None,
) -> TrainingRows:
    """The rows to learn from.

    Args:
        estimator: whose `n_features_in_` is set.
        X: (n, d) numbers.
        y: (n,) labels.
        groups: (n,) numbers or texts; by default each row is its own.
        sample_weight: (n,) weights.
        class_weight: ``balanced``, by which all classes have the same weight in sum, a mapping from labels to
            weights, or None.

    Raises:
        UsageError: a value is not finite, a weight negative, a class without weight, or there is one class.
    """
    X, classes, numbers, units = to_fit(estimator, X, y, groups)
    n = len(numbers)
    weights = np.ones(n) if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
    if weights.ndim == 0:
        weights = np.full(n, float(weights))
    if weights.shape != (n,):
        raise UsageError(f"sample_weight has shape {weights.shape} for {n} rows.")
    bad = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
    if len(bad):
        raise UsageError(f"The weight of row {bad[0]} is {weights[bad[0]]}; weights are numbers from 0 on.")
    masses = np.bincount(numbers, weights, len(classes))
    if isinstance(class_weight, str) and class_weight == "balanced" and (masses > 0).all():
        # By weight and not by rows, as scikit-learn has it from 1.7 on: a row without weight is no row.
        weights = weights * (masses.sum() / (len(classes) * masses))[numbers]
    elif class_weight is not None:
        weights = weights * compute_class_weight(class_weight, classes=classes, y=classes[numbers])[numbers]
    lost = np.bincount(numbers, weights, len(classes)) <= 0
    if lost.any():
        raise UsageError(f"Every row of class {classes[lost][0]!s} has the weight zero.")
    kept = np.flatnonzero(weights > 0)
    shift = np.zeros(X.shape[1])
    if X.dtype == np.float64:
        shift = X[kept].mean(axis=0)
        X = X - shift
    # No copy where there is nothing to leave out: the vectors can fill half the memory.
    narrow = np.ascontiguousarray(X if len(kept) == n else X[kept], dtype=np.float32)
    check_finite(narrow, kept)
    return TrainingRows(narrow, numbers[kept], weights[kept], units[kept], classes, shift, kept, n)
