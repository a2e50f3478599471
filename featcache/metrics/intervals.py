"""95 % intervals of scores: the percentile bootstrap over units, and Wilson's for a share.

The bootstrap (Efron and Tibshirani 1993, chapter 13) draws units with replacement, since items of one unit are not
independent evidence. It tells how a score would vary over test items, not over trainings. Where all resamples agree
(every item is right, or wrong, or there is one unit only) it tells nothing; Wilson's interval (1927) does, with the
number of units as trials, but only of a share.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

_Z = 1.959963984540054
_DRAWS, _FEWEST = 200_000_000, 100
_KEPT = 2**20
"""Numbers of draws that are kept for the next score of as many units: 8 MB."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with its 95 % interval; ``low`` and ``high`` are NaN where none is known."""

    value: float
    low: float
    high: float

    def to_dict(self, name: str = "value") -> dict[str, float | None]:
        """The value under *name*, ``low`` and ``high``; None for NaN."""
        values = {name: self.value, "low": self.low, "high": self.high}
        return {key: None if math.isnan(value) else value for key, value in values.items()}

    @property
    def bounds(self) -> list[float] | None:
        """``[low, high]``; None where not known."""
        return None if math.isnan(self.low) else [self.low, self.high]


UNKNOWN = Interval(math.nan, math.nan, math.nan)


def bootstrap(
    statistics: Callable[[np.ndarray], Sequence[float]],
    units: int,
    *,
    resamples: int = 1000,
    seed: int = 0,
    cost: int | None = None,
) -> np.ndarray:
    """Statistics of the sample and of resamples of its units.

    Args:
        statistics: from how often each unit occurs, (units,) int64, to m numbers; NaN where one is not defined.
        units: how many are drawn.
        resamples: fewer, but at least 100, where they would take minutes.
        seed: of the draws.
        cost: numbers that one resample computes with; *units* by default.

    Returns:
        (1 + resamples, m) float64, the sample itself first.
    """
    found = [statistics(np.ones(units, dtype=np.int64))]
    for block in draws(units, resamples, seed, cost=cost):
        found += [statistics(times) for times in block]
    return np.array(found, dtype=np.float64)


def draws(units: int, resamples: int, seed: int, *, cost: int | None = None) -> Iterator[np.ndarray]:
    """How often each unit occurs in each resample, in blocks of (some resamples, units) int64; as for `bootstrap`."""
    n = min(resamples, max(_FEWEST, _DRAWS // (cost or units)))
    if n * units <= _KEPT:
        yield _all_draws(units, n, seed)
        return
    rng, rows = np.random.default_rng(seed), max(1, _KEPT // units)
    for start in range(0, n, rows):
        yield rng.multinomial(units, np.full(units, 1 / units), size=min(rows, n - start))


@lru_cache(maxsize=8)
def _all_draws(units: int, resamples: int, seed: int) -> np.ndarray:
    drawn = np.random.default_rng(seed).multinomial(units, np.full(units, 1 / units), size=resamples)
    drawn.setflags(write=False)
    return drawn


def percentile_interval(values: np.ndarray, *, trials: int | None = None, confidence: float = 0.95) -> Interval:
    """The interval of one column of `bootstrap`.

    Args:
        values: (1 + resamples,), the value itself first; NaN among the others is left out.
        trials: of a share: where all resamples agree, the interval is Wilson's with so many trials.
        confidence: share of the resamples that the percentile interval holds.

    Returns:
        An interval that contains the value; one of NaN where all resamples agree and *trials* are not given.
    """
    value, drawn = float(values[0]), values[1:][~np.isnan(values[1:])]
    if len(drawn) < 2 or np.ptp(drawn) <= 1e-12 * max(1.0, abs(value)):  # equal, but for rounding
        return Interval(value, *((math.nan, math.nan) if trials is None else wilson(value, trials)))
    low, high = np.percentile(drawn, [50 - 50 * confidence, 50 + 50 * confidence])
    return Interval(value, min(float(low), value), max(float(high), value))


def wilson(share: float, trials: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of independent trials.

    The share need not be a whole number of them, as it must be for scipy.stats.binomtest: it is one of items, and the
    trials are units.
    """
    centre = (share + _Z**2 / (2 * trials)) / (1 + _Z**2 / trials)
    half = _Z / (1 + _Z**2 / trials) * math.sqrt(share * (1 - share) / trials + _Z**2 / (4 * trials * trials))
    # It contains the share; rounding could leave 0 or 1 just outside.
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))
