"""What a strategy answered on some items, and two of them compared on the items that both answered."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from featcache.metrics.classification import paired
from featcache.metrics.intervals import Interval, wilson

_RESAMPLES = 4000
"""Of wider intervals than 95 % the ends are rare, so more resamples than usual are drawn."""


@dataclass(frozen=True)
class Outcome:
    """Answers to items that were not learned from.

    Attributes:
        name: of the strategy or the measurement.
        rows: (m,) int64 numbers of the items, ascending.
        right: (m,) float64, 1 for a right answer and 0 for a wrong one; between where several draws answered.
        losses: (m,) float64, -ln of the probability of the true class.
        learned: items that a fit learned from, on average.
        seconds: that all fits and answers took.
        fits: how many there were.
        note: what is special about it, in words.
        shortened: epochs at most of a trial that the budget cut short; None of what was done in full.
    """

    name: str
    rows: np.ndarray
    right: np.ndarray
    losses: np.ndarray
    learned: float
    seconds: float
    fits: int
    note: str | None = None
    shortened: int | None = None

    def accuracy(self, units: np.ndarray, seed: int) -> Interval:
        """Share of right answers with its 95 % interval over units; *units* (n,) of all items."""
        found = _mean(self.right, units[self.rows], seed)
        if math.isnan(found.low):
            return Interval(found.value, *wilson(found.value, len(np.unique(units[self.rows]))))
        return found

    def log_loss(self, units: np.ndarray, seed: int) -> Interval:
        """Mean log-loss with its 95 % interval over units."""
        return _mean(self.losses, units[self.rows], seed)

    def joined(self, other: Outcome) -> Outcome:
        """This and answers of the same strategy to further items."""
        rows = np.concatenate([self.rows, other.rows])
        order = np.argsort(rows, kind="stable")
        return Outcome(
            self.name,
            rows[order],
            np.concatenate([self.right, other.right])[order],
            np.concatenate([self.losses, other.losses])[order],
            (self.learned * self.fits + other.learned * other.fits) / (self.fits + other.fits),
            self.seconds + other.seconds,
            self.fits + other.fits,
            self.note,
            self.shortened,
        )

    def to_dict(self, units: np.ndarray, seed: int) -> dict[str, Any]:
        """Scores as plain values."""
        return {
            "name": self.name,
            "items": len(self.rows),
            "learned": self.learned,
            "accuracy": plain(self.accuracy(units, seed)),
            "log_loss": plain(self.log_loss(units, seed)),
            "fits": self.fits,
            "seconds": self.seconds,
            "note": self.note,
            "shortened": self.shortened,
        }


@dataclass(frozen=True, slots=True)
class Compared:
    """Accuracy of A less that of B on the same items.

    Attributes:
        a, b: names.
        items, units: on which both answered.
        difference: of the accuracies.
        low, high: its interval (bootstrap over units); equal to *difference* where all resamples are.
        confidence: of the interval.
        p: of the two-sided sign test over units. The bootstrap alone trusts a handful of units too much.
        detectable: about the smallest difference that the interval and the sign test would both have told from
            chance, if A and B gave different answers on as many units as here; None where no difference could be.
    """

    a: str
    b: str
    items: int
    units: int
    difference: float
    low: float
    high: float
    confidence: float
    p: float
    detectable: float | None

    @property
    def better(self) -> str | None:
        """The name of the one that is better beyond doubt; None where that is not known."""
        if self.p >= 1 - self.confidence or self.low <= 0 <= self.high:
            return None
        return self.a if self.low > 0 else self.b

    def reversed(self) -> Compared:
        """B compared with A."""
        return replace(self, a=self.b, b=self.a, difference=-self.difference, low=-self.high, high=-self.low)

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values, and which is ``better``."""
        return {**asdict(self), "better": self.better}


def compare(a: Outcome, b: Outcome, units: np.ndarray, *, confidence: float = 0.95, seed: int = 0) -> Compared | None:
    """Compare two strategies by accuracy on the items that both answered; None where there is none.

    Args:
        a, b: the strategies.
        units: (n,) unit of each item; items that are no independent evidence share one.
        confidence: of the interval and the test.
        seed: of the bootstrap.
    """
    rows, at_a, at_b = np.intersect1d(a.rows, b.rows, return_indices=True)
    if not len(rows):
        return None
    right_a, right_b, groups = a.right[at_a], b.right[at_b], units[rows]
    found = paired(right_a, right_b, units=groups, seed=seed, resamples=_RESAMPLES, confidence=confidence)
    low, high = (found.difference, found.difference) if math.isnan(found.low) else (found.low, found.high)
    numbers = np.unique(groups, return_inverse=True)[1]
    gains = np.bincount(numbers, right_a - right_b)
    convincing = _convincing(gains, 1 - confidence, len(rows) / len(gains))
    detectable = None if convincing is None else max(convincing / len(rows), (high - low) / 2)
    return Compared(
        a.name, b.name, len(rows), len(gains), found.difference, low, high, confidence, sign_test(gains), detectable
    )


def sign_test(gains: np.ndarray) -> float:
    """p of the two-sided sign test: that gains above 0 are as likely as those below.

    Conover, "Practical Nonparametric Statistics", 3rd edition, section 3.4; ties are left out. For gains of -1, 0 and
    1 it is McNemar's exact test.
    """
    from scipy.stats import binom

    above, below = int((gains > 1e-12).sum()), int((gains < -1e-12).sum())
    if not above + below:
        return 1.0
    return float(min(1.0, 2 * binom.cdf(min(above, below), above + below, 0.5)))


def _convincing(gains: np.ndarray, doubt: float, items: float) -> float | None:
    """The smallest sum of gains for which the sign test has p < *doubt*, where as many units differ as in *gains*.

    Where even all of these would not be enough, as many as are; where none differs, units of so many *items*. None
    where there are not so many units at all.
    """
    from scipy.stats import binom

    differ = np.abs(gains) > 1e-12
    # All of m in one direction have p = 2 / 2^m.
    fewest = math.floor(math.log2(2 / doubt)) + 1
    if fewest > len(gains):
        return None
    n = max(int(differ.sum()), fewest)
    below = np.arange(n // 2 + 1)
    # The most units that may speak against it; 0 of *fewest* always may.
    against = int(below[2 * binom.cdf(below, n, 0.5) < doubt].max())
    size = np.abs(gains[differ]).mean() if differ.any() else items
    return float((n - 2 * against) * size)


def plain(found: Interval) -> dict[str, float | None]:
    """An interval as plain values, None for what is not known."""
    return found.to_dict()


def _mean(values: np.ndarray, units: np.ndarray, seed: int) -> Interval:
    found = paired(values, np.zeros(len(values)), units=units, seed=seed)
    return Interval(found.difference, found.low, found.high)
