"""The decision threshold for a false accept rate (FAR), from the scores of pairs of different people.

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

import numpy as np

from featcache.core.errors import UsageError

RULE_OF_THREE = 3
"""So many false accepts must be expected of the pairs at hand, or they cannot tell a rate of that size from one of 0
(Hanley and Lippman-Hand 1983; ISO/IEC 19795-1, annex B)."""


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
