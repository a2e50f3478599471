"""What `fit` was given, checked and brought into one form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import validate_data


@dataclass(frozen=True, slots=True)
class TrainingRows:
    """The rows whose weight is above zero.

    Attributes:
        X: (n, d) float32, less `shift`.
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
        class_weight: ``balanced``, a mapping from labels to weights, or None.

    Raises:
        ValueError: a value is not finite, a weight negative, a class without weight, or there is one class.
    """
    _check_finite(X)
    X, y = validate_data(estimator, X, y, dtype=[np.float64, np.float32])
    check_classification_targets(y)
    classes, numbers = np.unique(y, return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"All {len(y)} rows are of one class, {_name(classes[0])}; a classifier needs two or more.")
    weights = np.ones(len(y)) if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
    if weights.ndim == 0:
        weights = np.full(len(y), float(weights))
    if weights.shape != (len(y),):
        raise ValueError(f"sample_weight has shape {weights.shape} for {len(y)} rows.")
    bad = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
    if len(bad):
        raise ValueError(f"The weight of row {bad[0]} is {weights[bad[0]]}; weights are numbers from 0 on.")
    if class_weight is not None:
        weights = weights * compute_class_weight(class_weight, classes=classes, y=y)[numbers]
    lost = np.bincount(numbers, weights, len(classes)) <= 0
    if lost.any():
        raise ValueError(f"Every row of class {_name(classes[lost][0])} has the weight zero.")
    units = np.arange(len(y)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    if len(units) != len(y):
        raise ValueError(f"There are {len(units)} groups for {len(y)} rows.")
    kept = np.flatnonzero(weights > 0)
    shift = np.zeros(X.shape[1])
    if X.dtype == np.float64:
        shift = X[kept].mean(axis=0)
        X = X - shift
    narrow = np.ascontiguousarray(X[kept], dtype=np.float32)
    _check_finite(narrow)
    return TrainingRows(narrow, numbers[kept], weights[kept], units[kept], classes, shift, kept, len(y))


def _name(label: Any) -> str:
    return repr(label.item() if isinstance(label, np.generic) else label)


def _check_finite(X: Any) -> None:
    """Name the row, which scikit-learn's own check does not."""
    if not isinstance(X, np.ndarray) or X.ndim != 2 or X.dtype.kind != "f":
        return
    bad = np.flatnonzero(~np.isfinite(X).all(axis=1))
    if len(bad):
        what = "NaN" if np.isnan(X[bad[0]]).any() else "infinity or a value too large for float32"
        raise ValueError(f"Row {bad[0]} of X contains {what}, as do {len(bad) - 1} others.")
