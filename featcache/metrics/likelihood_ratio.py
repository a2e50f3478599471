"""What a score says about a pair: a likelihood ratio, with a threshold for a false accept rate.

The natural logarithm of the **likelihood ratio** is a line in the score, fitted by logistic regression with the
two kinds of pairs weighted alike (Brümmer and du Preez 2006), so that the line is a ratio of
likelihoods and no posterior of the pairs at hand. Scores that separate the kinds wholly would get a line of infinite
slope; a weak Gaussian prior on the slope (after Gelman et al. 2008, who take a Cauchy prior) keeps it finite.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from featcache.core.errors import UsageError
from featcache.metrics.calibration import sigmoid
from featcache.metrics.far_threshold import threshold_at

_STEEP = 10.0
"""Standard deviation of the prior on the slope, for scores in units of their own standard deviation."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """How scores are turned into likelihood ratios, probabilities and decisions.

    Attributes:
        slope, offset: the natural logarithm of the likelihood ratio is slope · score + offset; slope ≥ 0.
        threshold: a pair is said to show one person where its score is at least this.
        far: the false accept rate that the threshold was set for, between 0 and 1.

    Raises:
        UsageError: a number is not finite, the slope is negative, or the rate is not between 0 and 1.
    """

    slope: float
    offset: float
    threshold: float
    far: float

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, (self.slope, self.offset, self.threshold))) or self.slope < 0:
            raise UsageError(
                f"A calibration needs finite numbers and a slope of at least 0, not slope {self.slope}, offset "
                f"{self.offset}, threshold {self.threshold}. Fit it again on pairs whose scores are finite."
            )
        _check_rate(self.far)

    def llr(self, scores: np.ndarray) -> np.ndarray:
        """(n,) float64 natural logarithms of the likelihood ratios "one person" to "two", of (n,) scores."""
        return np.asarray(self.slope * np.asarray(scores, dtype=np.float64) + self.offset)

    def probability(self, scores: np.ndarray, prior: float = 0.5) -> np.ndarray:
        """The probability that each pair shows one person, by Bayes' rule.

        Args:
            scores: (n,); of NaN the probability is NaN.
            prior: the probability before the pair was looked at, strictly between 0 and 1.

        Returns:
            (n,) float64.

        Raises:
            UsageError: the prior is not between 0 and 1.
        """
        if not 0 < prior < 1:
            raise UsageError(f"The prior probability of one person must lie between 0 and 1; {prior} does not.")
        odds = self.llr(scores) + math.log(prior) - math.log1p(-prior)
        return sigmoid(odds)

    def decide(self, scores: np.ndarray) -> np.ndarray:
        """(n,) bool, whether each of the (n,) scores reaches the threshold; NaN does not."""
        # Not in float32, to which the threshold would be rounded.
        return np.asarray(np.asarray(scores, dtype=np.float64) >= self.threshold)


def fit_calibration(
    scores: np.ndarray, same: np.ndarray, far: float, *, people: np.ndarray | None = None
) -> Calibration:
    """Learn from pairs what scores say.

    Args:
        scores: (n,) of pairs of people on whom what is compared was not learned, larger = more alike.
        same: (n,) bool, whether the pair shows one person.
        far: the false accept rate that the threshold is for, between 0 and 1; at least 3 / far pairs of
            different people are needed.
        people: (n, 2) labels of who is on each pair, as far as people occur in several pairs; without it the
            pairs are taken for independent of each other.

    Raises:
        UsageError: a kind of pair is missing or too few, a score is not finite, all are equal, or the pairs of
            one person score lower than those of two.
    """
    _check_rate(far)
    scores, same = checked_pairs(scores, same)
    threshold = threshold_at(scores[~same], far, people=None if people is None else np.asarray(people)[~same])
    slope, offset = _line(scores, same)
    return Calibration(slope, offset, threshold, far)


def checked_pairs(scores: np.ndarray, same: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n,) scores as float64 and (n,) bool, both kinds of pairs among them.

    Raises:
        UsageError: they do not match, a score is not finite, or a kind of pair is missing.
    """
    scores, same = np.asarray(scores, dtype=np.float64), np.asarray(same)
    if scores.ndim != 1 or scores.shape != same.shape or same.dtype != np.bool_:
        raise UsageError(
            f"Pairs have one score and one truth value each; these are of shapes {scores.shape} and {same.shape}, "
            f"of {same.dtype}. Give (n,) scores and (n,) bool."
        )
    if not np.isfinite(scores).all():
        raise UsageError(
            f"{np.count_nonzero(~np.isfinite(scores))} of {len(scores)} scores are not finite. "
            "Leave out the pairs that could not be scored."
        )
    for kind, number in (("one person", same.sum()), ("different people", (~same).sum())):
        if not number:
            raise UsageError(f"None of the {len(same)} pairs shows {kind}. Both kinds are needed.")
    return scores, same


def _check_rate(far: float) -> None:
    if not 0 < far < 1:
        raise UsageError(f"A false accept rate lies between 0 and 1, as 0.001 does; {far} does not.")


def _line(scores: np.ndarray, same: np.ndarray) -> tuple[float, float]:
    """Slope and offset of the natural logarithm of the likelihood ratio."""
    from scipy.optimize import minimize

    if not np.ptp(scores) > 0:
        raise UsageError("All pairs have the same score, so it says nothing. Look at the vectors they come from.")
    positives, negatives = int(same.sum()), int((~same).sum())
    weight = np.where(same, 0.5 / positives, 0.5 / negatives)
    centre = float(weight @ scores)
    scale = math.sqrt(weight @ (scores - centre) ** 2)
    z = (scores - centre) / scale
    # The prior weighs against so many pairs: all of them where both kinds are equally many, else at most four
    # times the rarer kind, for it is the rarer one that makes the balanced loss uncertain.
    penalty = (1 / positives + 1 / negatives) / (4 * _STEEP**2)

    def loss(line: np.ndarray) -> tuple[float, np.ndarray]:
        x = line[0] * z + line[1]
        softplus = np.logaddexp(0.0, x)
        residual = weight * (np.exp(x - softplus) - same)
        value = weight @ (softplus - same * x) + penalty * line[0] ** 2 / 2
        return float(value), np.array([residual @ z + penalty * line[0], residual.sum()])

    def curvature(line: np.ndarray) -> np.ndarray:
        x = line[0] * z + line[1]
        bend = weight * np.exp(x - 2 * np.logaddexp(0.0, x))
        mixed = bend @ z
        return np.array([[bend @ (z * z) + penalty, mixed], [mixed, bend.sum()]])

    found = minimize(loss, np.zeros(2), jac=True, hess=curvature, method="trust-exact", options={"gtol": 1e-9})
    steepness = float(found.x[0])
    if steepness < -1e-6:
        raise UsageError(
            "Pairs of one person score lower than pairs of different people, so no threshold on the score makes "
            "sense. Look whether distances were given for scores, or the labels are mixed up."
        )
    slope = max(0.0, steepness) / scale
    return slope, float(found.x[1] - slope * centre)
