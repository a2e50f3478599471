"""The items that advice is taken from, and their folds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featcache.core.errors import UsageError
from featcache.core.progress import Silent
from featcache.finetuning.advise import advise
from featcache.finetuning.advise.learning_items import LearningItems, learning_items, shared
from featcache.finetuning.advise.words import of_items
from featcache.metrics import splits
from featcache.store import Item
from featcache.training.dataset import FeatureDataset

from ..store.making import keys
from .advise_making import store_of


@given(st.integers(0, 99), st.floats(0.05, 1))
def test_a_draw_keeps_units_whole_and_every_class(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    y, units = rng.integers(0, 3, 30), rng.integers(0, 12, 30)
    taken = shared(y, units, share, np.random.default_rng(seed))
    assert set(y[taken]) == set(y)
    assert not set(units[taken]) & set(np.delete(units, taken))


def test_a_class_of_one_item_is_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = store_of(tmp_path / "s.fcache", ["a"] * 8 + ["b"] * 2, {"pooled": rng.normal(size=(10, 4))})
    with pytest.raises(UsageError, match="'b' has one independent image alone among the 7"):
        advise(path, progress=False)
    path = store_of(tmp_path / "t.fcache", ["a"] * 8, {"pooled": rng.normal(size=(8, 4))})
    with pytest.raises(UsageError, match="one class"):
        advise(path, progress=False)


def labelled(y: Sequence[str], groups: Sequence[object] = (), X: np.ndarray | None = None) -> FeatureDataset:
    """Labelled vectors, all the same unless given; items of one group are one unit."""
    X = np.zeros((len(y), 2), np.float32) if X is None else X
    items = [
        Item("s", f"{i:03}.jpg", key, label, None, str(groups[i]) if len(groups) else None)
        for i, (key, label) in enumerate(zip(keys(len(y)), y, strict=True))
    ]
    return FeatureDataset(items, np.array(y), splits.units(items), ["pooled"], [X.shape[1:]], None, lambda at: X[at])


def drawn(dataset: FeatureDataset, seed: int = 0) -> LearningItems:
    return learning_items(dataset, np.arange(len(dataset.y)), seed, Silent())


@given(st.integers(2, 4), st.integers(0, 99))
def test_what_belongs_together_lies_in_one_fold(together: int, seed: int) -> None:
    groups = np.repeat(np.arange(24), together)
    found = drawn(labelled(["ab"[group % 2] for group in groups], groups), seed)
    assert len(found.folds) == 5
    assert sorted(np.concatenate([test for _, test in found.folds])) == list(range(len(groups)))
    for train_rows, test in found.folds:
        assert not set(groups[train_rows]) & set(groups[test])
        assert len(train_rows) + len(test) == len(groups)


@settings(deadline=None)
@given(st.lists(st.integers(2, 12), min_size=2, max_size=8), st.integers(1, 3), st.integers(0, 9))
def test_a_rare_class_does_not_take_the_folds_of_all(sizes: list[int], copies: int, seed: int) -> None:
    y = [f"c{c}" for c, n in enumerate(sizes) for _ in range(n * copies)]
    groups = np.repeat(np.arange(sum(sizes)), copies)
    found = drawn(labelled(y, groups), seed)
    k = len(found.folds)
    enough = [k for k in (2, 3, 4, 5) if 2 * sum(n for n in sizes if n >= k) >= sum(sizes)]
    assert k == max([2, *enough])
    assert found.rare == {f"c{c}": n for c, n in enumerate(sizes) if n < k}
    assert sorted(np.concatenate([test for _, test in found.folds])) == list(range(len(y)))
    for train_rows, test in found.folds:
        # Each class can be learned in each fold, as its units are in as many folds as there can be.
        assert set(np.array(y)[train_rows]) == set(y)
        assert not set(groups[train_rows]) & set(groups[test])
    for c, n in enumerate(sizes):
        asked = sum(f"c{c}" in np.array(y)[test] for _, test in found.folds)
        assert asked == min(n, k)


def test_rare_classes_and_few_folds_are_told() -> None:
    told = of_items(drawn(labelled(["a"] * 40 + ["b"] * 40 + ["rare"] * 2 + ["few"] * 4)))
    assert told == [
        "2 classes have fewer independent images than the 5 folds ('rare': 2, 'few': 4), so of these little is known."
    ]
    told = of_items(drawn(labelled(["a"] * 3 + ["b"] * 3)))
    assert told == ["3 folds instead of 5, as most images are of classes with too few for more."]
    assert of_items(drawn(labelled(["a"] * 5 + ["b"] * 5))) == []


def test_a_class_that_cannot_be_torn_apart_is_refused() -> None:
    with pytest.raises(UsageError, match="'b' has one independent image alone among the 10"):
        drawn(labelled(["a"] * 8 + ["b"] * 2, [0] * 6 + [1, 2] + [0, 0]))
    # Each two of the three groups share a class, and two of them are in one of the two folds.
    with pytest.raises(UsageError, match=r"All items of class '[bcd]' belong together .* into one fold"):
        drawn(labelled(list("bcbdcd"), [0, 0, 1, 1, 2, 2]))


def twins(each: int, copied: int) -> tuple[list[str], np.ndarray]:
    """Vectors of two classes; the first ones of each have a twin a thousandth away, behind all others."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(2 * each, 12))
    y = ["ab"[i % 2] for i in range(2 * each)]
    near = X[: 2 * copied] + 1e-3 * rng.normal(size=(2 * copied, 12))
    return y + y[: 2 * copied], np.vstack([X, near]).astype(np.float32)


def test_near_duplicates_are_one_unit() -> None:
    y, X = twins(40, 6)
    found = drawn(labelled(y, X=X))
    pairs = [(i, 80 + i) for i in range(12)]
    units = found.dataset.groups
    assert all(units[a] == units[b] for a, b in pairs)
    assert len(np.unique(units)) == 80
    for train_rows, test in found.folds:
        assert not set(units[train_rows]) & set(units[test])
    report = found.near_duplicates
    assert (report["pairs"], report["across"], report["grouped"]) == (12, 0, True)
    named = {(f"{a:03}.jpg", f"{b:03}.jpg") for a, b in pairs}
    assert len(report["examples"]) == 5
    assert {(one["a"], one["b"]) for one in report["examples"]} <= named
    (told,) = of_items(found)
    first = report["examples"][0]
    assert told.startswith(f"12 pairs of near-duplicates (first: {first['a']} and {first['b']})")
    # Other layers of the same items go by the same units.
    other = found.of(labelled(y, X=np.ones_like(X)))
    assert other.groups.tolist() == units.tolist()


def test_rows_that_are_held_out_are_not_looked_at() -> None:
    y, X = twins(40, 6)
    found = learning_items(labelled(y, X=X), np.arange(4, 90), 0, Silent())
    assert found.near_duplicates["pairs"] == 6
    # Rows are counted among those that are learned from.
    assert sorted(found.dataset.links.tolist()) == [[i, 80 + i] for i in range(6)]


def test_advice_counts_near_duplicates_once(tmp_path: Path) -> None:
    y, X = twins(40, 6)
    found = advise(store_of(tmp_path / "s.fcache", y, {"pooled": X}), budget=1e-6, progress=False)
    near = found.near_duplicates
    assert near["pairs"] > 0
    assert near["grouped"]
    assert found.units == found.items - near["pairs"]
    assert any("pairs of near-duplicates (first: " in text for text in found.reasons)


def test_a_class_of_near_duplicates_alone_is_refused() -> None:
    y, X = twins(40, 0)
    near = X[:1] + 1e-3 * np.random.default_rng(1).normal(size=(3, 12))
    with pytest.raises(UsageError, match=r"'c' has one independent image alone .*\(its 3 are near-duplicates"):
        drawn(labelled([*y[1:], *"ccc"], X=np.vstack([X[1:], near]).astype(np.float32)))


def test_few_items_are_not_searched_and_that_is_told() -> None:
    found = drawn(labelled(["a", "b"] * 10, X=np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)))
    assert found.near_duplicates["pairs"] is None
    assert found.near_duplicates["grouped"] is False
    assert "fewer than 50" in found.near_duplicates["note"]
