"""Scores of classifiers, each with an interval.

Values are those of scikit-learn's functions of the same names. The intervals are percentile bootstrap
intervals (Efron and Tibshirani 1993, chapter 13) over units, since items of one unit are no independent
evidence. They tell how the score would vary over test items, not over trainings. Where all resamples are
equal (every item is right, or wrong, or there is but one unit) they say nothing: the interval of the accuracy
then is Wilson's (1927) with the number of units, and the other scores have none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from featcache.core.errors import UsageError

_Z = 1.959963984540054
_DRAWS, _FEWEST = 200_000_000, 100
"""Of so many units that 1000 resamples would take minutes, fewer are drawn; they are as good then."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with its 95 % interval; ``low`` and ``high`` are NaN where none is known."""

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        """``value``, ``low`` and ``high``."""
        return {"value": self.value, "low": self.low, "high": self.high}


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
        resamples: of the bootstrap; fewer, but at least 100, where there are more than 200,000 units.

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
        losses = item_losses(y_true, probabilities, classes)
    groups = np.unique(np.arange(n) if units is None else units, return_inverse=True)[1]
    count = int(groups.max()) + 1
    sizes = np.bincount(groups)
    rng = np.random.default_rng(seed)
    values: list[list[float]] = []
    for drawn in range(1 + few_enough(resamples, count)):
        # First the sample itself; then as many units as there are, drawn with replacement.
        times = rng.multinomial(count, np.full(count, 1 / count)) if drawn else np.ones(count, dtype=np.int64)
        row = _from_counts(truth, said, times[groups], len(names))
        if losses is not None:
            row.append(float(times[groups] @ losses / (times @ sizes)))
        values.append(row)
    right, balanced, f1, *loss = (_interval(column) for column in np.array(values).T)
    if math.isnan(right.low):
        right = Interval(right.value, *wilson(right.value, count))
    return Scores(n, right, balanced, f1, loss[0] if loss else None)


def item_losses(y_true: np.ndarray, probabilities: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """(n,) -ln of the probability of each item's true class, which is bounded below by the float64 epsilon.

    Args:
        y_true: (n,) true labels; one that the head does not know has probability 0.
        probabilities: (n, k) in the order of *classes*.
        classes: the head's k classes.
    """
    column = {str(c): i for i, c in enumerate(classes)}
    p = np.array(
        [float(row[column[str(v)]]) if str(v) in column else 0.0 for row, v in zip(probabilities, y_true, strict=True)]
    )
    return np.asarray(-np.log(np.clip(p, np.finfo(np.float64).eps, 1.0)))


def few_enough(resamples: int, units: int) -> int:
    """So many resamples of so many units that they take no minutes."""
    return min(resamples, max(_FEWEST, _DRAWS // units))


def wilson(share: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of n independent trials."""
    centre = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n * n))
    # It holds the share; rounding could leave 0 or 1 just outside.
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


def _from_counts(truth: np.ndarray, said: np.ndarray, weights: np.ndarray, k: int) -> list[float]:
    """Accuracy, balanced accuracy and macro-F1 where item i occurs ``weights[i]`` times."""
    true = np.bincount(truth, weights, k)
    answered = np.bincount(said, weights, k)
    hits = np.bincount(truth, weights * (truth == said), k)
    occurs, named = true > 0, true + answered > 0
    balanced = (hits[occurs] / true[occurs]).mean()
    f1 = (2 * hits[named] / (true + answered)[named]).mean()
    return [float(hits.sum() / true.sum()), float(balanced), float(f1)]


def _interval(values: np.ndarray) -> Interval:
    value = float(values[0])
    if len(values) > 1 and np.ptp(values[1:]) < 1e-12:  # but for rounding, all are equal
        return Interval(value, math.nan, math.nan)
    low, high = np.percentile(values[1:], [2.5, 97.5]) if len(values) > 1 else (value, value)
    return Interval(value, min(float(low), value), max(float(high), value))
