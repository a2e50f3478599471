"""Intervals of the rates at a threshold, from people drawn anew.

Pairs that share people are no independent evidence: of a dozen people any number of pairs can be made, and they say
little more of other people than the dozen does. So people are drawn with replacement, as many as there are; a pair of
one person counts as often as that person was drawn, and a pair of two as often as the product of both, which is the
bootstrap of a statistic of pairs (Bolle, Ratha and Pankanti 2004 draw people for error rates of matchers in this way;
Snijders and Borgatti 1999 draw the ends of pairs). The intervals hold the middle 95 % of the rates.

Where all draws agree, as when no pair of two was accepted, the interval is Wilson's (1927) with the number of people
for the number of trials; that is wide, and on the safe side.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_array

from featcache.core.errors import UsageError
from featcache.metrics.classification import Interval, wilson
from featcache.metrics.likelihood_ratio import checked_pairs
from featcache.metrics.verification import OperatingPoint

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
    checked_pairs(np.asarray(scores)[~failed], same[~failed])
    number = np.unique(people, return_inverse=True)[1].reshape(-1, 2)
    accepted = (np.asarray(scores, dtype=np.float64) >= threshold) & ~failed
    count = int(number.max()) + 1
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=RESAMPLES).astype(float)

    own, two = number[same, 0], ~same & ~failed
    tried, taken = (np.bincount(own, weights, count) for weights in (None, accepted[same]))
    tar = _interval(int(taken.sum()), int(tried.sum()), drawn @ taken, drawn @ tried, len(np.unique(own)))

    def of_couples(rows: np.ndarray) -> np.ndarray:
        table = coo_array((np.ones(rows.sum()), tuple(number[rows].T)), shape=(count, count)).tocsr()
        return np.asarray(((table @ drawn.T) * drawn.T).sum(axis=0))

    far = _interval(
        int((two & accepted).sum()),
        int(two.sum()),
        of_couples(two & accepted),
        of_couples(two),
        len(np.unique(number[two])),
    )
    return OperatingPoint(float(threshold), far, tar)


def _interval(taken: int, tried: int, drawn_taken: np.ndarray, drawn_tried: np.ndarray, people: int) -> Interval:
    """A share and its interval, from the same two counts in each draw."""
    share = taken / tried
    counts = drawn_tried > 0  # of so few people a draw may hold no such pair
    shares = drawn_taken[counts] / drawn_tried[counts]
    if len(shares) < 2 or np.ptp(shares) < 1e-12:
        return Interval(share, *wilson(share, people))
    low, high = np.percentile(shares, [2.5, 97.5])
    return Interval(share, min(float(low), share), max(float(high), share))
