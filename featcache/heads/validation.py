"""What heads share: checks of the arrays given to fit and predict, sample weights, and prediction from a linear map."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from featcache.core.errors import UsageError
from featcache.core.labels import given_label
from featcache.metrics.calibration import softmax

_FLOATS = [np.float64, np.float32]


def to_fit(
    estimator: Any, X: Any, y: Any, groups: Any, *, check_targets: bool = True
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Arrays to fit on.

    Args:
        estimator: the head, which gets the number and names of the features.
        X: (n, d) numbers; half precision becomes float32, anything but float32 becomes float64.
        y: (n,) labels.
        groups: (n,) of any type, or None, and then every row is a group of its own.
        check_targets: whether the labels must be such as a classifier can learn; scikit-learn warns where most
            have one row, which identities may.

    Returns:
        Vectors (n, d), classes (k,), class ids (n,) and group numbers (n,).

    Raises:
        UsageError: a value is not finite, a row has no label, there are fewer than two classes, or *groups* has another
            length.
    """
    check_labeled(y)
    checked = validate_data(estimator, _not_half(X), y, dtype=_FLOATS, ensure_all_finite=False)
    X, y = np.asarray(checked[0]), np.asarray(checked[1])
    check_finite(X)
    if check_targets:
        check_classification_targets(y)
    classes, class_ids = np.unique(y, return_inverse=True)
    if len(classes) < 2:
        raise UsageError(f"All {len(y)} rows are of one class, {classes[0]!s}; a head needs two or more.")
    if groups is None:
        return X, classes, class_ids, np.arange(len(y))
    groups = np.asarray(groups)
    if groups.shape != (len(y),):
        raise UsageError(f"groups must have the shape ({len(y)},), not {groups.shape}.")
    _, first, sorted_number = np.unique(groups, return_index=True, return_inverse=True)
    # Numbered as they come, so that folds do not depend on what the groups are called.
    return X, classes, class_ids, np.argsort(np.argsort(first))[sorted_number]


def to_answer(estimator: Any, X: Any) -> np.ndarray:
    """Vectors (n, d) to answer for, float32 or float64.

    Raises:
        UsageError: a value is not finite; the message names the row.
    """
    checked = np.asarray(validate_data(estimator, _not_half(X), reset=False, dtype=_FLOATS, ensure_all_finite=False))
    check_finite(checked)
    return checked


def check_finite(X: np.ndarray, rows: np.ndarray | None = None) -> None:
    """Refuse what is not finite.

    Args:
        X: (n, d) vectors.
        rows: (n,) what the rows are called; 0, 1, … by default.

    Raises:
        UsageError: the first row with NaN or infinity is named.
    """
    finite = np.isfinite(X)
    if not finite.all():
        place = int(np.argmin(finite.all(axis=1)))
        what = "NaN" if np.isnan(X[place]).any() else "infinity (inf)"
        if what != "NaN" and X.dtype == np.float32:
            what += " or a value too large for float32"
        raise UsageError(f"Row {place if rows is None else rows[place]} of the vectors holds {what}.")


def check_labeled(y: Any) -> None:
    """Refuse labels (n,) of which one is None, NaN or empty; the first such row is named.

    Raises:
        UsageError: likewise.
    """
    labels = np.asarray(y)
    if labels.ndim != 1 or labels.dtype.kind not in "fOUS":
        return
    missing = np.isnan(labels) if labels.dtype.kind == "f" else np.array([given_label(v) is None for v in labels], bool)
    if missing.any():
        place = int(np.argmax(missing))
        raise UsageError(
            f"Row {place} of the labels holds {labels[place]!r}, which is no label ({int(missing.sum())} of "
            f"{len(labels)} rows). Leave out such rows."
        )


def _not_half(X: Any) -> Any:
    return X.astype(np.float32) if isinstance(X, np.ndarray) and X.dtype == np.float16 else X


@dataclass(frozen=True, slots=True)
class TrainingRows:
    """The rows whose weight is above zero.

    Attributes:
        X: (n, d) float32, less `shift`; perhaps the array that was given, so not to be written to.
        y: (n,) class ids.
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
    X, classes, class_ids, units = to_fit(estimator, X, y, groups)
    n = len(class_ids)
    weights = np.ones(n) if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
    if weights.ndim == 0:
        weights = np.full(n, float(weights))
    if weights.shape != (n,):
        raise UsageError(f"sample_weight has shape {weights.shape} for {n} rows.")
    bad = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
    if len(bad):
        raise UsageError(f"The weight of row {bad[0]} is {weights[bad[0]]}; weights must be finite and not negative.")
    masses = np.bincount(class_ids, weights, len(classes))
    if isinstance(class_weight, str) and class_weight == "balanced" and (masses > 0).all():
        # By weight and not by rows, as scikit-learn has it from 1.7 on: a row without weight is no row.
        weights = weights * (masses.sum() / (len(classes) * masses))[class_ids]
    elif class_weight is not None:
        weights = weights * compute_class_weight(class_weight, classes=classes, y=classes[class_ids])[class_ids]
    lost = np.bincount(class_ids, weights, len(classes)) <= 0
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
    return TrainingRows(narrow, class_ids[kept], weights[kept], units[kept], classes, shift, kept, n)


class LinearHead(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Predicts from ``coef_``, ``intercept_``, ``temperature_`` and ``classes_``; the probabilities are softmax(z / T).

    For two classes ``coef_`` is (1, d), and the scores z of the classes are 0 and what it gives.
    """

    coef_: np.ndarray
    intercept_: np.ndarray
    temperature_: float = 1.0
    classes_: np.ndarray

    def decision_function(self, X: Any) -> np.ndarray:
        """(n, k) scores, or (n,) for two classes."""
        check_is_fitted(self)
        scores = to_answer(self, X) @ self.coef_.T + self.intercept_
        return np.asarray(scores[:, 0] if scores.shape[1] == 1 else scores)

    def predict_proba(self, X: Any) -> np.ndarray:
        """(n, k) probabilities in the order of ``classes_``."""
        return softmax(class_scores(self.decision_function(X)) / self.temperature_)

    def predict(self, X: Any) -> np.ndarray:
        """(n,) the most likely label."""
        places = class_scores(self.decision_function(X)).argmax(axis=1)
        return np.asarray(self.classes_[places])


def class_scores(scores: np.ndarray) -> np.ndarray:
    """One column a class, also where two classes have one score between them: (n,) or (n, 1) becomes (n, 2)."""
    scores = scores.reshape(len(scores), -1)
    return np.column_stack([np.zeros(len(scores), scores.dtype), scores]) if scores.shape[1] == 1 else scores
