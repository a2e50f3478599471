"""Rates at a threshold with intervals over people, against the same drawn in plain loops."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from featcache.core.errors import UsageError
from featcache.metrics.intervals import wilson
from featcache.metrics.verification import RESAMPLES, point_by_people


def simulated(people: int, each: int, seed: int, between: float = 1.0):
    """Scores of all pairs of images, which kind they are, and who is on them."""
    rng = np.random.default_rng(seed)
    y = np.repeat(np.arange(people), each)
    Z = between * rng.normal(size=(people, 4))[y] + rng.normal(size=(len(y), 4))
    Z /= np.linalg.norm(Z, axis=1, keepdims=True)
    pairs = np.array(list(combinations(range(len(y)), 2)))
    return np.einsum("np,np->n", *(Z[side] for side in pairs.T)), y[pairs[:, 0]] == y[pairs[:, 1]], y[pairs]


def test_fast_equals_slow() -> None:
    scores, same, people = simulated(9, 3, 0)
    failed = np.random.default_rng(1).random(len(scores)) < 0.1
    point = point_by_people(scores, same, people, 0.4, failed, seed=5)
    times = np.random.default_rng(5).multinomial(9, np.full(9, 1 / 9), size=RESAMPLES)
    rates = {"far": [], "tar": []}
    for drawn in times:
        for name in rates:
            taken = tried = 0
            for score, alike, (a, b), out in zip(scores, same, people, failed, strict=True):
                if alike == (name == "tar") and (alike or not out):
                    weight = drawn[a] if alike else drawn[a] * drawn[b]
                    tried += weight
                    taken += weight * (score >= 0.4 and not out)
            if tried:
                rates[name].append(taken / tried)
    for name, kind in (("far", ~same & ~failed), ("tar", same)):
        found = getattr(point, name)
        assert found.value == pytest.approx(((scores >= 0.4) & ~failed)[kind].mean())
        assert (found.low, found.high) == pytest.approx(tuple(np.percentile(rates[name], [2.5, 97.5])))
    assert point.threshold == 0.4


def test_neither_order_nor_names_matter() -> None:
    scores, same, people = simulated(8, 3, 2)
    order = np.random.default_rng(0).permutation(len(scores))
    names = np.array([f"p{i}" for i in range(8)])
    point = point_by_people(scores, same, people, 0.5)
    other = point_by_people(scores[order], same[order], names[people][order][:, ::-1], 0.5)
    for a, b in ((point.far, other.far), (point.tar, other.tar)):
        assert (b.value, b.low, b.high) == pytest.approx((a.value, a.low, a.high))


def test_where_nothing_is_accepted_the_interval_counts_people() -> None:
    scores, same, people = simulated(10, 3, 3)
    point = point_by_people(scores, same, people, 2.0)
    assert (point.far.value, point.tar.value) == (0, 0)
    assert (point.far.low, point.far.high) == pytest.approx(wilson(0.0, 10))
    assert point.far.high > 0.2


def test_the_truth_lies_within_more_often_than_if_pairs_were_independent() -> None:
    rates = [[], []]
    held, naive = np.zeros(2), np.zeros(2)
    draws = 60
    points = []
    for seed in range(draws):
        scores, same, people = simulated(12, 5, 100 + seed)
        points.append((point_by_people(scores, same, people, 0.6), int((~same).sum()), int(same.sum())))
    for point, _, _ in points:
        rates[0].append(point.far.value)
        rates[1].append(point.tar.value)
    truth = np.mean(rates, axis=1)
    for point, negatives, positives in points:
        for i, (rate, n) in enumerate(((point.far, negatives), (point.tar, positives))):
            held[i] += rate.low <= truth[i] <= rate.high
            low, high = wilson(rate.value, n)
            naive[i] += low <= truth[i] <= high
    assert (held > 0.8 * draws).all()
    assert (held > naive).all()


def test_what_does_not_match_is_refused() -> None:
    scores, same, people = simulated(4, 2, 0)
    with pytest.raises(UsageError, match="two people each"):
        point_by_people(scores, same, people[:, 0], 0.5)
    with pytest.raises(UsageError, match="not finite"):
        point_by_people(np.where(same, np.nan, scores), same, people, 0.5)
    with pytest.raises(UsageError, match="different people"):
        point_by_people(scores[same], same[same], people[same], 0.5)
