"""Verification of pairs, one person or two: ROC curve, AUC, EER, TAR at a FAR, Cllr, and which pairs to score.

Everything follows from two rates at each threshold. The **false accept rate** (FAR) is the share of the pairs of
different people that reach it; the **true accept rate** (TAR) is the share of the pairs of one person that do
(ISO/IEC 19795-1).

A pair with an image that could not be scored is **failed**. On the ROC curve a failed pair of one person is a miss at
every threshold, so the TAR never reaches 1; a failed pair of different people is left out, as no accept can be false
where nothing is accepted, and a rate that fell with each failure would reward failing. In the accuracy, which must
call each pair one or the other, every failed pair is an error.

Intervals of a `Roc` are Wilson's (1927), as if pairs were independent. Pairs that share people are not: any number of
pairs can be made of a dozen people, and they say little more of other people than the dozen does. `point_by_people`
therefore draws people with replacement; a pair of one person counts as often as that person was drawn, and a pair of
two as often as the product of both, which is the bootstrap of a statistic of pairs (Bolle, Ratha and Pankanti 2004
draw people for error rates of matchers; Snijders and Borgatti 1999 draw the ends of pairs). Where all draws agree, as
when no pair of two was accepted, the interval is Wilson's with the number of people as trials; that is wide, and
conservative.

The curve is not scikit-learn's roc_curve, which equals it without failed pairs (tests), because to import
sklearn.metrics takes longer than to compare two faces.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from featcache.core.errors import UsageError
from featcache.metrics.far_threshold import fewest_negatives
from featcache.metrics.intervals import Interval, bootstrap, percentile_interval, wilson
from featcache.metrics.likelihood_ratio import checked_pairs

FARS = (1e-1, 1e-2, 1e-3, 1e-4)
_BLOCK = 2**22
"""Numbers gathered at a time, so that pairs of long vectors take no memory of their own."""


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """What happens at one threshold.

    Attributes:
        threshold: pairs that score at least this are accepted; infinite where none may be.
        far: share of the scored pairs of different people that are accepted.
        tar: share of all pairs of one person that are accepted, failed ones among them.

    Of a `Roc` the intervals are those that would hold if pairs were independent.
    """

    threshold: float
    far: Interval
    tar: Interval


@dataclass(frozen=True, slots=True)
class Roc:
    """The ROC curve: one point for each distinct score, so that the order of equal scores does not matter.

    Attributes:
        thresholds: (m,) float64, falling: infinity, then the scores that occur.
        far, tar: (m,) float64, rising from 0; the last FAR is 1, the last TAR the share of the pairs of one person
            that could be scored.
        same, different: pairs that the two rates are shares of.
    """

    thresholds: np.ndarray
    far: np.ndarray
    tar: np.ndarray
    same: int
    different: int

    def auc(self) -> float:
        """The area under the curve: the probability that a pair of one person scores more than one of two.

        That is the Mann–Whitney statistic, equal scores counted half (Hanley and McNeil 1982); a failed pair of
        one person loses against all.
        """
        return float(np.diff(self.far) @ (self.tar[1:] + self.tar[:-1]) / 2)

    def eer(self) -> float:
        """The equal error rate: the FAR where it equals 1 - TAR, on straight lines between the points."""
        gap = self.far + self.tar - 1  # from -1 to at least 0, never falling
        after = int(np.argmax(gap >= 0))
        step = -gap[after - 1] / (gap[after] - gap[after - 1])
        return float(self.far[after - 1] + step * (self.far[after] - self.far[after - 1]))

    def at_far(self, far: float) -> OperatingPoint:
        """The point with the largest TAR whose FAR on these pairs is at most *far*."""
        # Shares that are equal as fractions may differ in their last digit.
        return self._point(int(np.searchsorted(self.far, far + 1e-12, side="right")) - 1)

    def tar_at_far(self, fars: Sequence[float] = FARS) -> dict[float, OperatingPoint]:
        """The operating points at the FARs for which there are at least 3 / FAR scored pairs of different people.

        By the rule of three (Hanley and Lippman-Hand 1983; ISO/IEC 19795-1, annex B) fewer could not show a rate
        that small even with no false accept at all.
        """
        return {far: self.at_far(far) for far in fars if self.different >= fewest_negatives(far)}

    def _point(self, i: int) -> OperatingPoint:
        rates = (float(self.far[i]), self.different), (float(self.tar[i]), self.same)
        far, tar = (Interval(rate, *wilson(rate, n)) for rate, n in rates)
        return OperatingPoint(float(self.thresholds[i]), far, tar)


def cosine_scores(vectors: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """The cosine similarity of each pair.

    Args:
        vectors: (m, d) of real numbers.
        pairs: (n, 2) row numbers.

    Returns:
        (n,) float64 from -1 to 1; 0 with a vector of zeros, which points nowhere, and NaN with one that has a NaN.
    """
    pairs = np.asarray(pairs, dtype=np.int64).reshape(-1, 2)
    vectors = np.asarray(vectors)
    if vectors.dtype not in (np.float32, np.float64):
        vectors = vectors.astype(np.float32)
    norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
    dots = np.empty(len(pairs))
    block = max(1, _BLOCK // max(1, vectors.shape[1]))
    for start in range(0, len(pairs), block):
        first, second = pairs[start : start + block].T
        dots[start : start + block] = np.einsum("ij,ij->i", vectors[first], vectors[second], dtype=np.float64)
    length = norms[pairs[:, 0]] * norms[pairs[:, 1]]
    return np.asarray(np.clip(np.divide(dots, length, out=np.zeros_like(dots), where=length != 0), -1, 1))


def roc(scores: np.ndarray, same: np.ndarray, failed: np.ndarray | None = None) -> Roc:
    """The ROC curve of pairs.

    Args:
        scores: (n,) larger = more alike; those of failed pairs are not looked at.
        same: (n,) bool, whether the pair shows one person.
        failed: (n,) bool, whether the pair could not be scored; none by default.

    Raises:
        UsageError: a score that counts is not finite, or no pair of one of the kinds could be scored.
    """
    scores, same, missed = _scored(scores, same, failed)
    order = np.argsort(-scores, kind="stable")
    falling, positive = scores[order], same[order]
    last = np.append(np.flatnonzero(np.diff(falling)), len(falling) - 1)
    accepted = np.cumsum(positive)[last]
    positives, negatives = int(positive.sum()) + missed, int((~positive).sum())
    return Roc(
        np.append(np.inf, falling[last]),
        np.append(0.0, (last + 1 - accepted) / negatives),
        np.append(0.0, accepted / positives),
        positives,
        negatives,
    )


def best_threshold(scores: np.ndarray, same: np.ndarray) -> float:
    """The threshold with which most of these pairs are decided rightly.

    Args:
        scores: (n,) finite.
        same: (n,) bool.

    Returns:
        A number halfway between two neighboring scores (or the least score, or just above the largest, where
        it is best to accept all or none); of several that are equally good the middle one.

    Raises:
        UsageError: a score is not finite, or a kind of pair is missing.
    """
    scores, same = checked_pairs(scores, same)
    values, place = np.unique(scores, return_inverse=True)
    positives = np.bincount(place, same, len(values))
    negatives = np.bincount(place, ~same, len(values))
    # Pairs decided rightly where accepting begins at each value, and with none accepted.
    right = np.append(0.0, np.cumsum(negatives - positives)) + positives.sum()
    halfway = values[:-1] / 2 + values[1:] / 2
    # Between neighboring floats there is nothing; the upper one then parts them as well.
    halfway = np.where(halfway > values[:-1], halfway, values[1:])
    candidates = np.concatenate([values[:1], halfway, [np.nextafter(values[-1], np.inf)]])
    best = np.flatnonzero(right == right.max())
    return float(candidates[best[len(best) // 2]])


def cllr(llr: np.ndarray, same: np.ndarray) -> float:
    """What likelihood ratios cost, in bits: 0 for perfect ones, 1 for ones that always say nothing.

    The mean over both kinds of pairs of log2(1 + 1 / LR) and log2(1 + LR) (Brümmer and du Preez 2006).

    Args:
        llr: (n,) natural logarithms of the likelihood ratios; those of failed pairs may be given as 0.
        same: (n,) bool.

    Raises:
        UsageError: one is not finite, or a kind of pair is missing.
    """
    llr, same = checked_pairs(llr, same)
    misses, accepts = np.logaddexp(0, -llr[same]).mean(), np.logaddexp(0, llr[~same]).mean()
    return float((misses + accepts) / (2 * math.log(2)))


def minimal_cllr(scores: np.ndarray, same: np.ndarray) -> float:
    """The least Cllr that any rising function of the scores has on these pairs, in bits.

    That function comes from isotonic regression by the pool-adjacent-violators algorithm (Brümmer and du Preez
    2006). It depends on the order of the scores alone; equal scores are pooled from the start.

    Args:
        scores: (n,) finite.
        same: (n,) bool.

    Raises:
        UsageError: a score is not finite, or a kind of pair is missing.
    """
    from scipy.optimize import isotonic_regression

    scores, same = checked_pairs(scores, same)
    values, place = np.unique(scores, return_inverse=True)
    # Both kinds weigh alike, so that the odds of a pool are its likelihood ratio.
    positive = np.bincount(place, same, len(values)) / same.sum()
    negative = np.bincount(place, ~same, len(values)) / (~same).sum()
    total = positive + negative
    share = np.clip(isotonic_regression(positive / total, weights=total).x, 0, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        # Where a pool holds one kind alone its cost is 0 · log 0, which is 0.
        cost = np.where(positive > 0, -positive * np.log2(share), 0) + np.where(
            negative > 0, -negative * np.log2(1 - share), 0
        )
    return float(cost.sum() / 2)


def _scored(scores: np.ndarray, same: np.ndarray, failed: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, int]:
    """The scores and kinds of the pairs that were scored, and how many pairs of one person were not."""
    scores, same = np.asarray(scores, dtype=np.float64), np.asarray(same)
    if failed is None:
        return *checked_pairs(scores, same), 0
    failed = np.asarray(failed)
    if failed.shape != scores.shape or failed.shape != same.shape or failed.dtype != np.bool_:
        raise UsageError(f"{len(failed)} truth values say which of {len(scores)} pairs failed. Give (n,) bool.")
    missed = int((same & failed).sum())
    return *checked_pairs(scores[~failed], same[~failed]), missed


def pairs_within(identities: np.ndarray, limit: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of rows.

    Pairs of one identity are all taken, or half the limit of them at random; pairs of two identities fill the rest,
    all or at random. Each pair is as likely as any other of its kind, so identities with more images have more.

    Args:
        identities: (n,) of each row.
        limit: at most so many pairs.
        seed: of what is drawn.

    Returns:
        (m, 2) int64 row numbers, no pair twice and no row with itself, and (m,) bool, which show one identity.
    """
    rng = np.random.default_rng(seed)
    numbers = np.unique(identities, return_inverse=True)[1]
    counts = np.bincount(numbers)
    ends = np.cumsum(counts * (counts - 1) // 2)
    drawn = _drawn(int(ends[-1]), limit // 2, rng)
    owner = np.searchsorted(ends, drawn, side="right")
    first, second = of_triangle(drawn - np.where(owner > 0, ends[owner - 1], 0))
    rows, start = np.argsort(numbers, kind="stable"), (np.cumsum(counts) - counts)[owner]
    same = np.stack([rows[start + second], rows[start + first]], axis=1)

    total, room = math.comb(len(numbers), 2), limit - len(same)
    share = max(1 - int(ends[-1]) / max(total, 1), 1 / max(room, 1))
    # As many more as turn out to be of one identity, and a few for chance.
    wanted = room if total <= room else math.ceil((room + 6 * math.sqrt(room) + 20) / share)
    first, second = of_triangle(_drawn(total, wanted, rng))
    different = np.stack([second, first], axis=1)[numbers[first] != numbers[second]]
    if len(different) > room:
        different = different[rng.permutation(len(different))[:room]]
    pairs = np.concatenate([same, different])
    return pairs, np.arange(len(pairs)) < len(same)


def _drawn(total: int, wanted: int, rng: np.random.Generator) -> np.ndarray:
    """All numbers below *total* in order, or *wanted* of them at random."""
    return np.arange(total) if total <= wanted else rng.choice(total, wanted, replace=False)


def of_triangle(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pairs (i, j), i > j, that have these numbers in the order (1, 0), (2, 0), (2, 1), (3, 0), and so on."""
    first = ((1 + np.sqrt(8.0 * numbers + 1)) / 2).astype(np.int64)
    # Rounding may lead one too far, where numbers are large.
    first -= first * (first - 1) // 2 > numbers
    first += first * (first + 1) // 2 <= numbers
    return first, numbers - first * (first - 1) // 2


RESAMPLES = 400


def point_by_people(
    scores: np.ndarray,
    same: np.ndarray,
    people: np.ndarray,
    threshold: float,
    failed: np.ndarray | None = None,
    *,
    seed: int = 0,
) -> OperatingPoint:
    """The rates where pairs that score at least *threshold* are accepted, with intervals over people.

    Args:
        scores: (n,) larger = more alike; those of failed pairs are not looked at.
        same: (n,) bool, whether the pair shows one person.
        people: (n, 2) labels of who is on each pair; those of a pair of one person are equal.
        threshold: pairs that score at least this are accepted.
        failed: (n,) bool, whether the pair could not be scored; none by default. Such a pair of one person is a miss,
            such a pair of two takes no part.
        seed: of the draws.

    Raises:
        UsageError: the arrays do not match, a score that counts is not finite, or a kind of pair is missing.
    """
    same = np.asarray(same)
    failed = np.zeros(len(same), dtype=np.bool_) if failed is None else np.asarray(failed)
    if np.shape(people) != (len(same), 2) or failed.shape != same.shape or np.shape(scores) != same.shape:
        raise UsageError(
            f"{len(same)} pairs have as many scores, and two people each; scores are of shape {np.shape(scores)}, "
            f"people of {np.shape(people)}. Give (n,) scores and (n, 2) labels."
        )
    from scipy.sparse import coo_array

    checked_pairs(np.asarray(scores)[~failed], same[~failed])
    number = np.unique(people, return_inverse=True)[1].reshape(-1, 2)
    accepted = (np.asarray(scores, dtype=np.float64) >= threshold) & ~failed
    count = int(number.max()) + 1
    own, two = number[same, 0], ~same & ~failed
    tried, taken = (np.bincount(own, weights, count) for weights in (None, accepted[same]))
    couples, false = (
        coo_array((np.ones(rows.sum()), tuple(number[rows].T)), shape=(count, count)).tocsr()
        for rows in (two, two & accepted)
    )

    def rates(times: np.ndarray) -> list[float]:
        # Of few people a draw may hold no pair of a kind: 0 / 0 is NaN, which is left out.
        with np.errstate(invalid="ignore"):
            wrong, compared = times @ (false @ times), times @ (couples @ times)
            return [np.divide(wrong, compared), np.divide(times @ taken, times @ tried)]

    far, tar = bootstrap(rates, count, resamples=RESAMPLES, seed=seed).T
    return OperatingPoint(
        float(threshold),
        percentile_interval(far, trials=len(np.unique(number[two]))),
        percentile_interval(tar, trials=len(np.unique(own))),
    )
