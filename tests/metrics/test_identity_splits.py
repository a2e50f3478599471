"""Nobody stands on both sides of a split of identities."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from featcache.metrics import splits

PEOPLE = np.repeat([f"p{i}" for i in range(23)], np.arange(23) % 4 + 1)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 20)), min_size=1, max_size=60), st.integers(2, 6))
def test_identities_and_groups_stay_whole(rows: list[tuple[int, int]], k: int) -> None:
    y, groups = np.array(rows).T
    fold = splits.identity_folds(y, k, 3, groups)
    for parts in (y, groups):
        for part in np.unique(parts):
            assert len(np.unique(fold[parts == part])) == 1


def test_folds_have_as_many_identities_each() -> None:
    fold = splits.identity_folds(PEOPLE, 4, 0)
    sizes = [len(np.unique(PEOPLE[fold == held])) for held in range(4)]
    assert sorted(sizes) == [5, 6, 6, 6]


def test_the_order_of_rows_does_not_matter() -> None:
    order = np.random.default_rng(0).permutation(len(PEOPLE))
    np.testing.assert_array_equal(
        splits.identity_folds(PEOPLE[order], 5, 2), splits.identity_folds(PEOPLE, 5, 2)[order]
    )


def test_a_chain_of_groups_holds_together() -> None:
    y = np.array(["a", "b", "b", "c", "d", "e"])
    groups = np.array([1, 1, 2, 2, 3, 4])
    fold = splits.identity_folds(y, 2, 0, groups)
    assert len(set(fold[:4].tolist())) == 1
    assert set(fold.tolist()) == {0, 1}
