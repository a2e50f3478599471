"""Pairs are all there are, or a fair sample."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from featcache.metrics.verification import pairs_within


def unordered(pairs: np.ndarray) -> list[tuple[int, int]]:
    return [(min(pair), max(pair)) for pair in pairs.tolist()]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=25), st.integers(0, 700))
def test_against_all_pairs_by_hand(identities: list[int], limit: int) -> None:
    y = np.array(identities)
    every = set(combinations(range(len(y)), 2))
    pairs, same = pairs_within(y, limit, 1)
    found = unordered(pairs)
    assert len(set(found)) == len(found) <= limit
    assert set(found) <= every
    assert same.tolist() == [y[a] == y[b] for a, b in found]
    mates = {(a, b) for a, b in every if y[a] == y[b]}
    assert same.sum() == min(len(mates), limit // 2)
    if limit >= 2 * len(every):
        assert set(found) == every


def test_a_sample_is_full_fair_and_of_one_seed() -> None:
    y = np.repeat(np.arange(40), 25)
    pairs, same = pairs_within(y, 8000, 5)
    assert len(pairs) == 8000
    assert same.sum() == 4000
    np.testing.assert_array_equal(pairs, pairs_within(y, 8000, 5)[0])
    # Each row is expected in 8 pairs of either kind; five standard deviations.
    for kind in (same, ~same):
        drawn = np.bincount(pairs[kind].ravel(), minlength=len(y))
        assert abs(drawn - 8).max() < 5 * np.sqrt(8) + 1
