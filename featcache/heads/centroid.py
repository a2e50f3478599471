"""The head ``centroid``: the class with the nearest mean, with calibrated probabilities.

The score of a class is minus half the squared Euclidean distance to its mean, less what all classes share, and so
linear in the vector. Probabilities are softmax(scores / T); T is fitted on the scores that each item gets with its
group left out of the means, which has a closed form. scikit-learn's NearestCentroid
has the same labels, but takes no weights and no groups, does not calibrate its probabilities, and is no linear map.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from featcache.core.errors import UsageError
from featcache.heads.validation import LinearHead, to_fit
from featcache.metrics.calibration import fit_temperature


class CentroidHead(LinearHead):
    """Nearest class mean.

    Attributes:
        classes_: (k,) labels.
        centroids_: (k, d) float64, their weighted means.
        coef_: (k, d) of the linear scores; for two classes (1, d).
        intercept_: (k,) or (1,).
        temperature_: probabilities are softmax(scores / temperature_).
        chosen_: ``{"temperature": …}``.
        chosen_by_: how it was chosen, in words.
    """

    def fit(self, X: Any, y: Any, groups: Any = None, sample_weight: Any = None) -> CentroidHead:
        """Fit.

        Args:
            X: (n, d) vectors.
            y: (n,) labels.
            groups: (n,) rows with the same one are left out together for the temperature.
            sample_weight: (n,) not negative; rows of weight 0 do not count at all. 1 by default.

        Raises:
            UsageError: a value is not finite (the row is named), a weight is negative, or there is one class only.
        """
        weights = None if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
        X, classes, class_ids, groups = to_fit(self, X, y, groups)
        if weights is None:
            weights = np.ones(len(X))
        elif weights.shape != (len(X),) or not (np.isfinite(weights) & (weights >= 0)).all() or not weights.any():
            raise UsageError(f"sample_weight must have the shape ({len(X)},), no negative value and one above zero.")
        counted = weights > 0
        if not counted.all():
            X, class_ids, groups, weights = X[counted], class_ids[counted], groups[counted], weights[counted]
            present, class_ids = np.unique(class_ids, return_inverse=True)
            classes = classes[present]
            if len(classes) < 2:
                raise UsageError("All rows that have a weight are of one class; a head needs two or more.")
        self.classes_ = classes
        mean = np.average(X, axis=0, weights=weights)
        # What was taken off is what is put back: the mean itself has more digits than float32.
        mean = mean.astype(X.dtype)
        Z = X - mean
        mean = mean.astype(np.float64)
        members = np.zeros((len(classes), len(X)))
        members[class_ids, np.arange(len(X))] = weights
        masses = members.sum(axis=1)
        offsets = (members.astype(X.dtype) @ Z).astype(np.float64) / masses[:, None]
        self.centroids_ = mean + offsets
        self.coef_ = offsets
        self.intercept_ = -(offsets * (mean + offsets / 2)).sum(axis=1)
        if len(classes) == 2:
            self.coef_ = self.coef_[1:] - self.coef_[:1]
            self.intercept_ = self.intercept_[1:] - self.intercept_[:1]
        scores, known = _left_out_scores(Z, offsets, masses, class_ids, groups, weights)
        what = "group" if len(np.unique(groups)) < len(groups) else "item"
        self.chosen_by_ = f"leaving out one {what}"
        if not known.any():
            scores, known = Z @ offsets.T - np.square(offsets).sum(axis=1) / 2, np.ones(len(Z), dtype=bool)
            self.chosen_by_ = f"the items learned from: without its {what} each leaves a class empty"
        self.temperature_, _ = fit_temperature(scores[known], class_ids[known], weights[known])
        self.chosen_ = {"temperature": self.temperature_}
        return self


def _left_out_scores(
    Z: np.ndarray,
    offsets: np.ndarray,
    masses: np.ndarray,
    class_ids: np.ndarray,
    groups: np.ndarray,
    weights: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Scores of each row from means without its group.

    Args:
        Z: (n, d) vectors less their mean.
        offsets: (k, d) the class means, likewise.
        masses: (k,) sums of weights.
        class_ids, groups, weights: (n,) of the rows.

    Returns:
        (n, k) z·m - ‖m‖²/2, and (n,) whether every class has something left without the row's group.
    """
    squares = np.square(offsets).sum(axis=1)
    products = np.asarray(Z @ offsets.T.astype(Z.dtype), dtype=np.float64)
    scores = products - squares / 2
    known = np.ones(len(Z), dtype=bool)
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=groups[order[0]] - 1))
    counts = np.diff(starts, append=len(order))

    alone = order[starts[counts == 1]]
    own, weight = class_ids[alone], weights[alone]
    left = masses[own] - weight
    known[alone] = left > 1e-9 * masses[own]
    left = np.where(known[alone], left, 1)
    # With the mean m' = (W m - w z) / (W - w), from z·m, ‖m‖² and ‖z‖² alone.
    length, inner = np.square(Z[alone], dtype=np.float64).sum(axis=1), products[alone, own]
    toward = (masses[own] * inner - weight * length) / left
    square = (masses[own] ** 2 * squares[own] - 2 * masses[own] * weight * inner + weight**2 * length) / left**2
    scores[alone, own] = toward - square / 2

    for start, count in zip(starts[counts > 1], counts[counts > 1], strict=True):
        rows = order[start : start + count]
        for number in np.unique(class_ids[rows]):
            mine = rows[class_ids[rows] == number]
            left_over = masses[number] - weights[mine].sum()
            if left_over <= 1e-9 * masses[number]:
                known[rows] = False
                break
            without = (masses[number] * offsets[number] - weights[mine] @ Z[mine]) / left_over
            scores[rows, number] = Z[rows] @ without - without @ without / 2
    return scores, known
