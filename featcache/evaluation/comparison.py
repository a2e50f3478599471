"""Two heads on the same items: how much better is the one, and how sure is that?

The bootstrap (Efron and Tibshirani 1993, chapter 13) draws units and takes both heads' answers to them, so
what makes an item hard for both cancels out. The interval of a difference is much narrower for that than
two separate intervals suggest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from featcache.core.errors import UsageError
from featcache.metrics.classification import few_enough, item_losses


@dataclass(frozen=True, slots=True)
class Difference:
    """One score of two heads, A and B.

    Attributes:
        a, b: the score of each.
        difference: a - b.
        low, high: its interval, by default of 95 %; NaN where all resamples are equal and say nothing: both do equally
            well on every unit, or one is as much better on each, or there is but one unit.
        better: share of the resamples in which A is better, those where they are equal counted half.
    """

    a: float
    b: float
    difference: float
    low: float
    high: float
    better: float

    def to_dict(self) -> dict[str, float | None]:
        """All fields as plain values, None for NaN."""
        return {name: None if math.isnan(value) else value for name, value in asdict(self).items()}


def paired(
    a: np.ndarray,
    b: np.ndarray,
    *,
    units: np.ndarray | None = None,
    larger_is_better: bool = True,
    seed: int = 0,
    resamples: int = 1000,
    confidence: float = 0.95,
) -> Difference:
    """Compare two heads by the mean of one number an item.

    Args:
        a: (n,) of head A, as 1 for a right answer and 0 for a wrong one, or the loss.
        b: (n,) of head B on the same items.
        units: (n,) int64; items that are no independent evidence share a number.
        larger_is_better: false for losses.
        seed: of the bootstrap.
        resamples: of the bootstrap; fewer, but at least 100, where there are more than 200,000 units.
        confidence: of the interval.

    Raises:
        UsageError: there is nothing to compare on.
    """
    n = len(a)
    if n == 0:
        raise UsageError("There is no item to compare two heads on.")
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    groups = np.unique(np.arange(n) if units is None else units, return_inverse=True)[1]
    sizes, sums = np.bincount(groups), np.bincount(groups, a - b)
    count = len(sizes)
    rng = np.random.default_rng(seed)
    drawn = np.empty(few_enough(resamples, count))
    for i in range(len(drawn)):
        times = rng.multinomial(count, np.full(count, 1 / count))
        drawn[i] = times @ sums / (times @ sizes)
    value = float(a.mean() - b.mean())
    gains = drawn if larger_is_better else -drawn
    better = float((gains > 0).mean() + (gains == 0).mean() / 2)
    half = 50 * confidence
    ends = np.percentile(drawn, [50 - half, 50 + half])
    low, high = ends if np.ptp(drawn) > 1e-12 * abs(value) else (math.nan, math.nan)
    # It holds the value; of few resamples the percentiles could miss it. Of a NaN it stays one.
    low, high = np.minimum(low, value), np.maximum(high, value)
    return Difference(float(a.mean()), float(b.mean()), value, float(low), float(high), better)


def right_and_losses(
    y: np.ndarray, probabilities: np.ndarray | None, predicted: np.ndarray, classes: Sequence[str]
) -> tuple[np.ndarray, np.ndarray | None]:
    """Whether each answer is right (n,), and each item's log-loss (n,) or None without probabilities."""
    right = np.array([str(t) == str(p) for t, p in zip(y, predicted, strict=True)])
    return right, None if probabilities is None else item_losses(y, probabilities, classes)
