"""What every head asks of the arrays it is fitted on, and how it says what is wrong with them."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import validate_data

from featcache.core.errors import UsageError

_FLOATS = [np.float64, np.float32]


def to_fit(
    estimator: Any, X: Any, y: Any, groups: Any, *, check_targets: bool = True
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Arrays to fit on.

    Args:
        estimator: the head, which is told the number and names of the features.
        X: (n, d) numbers; half precision becomes float32, anything but float32 becomes float64.
        y: (n,) labels.
        groups: (n,) of any type, or None, and then every row is a group of its own.
        check_targets: whether the labels must be such as a classifier can learn; scikit-learn warns where most
            have one row, which identities may.

    Returns:
        Vectors (n, d), classes (k,), class numbers (n,) and group numbers (n,).

    Raises:
        UsageError: a value is not finite, there are fewer than two classes, or *groups* has another length.
    """
    checked = validate_data(estimator, _not_half(X), y, dtype=_FLOATS, ensure_all_finite=False)
    X, y = np.asarray(checked[0]), np.asarray(checked[1])
    check_finite(X)
    if check_targets:
        check_classification_targets(y)
    classes, numbers = np.unique(y, return_inverse=True)
    if len(classes) < 2:
        raise UsageError(f"All {len(y)} rows are of one class, {classes[0]!s}; a head needs two or more.")
    if groups is None:
        return X, classes, numbers, np.arange(len(y))
    groups = np.asarray(groups)
    if groups.shape != (len(y),):
        raise UsageError(f"There is one group a row, so groups has the shape ({len(y)},), not {groups.shape}.")
    _, first, sorted_number = np.unique(groups, return_index=True, return_inverse=True)
    # Numbered as they come, so that folds do not depend on what the groups are called.
    return X, classes, numbers, np.argsort(np.argsort(first))[sorted_number]


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


def _not_half(X: Any) -> Any:
    return X.astype(np.float32) if isinstance(X, np.ndarray) and X.dtype == np.float16 else X
