"""Units are never torn apart, and a draw depends on names alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold

from featcache.core.errors import UsageError
from featcache.metrics.splits import folds, set_aside, units, usable_k

if TYPE_CHECKING:
    import random


@dataclass(frozen=True)
class Thing:
    sha256: bytes
    group: str | None = None


def thing(content: int, group: str | None = None) -> Thing:
    return Thing(hashlib.sha256(b"%d" % content).digest(), group)


THINGS = st.lists(
    st.builds(thing, st.integers(0, 12), st.none() | st.sampled_from("pqrstu")), min_size=1, max_size=30
)  # fmt: skip
LABELLED = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(0, 25).map(str)), min_size=1, max_size=60
)  # fmt: skip


def test_content_and_group_link_in_chains() -> None:
    # 0 and 1 share their content, 1 and 2 their group, 2 and 3 their content: all four are one unit.
    items = [thing(1), thing(1, "p"), thing(2, "p"), thing(2), thing(3), thing(4, "q"), thing(5, "q"), thing(6)]
    assert units(items).tolist() == [0, 0, 0, 0, 1, 2, 2, 3]


def test_one_content_in_two_groups_joins_the_groups() -> None:
    items = [thing(1, "q"), thing(2, "p"), thing(3, "q"), thing(3, "p"), thing(4, "r")]
    assert units(items).tolist() == [0, 0, 0, 0, 1]


def test_a_group_called_like_a_hash_is_no_content() -> None:
    content = thing(1)
    assert units([content, thing(2, content.sha256.hex())]).tolist() == [0, 1]


@given(THINGS)
def test_units_are_the_connected_components(items: list[Thing]) -> None:
    together = [{i} for i in range(len(items))]
    for i, one in enumerate(items):
        for j, other in enumerate(items[:i]):
            linked = one.sha256 == other.sha256 or (one.group is not None and one.group == other.group)
            if linked and together[i] is not together[j]:
                merged = together[i] | together[j]
                for member in merged:
                    together[member] = merged
    found = units(items)
    for i in range(len(items)):
        assert set(np.flatnonzero(found == found[i]).tolist()) == together[i]
    assert list(dict.fromkeys(found.tolist())) == list(range(found.max() + 1))


def test_links_join_units_in_chains() -> None:
    items = [thing(1), thing(2, "p"), thing(3), thing(4), thing(4), thing(5, "p")]
    assert units(items, [(0, 1), (2, 3)]).tolist() == [0, 0, 1, 1, 1, 0]
    assert units(items, [(3, 2), (1, 0)]).tolist() == [0, 0, 1, 1, 1, 0]


@given(THINGS, st.lists(st.tuples(st.integers(0, 29), st.integers(0, 29)), max_size=8))
def test_links_are_like_common_groups(items: list[Thing], links: list[tuple[int, int]]) -> None:
    links = [(a % len(items), b % len(items)) for a, b in links]
    # The same as if a further item were there for each link, with the content of one and the group of both.
    found = units(items, links)
    numbers = units(items).tolist()
    for a, b in links:
        numbers = [numbers[b] if number == numbers[a] else number for number in numbers]
    assert len(set(zip(found.tolist(), numbers, strict=True))) == len(set(numbers)) == len(set(found.tolist()))


def majority(labeled: list[tuple[str, str]]) -> dict[str, str]:
    """The most frequent label of each key, the smallest of equals."""
    labels: dict[str, list[str]] = {}
    for label, key in labeled:
        labels.setdefault(key, []).append(label)
    return {key: min(set(found), key=lambda name: (-found.count(name), name)) for key, found in labels.items()}


def drawn(labeled: list[tuple[str, str]], fraction: float = 0.2, seed: int = 0) -> dict[str, bool]:
    return set_aside([label for label, _ in labeled], [key for _, key in labeled], fraction, seed)


@given(LABELLED, st.floats(0.05, 0.95), st.integers(0, 5))
def test_each_class_gives_its_fraction_and_keeps_one(
    labeled: list[tuple[str, str]], fraction: float, seed: int
) -> None:
    aside = drawn(labeled, fraction, seed)
    labels = majority(labeled)
    assert aside.keys() == labels.keys()
    for name in set(labels.values()):
        of_class = [aside[key] for key in labels if labels[key] == name]
        count = sum(of_class)
        assert len(of_class) - count >= 1
        if len(of_class) == 1:
            assert count == 0
        else:
            assert count >= 1
            assert count in (1, len(of_class) - 1) or abs(count - fraction * len(of_class)) <= 0.5


@given(LABELLED, st.integers(0, 5), st.randoms(use_true_random=False))
def test_the_order_of_the_items_is_irrelevant(
    labeled: list[tuple[str, str]], seed: int, rng: random.Random
) -> None:  # fmt: skip
    shuffled = labeled.copy()
    rng.shuffle(shuffled)
    assert drawn(shuffled, seed=seed) == drawn(labeled, seed=seed)


def test_another_seed_is_another_draw() -> None:
    labeled = [("ab"[i % 2], str(i)) for i in range(100)]
    assert len({tuple(sorted(drawn(labeled, seed=seed).items())) for seed in range(5)}) == 5


PROBLEMS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 14)), min_size=20, max_size=80)


@settings(deadline=None)
@given(PROBLEMS, st.integers(2, 4))
def test_folds_test_each_row_once_and_tear_no_unit_apart(pairs: list[tuple[int, int]], k: int) -> None:
    # A unit has one class here: unit u of class c is called (c, u).
    y = np.array(["abc"[c] for c, _ in pairs])
    rows = np.array([15 * c + u for c, u in pairs], dtype=np.int64)
    usable = usable_k(y, rows, k)
    if usable < k:
        with pytest.raises(UsageError, match="Class"):
            folds(y, rows, k)
    if usable:
        parts = folds(y, rows, usable)
        assert len(parts) == usable
        assert sorted(np.concatenate([test for _, test in parts]).tolist()) == list(range(len(y)))
        for train_rows, test in parts:
            assert sorted([*train_rows.tolist(), *test.tolist()]) == list(range(len(y)))
            assert not set(rows[train_rows].tolist()) & set(rows[test].tolist())


@pytest.mark.parametrize("repeated", [1, 3])
def test_folds_are_stratified(repeated: int) -> None:
    y = np.repeat(np.array(["a"] * 30 + ["b"] * 10), repeated)
    parts = folds(y, np.repeat(np.arange(40), repeated), 5)
    for _, test in parts:
        assert (y[test] == "a").sum() == 6 * repeated
        assert (y[test] == "b").sum() == 2 * repeated


UNITS_OF_ONE_CLASS = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 6)), min_size=15, max_size=60)


@settings(deadline=None)
@given(UNITS_OF_ONE_CLASS, st.integers(2, 5), st.integers(0, 9))
def test_folds_of_uneven_units_differ_by_no_more_than_a_unit(sizes: list[tuple[int, int]], k: int, seed: int) -> None:
    y = np.concatenate([np.full(n, "abc"[c]) for c, n in sizes])
    rows = np.repeat(np.arange(len(sizes)), [n for _, n in sizes])
    usable = usable_k(y, rows, k)
    for label in np.unique(y) if usable else ():
        counts = [(y[test] == label).sum() for _, test in folds(y, rows, usable, seed)]
        largest = max(n for c, n in sizes if "abc"[c] == label)
        assert max(counts) - min(counts) <= largest
        assert min(counts) >= 1


@pytest.mark.parametrize("seed", range(3))
def test_folds_of_mixed_units_are_as_even_as_scikit_learns(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, y = rng.integers(0, 120, 2000), rng.choice(5, 2000, p=[0.4, 0.3, 0.15, 0.1, 0.05])

    def unevenness(parts: Iterable[tuple[np.ndarray, np.ndarray]]) -> float:
        shares = [np.bincount(y[test], minlength=5) / np.bincount(y) for _, test in parts]
        return float(np.std(shares, axis=0).mean())

    ours = folds(y, rows, 5, seed)
    assert unevenness(ours) < 1.25 * unevenness(StratifiedGroupKFold(5).split(y, y, rows)) < 0.02
    assert all(not set(rows[train_rows]) & set(rows[test]) for train_rows, test in ours)


@pytest.mark.parametrize("groups", [40, 36])
def test_folds_follow_the_seed(groups: int) -> None:
    y, rows = np.array(["a", "b"] * 20), np.minimum(np.arange(40), groups - 1)
    first, same, other = (folds(y, rows, 4, seed)[0][1].tolist() for seed in (1, 1, 2))
    assert first == same
    assert first != other


def test_too_few_for_the_folds_names_class_count_and_remedy() -> None:
    y = np.array(["a"] * 10 + ["rare"] * 6)
    rows = np.array([*range(10), 10, 10, 11, 11, 12, 12])
    with pytest.raises(UsageError, match=r"'rare' has 3 independent items, too few for 5 folds.*Take 3 folds or more"):
        folds(y, rows, 5)
    assert usable_k(y, rows, 5) == 3


def test_a_class_with_one_unit_cannot_be_cross_validated() -> None:
    y = np.array(["a"] * 10 + ["rare"] * 3)
    rows = np.array([*range(10), 10, 10, 10])
    with pytest.raises(UsageError, match=r"'rare' has only one independent item.*Add images of it or leave it out"):
        folds(y, rows, 2)
    assert usable_k(y, rows, 5) == 0


@settings(deadline=None)
@given(UNITS_OF_ONE_CLASS, st.integers(2, 5), st.integers(0, 9))
def test_rare_classes_are_allowed_where_that_is_said(sizes: list[tuple[int, int]], k: int, seed: int) -> None:
    y = np.concatenate([np.full(n, "abc"[c]) for c, n in sizes])
    rows = np.repeat(np.arange(len(sizes)), [n for _, n in sizes])
    parts = folds(y, rows, k, seed, fewest=1)
    assert sorted(np.concatenate([test for _, test in parts]).tolist()) == list(range(len(y)))
    for label in np.unique(y):
        units = len(np.unique(rows[y == label]))
        assert sum(label in y[test] for _, test in parts) == min(units, k)
    with pytest.raises(UsageError, match="independent"):
        folds(y, rows, k, seed, fewest=len(sizes) + 1)
