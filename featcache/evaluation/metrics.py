"""Scores of classifiers, each with an interval.

Values are those of scikit-learn's functions of the same names. The intervals are percentile bootstrap
intervals (Efron and Tibshirani 1993, chapter 13) over units, since items of one unit are no independent
evidence. They tell how the score would vary over test items, not over trainings. Where every item is
right, or every one wrong, all resamples are equal; the interval of the accuracy then is Wilson's (1927)
with the number of units.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from featcache.errors import UsageError

_Z = 1.959963984540054
_AT_ONCE = 1 << 22


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of one head on one set of items.

    Attributes:
        n: items scored.
        accuracy: share of the items with the right label.
        balanced_accuracy: mean over the classes that occur of the share of their items that are right.
        macro_f1: mean of the F1 score over the classes that occur or are predicted.
        log_loss: mean of -ln of the probability of the true class, which is bounded below by the
            float64 epsilon; None without probabilities.
    """

    n: int
    accuracy: Interval
    balanced_accuracy: Interval
    macro_f1: Interval
    log_loss: Interval | None


def score(
    y_true: np.ndarray,
    probabilities: np.ndarray | None,
    predicted: np.ndarray,
    classes: Sequence[str],
    *,
    units: np.ndarray | None = None,
    seed: int = 0,
    resamples: int = 1000,
) -> Scores:
    """Score predictions.

    Args:
        y_true: (n,) true labels; one that the head does not know counts as wrong, with probability 0.
        probabilities: (n, k) in the order of *classes*, or None.
        predicted: (n,) predicted labels.
        classes: the head's k classes.
        units: (n,) int64; items that are no independent evidence share a number.
        seed: of the bootstrap.
        resamples: of the bootstrap.

    Raises:
        UsageError: there is nothing to score.
    """
    n = len(y_true)
    if n == 0:
        raise UsageError("There is no item to score on.")
    names = sorted({str(c) for c in classes} | {str(v) for v in y_true} | {str(v) for v in predicted})
    place = {name: i for i, name in enumerate(names)}
    truth = np.array([place[str(v)] for v in y_true])
    said = np.array([place[str(v)] for v in predicted])
    losses = None
    if probabilities is not None:
        column = {str(c): i for i, c in enumerate(classes)}
        p = np.array(
            [
                float(row[column[str(v)]]) if str(v) in column else 0.0
                for row, v in zip(probabilities, y_true, strict=True)
            ]
        )
        losses = -np.log(np.clip(p, np.finfo(np.float64).eps, 1.0))
    groups = np.unique(np.arange(n) if units is None else units, return_inverse=True)[1]
    counts = _resampled(groups, seed, resamples)
    k = len(names)
    confusion = np.zeros((len(counts), k * k))
    step = max(1, _AT_ONCE // n)
    for start in range(0, len(counts), step):
        weights = counts[start : start + step][:, groups]
        for row, w in enumerate(weights, start):
            confusion[row] = np.bincount(truth * k + said, weights=w, minlength=k * k)
    accuracy, balanced, f1 = _from_confusion(confusion.reshape(-1, k, k))
    loss = None
    if losses is not None:
        per_group = np.bincount(groups, weights=losses)
        sizes = np.bincount(groups)
        loss = _interval((counts @ per_group) / (counts @ sizes))
    right = _interval(accuracy)
    if right.value in (0.0, 1.0):
        right = Interval(right.value, *wilson(right.value, counts.shape[1]))
    return Scores(n, right, _interval(balanced), _interval(f1), loss)


def wilson(share: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of n independent trials."""
    centre = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n * n))
    # It holds the share; rounding could leave 0 or 1 just outside.
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


def _resampled(groups: np.ndarray, seed: int, resamples: int) -> np.ndarray:
    """How often each unit is drawn: (1 + resamples, units); the first row is the sample itself."""
    count = int(groups.max()) + 1
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
    return np.vstack([np.ones((1, count)), drawn]).astype(np.float64)


def _from_confusion(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Accuracy, balanced accuracy and macro-F1 of each of (r, k, k) confusion matrices."""
    hits = np.diagonal(confusion, axis1=1, axis2=2)
    true, said = confusion.sum(2), confusion.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = np.where(true > 0, hits / true, np.nan)
        f1 = np.where(true + said > 0, 2 * hits / (true + said), np.nan)
    return hits.sum(1) / true.sum(1), np.nanmean(recall, axis=1), np.nanmean(f1, axis=1)


def _interval(values: np.ndarray) -> Interval:
    low, high = np.percentile(values[1:], [2.5, 97.5]) if len(values) > 1 else (values[0], values[0])
    value = float(values[0])
    return Interval(value, min(float(low), value), max(float(high), value))
