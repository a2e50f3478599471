"""What a score says about a pair: a likelihood ratio, and a decision at a false accept rate.

The natural logarithm of the **likelihood ratio** is a line in the score, fitted by logistic regression with the
two kinds of pairs weighted alike (Brümmer and du Preez 2006), so that the line is a ratio of
likelihoods and no posterior of the pairs at hand. Scores that separate the kinds wholly would get a line of infinite
slope; a weak Gaussian prior on the slope (after Gelman et al. 2008, who take a Cauchy prior) keeps it finite.

The **threshold** is an order statistic of the scores of different people's pairs. Of n exchangeable scores a further
one lies above the k-th largest with probability k / (n + 1), whatever their distribution (David and Nagaraja 2003);
thus, if scores are exchangeable, the rate to be expected of further pairs is met, and not that of the pairs that the
threshold was chosen on. Pairs that share a person are not exchangeable, and where few people make many pairs the
rate comes out too high by a third or more. Where it is known who is on them, each pair is therefore ranked among
the pairs of all other people, and the rate of the pairs so left out is what is set to the target (cross-validation
over people, in the manner of the leave-one-out ranks of Barber et al. 2021). That mends the rate, and adds no
evidence: 3 / far pairs of few people are fewer independent ones, see `featcache.faces.calibration.Evidence`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from featcache.core.errors import UsageError
from featcache.metrics.calibration import sigmoid

RULE_OF_THREE = 3
"""So many false accepts must be expected of the pairs at hand, or they cannot tell a rate of that size from one of 0
(Hanley and Lippman-Hand 1983; ISO/IEC 19795-1, annex B)."""

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


def threshold_at(negatives: np.ndarray, far: float, *, people: np.ndarray | None = None) -> float:
    """The smallest threshold whose expected false accept rate on unseen pairs is *far*.

    The rate that is expected at the k-th largest score is k / (n + 1); between two scores it is taken as a line,
    which where the density falls towards large scores errs on the safe side. Where the score next to the threshold
    occurs several times, the threshold lies above it.

    Args:
        negatives: (n,) finite scores of pairs of different people.
        far: between 0 and 1.
        people: (n, 2) labels of the two people of each pair, or None where no two pairs share one.

    Raises:
        UsageError: there are fewer than 3 / far, or a pair is of one person.
    """
    check_negatives(len(negatives), far)
    negatives = np.asarray(negatives, dtype=np.float64)
    share = far if people is None else float(np.quantile(_ranks_left_out(negatives, people), far, method="weibull"))
    at = float(np.quantile(negatives, 1 - share, method="weibull"))
    if np.count_nonzero(negatives >= at) <= share * (len(negatives) + 1) + 1e-9:
        return at
    return float(np.nextafter(at, np.inf))


def check_negatives(count: int, far: float) -> None:
    """Refuse a false accept rate that so many pairs of different people cannot tell from 0.

    Raises:
        UsageError: there are fewer than 3 / far.
    """
    needed = fewest_negatives(far)
    if count < needed:
        raise UsageError(
            f"A false accept rate of {far:g} needs the scores of at least {needed} pairs of different people, for "
            f"three to be accepted; there are {count}. Give more pairs, or ask for a rate of at least "
            f"{math.ceil(RULE_OF_THREE / max(count, 1) * 1e4) / 1e4:g}."
        )


def fewest_negatives(far: float) -> int:
    """The pairs of different people that are needed to speak of a false accept rate: 3 / far, rounded up."""
    return math.ceil(RULE_OF_THREE / far - 1e-9)


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


def _ranks_left_out(negatives: np.ndarray, people: np.ndarray) -> np.ndarray:
    """(n,) the rank of each score among the pairs of other people, from the largest, as a share of them."""
    number = np.unique(people, return_inverse=True)[1].reshape(-1, 2)
    if number.shape != (len(negatives), 2) or (number[:, 0] == number[:, 1]).any():
        raise UsageError(
            f"Pairs of different people need two different labels each; those of {len(negatives)} pairs were given "
            f"as shape {np.shape(people)}. Give (n, 2) labels that agree with what is said to be one person."
        )
    order = np.argsort(-negatives, kind="stable")
    number = number[order]
    couple = number.min(axis=1) * (number.max() + 1) + number.max(axis=1)
    couple = np.unique(couple, return_inverse=True)[1]
    # Of the pairs above, those that share a person; a pair of the same two was counted for either of them.
    sharing = _occurred_before(number.ravel()).reshape(-1, 2).sum(axis=1) - _occurred_before(couple)
    above = np.arange(len(number)) - sharing
    others = len(number) - np.bincount(number.ravel())[number].sum(axis=1) + np.bincount(couple)[couple]
    return np.asarray((above + 1) / (others + 1))


def _occurred_before(numbers: np.ndarray) -> np.ndarray:
    """(n,) how often each of the (n,) numbers stands before its place."""
    order = np.argsort(numbers, kind="stable")
    ends = np.cumsum(np.bincount(numbers))
    sizes = np.diff(ends, prepend=0)
    before = np.empty(len(numbers), dtype=np.int64)
    before[order] = np.arange(len(numbers)) - np.repeat(ends - sizes, sizes)
    return before


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
