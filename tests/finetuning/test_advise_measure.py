"""What is measured for advice: the items and their folds, the budget, and by how much estimates may be wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, norm

from featcache.core.errors import UsageError
from featcache.core.progress import Budget, Deadline, Silent
from featcache.finetuning.advise import advise
from featcache.finetuning.advise.choose import compare
from featcache.finetuning.advise.measure import MARGIN, Fold, ceiling, probe_seconds, probed_blocks
from featcache.finetuning.advise.prepare import near_duplicates_in_time
from featcache.finetuning.advise.report import about_items
from featcache.metrics import splits
from featcache.store import Item
from featcache.training.dataset import FeatureDataset
from featcache.training.leakage import folds_without_leakage, search

from ..store.making import keys
from .advise_making import outcome, store_of


@given(st.integers(0, 99), st.floats(0.05, 1))
def test_a_draw_keeps_units_whole_and_every_class(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    y, units = rng.integers(0, 3, 30), rng.integers(0, 12, 30)
    taken = splits.draw_share(y, units, share, np.random.default_rng(seed))
    assert set(y[taken]) == set(y)
    assert not set(units[taken]) & set(np.delete(units, taken))


def labeled(y: Sequence[str], groups: Sequence[object] = (), X: np.ndarray | None = None) -> FeatureDataset:
    """Labeled vectors, all the same unless given; items of one group are one unit."""
    X = np.zeros((len(y), 2), np.float32) if X is None else X
    items = [
        Item("s", f"{i:03}.jpg", key, label, None, str(groups[i]) if len(groups) else None)
        for i, (key, label) in enumerate(zip(keys(len(y)), y, strict=True))
    ]
    return FeatureDataset(items, np.array(y), splits.units(items), ["pooled"], [X.shape[1:]], None, lambda at: X[at])


def drawn(dataset: FeatureDataset, rows: slice = slice(None), seed: int = 0) -> tuple[Any, list[Fold], Any, Any]:
    chosen = np.arange(len(dataset.y))[rows]
    return folds_without_leakage(dataset, chosen, search(dataset, chosen, seed=seed), 5, seed)


def told(dataset: FeatureDataset) -> list[str]:
    _, folds, rare, near = drawn(dataset)
    return about_items(len(folds), 1, rare, near)


@settings(deadline=None)
@given(st.lists(st.integers(2, 12), min_size=2, max_size=8), st.integers(1, 3), st.integers(0, 9))
def test_a_rare_class_does_not_take_the_folds_of_all(sizes: list[int], copies: int, seed: int) -> None:
    y = [f"c{c}" for c, n in enumerate(sizes) for _ in range(n * copies)]
    groups = np.repeat(np.arange(sum(sizes)), copies)
    _, folds, rare, _ = drawn(labeled(y, groups), seed=seed)
    k = len(folds)
    enough = [k for k in (2, 3, 4, 5) if 2 * sum(n for n in sizes if n >= k) >= sum(sizes)]
    assert k == max([2, *enough])
    assert rare == {f"c{c}": n for c, n in enumerate(sizes) if n < k}
    assert sorted(np.concatenate([test for _, test in folds])) == list(range(len(y)))
    for train, test in folds:
        # Each class can be learned in each fold, and what belongs together lies in one.
        assert set(np.array(y)[train]) == set(y)
        assert not set(groups[train]) & set(groups[test])
        assert len(train) + len(test) == len(y)
    for c, n in enumerate(sizes):
        assert sum(f"c{c}" in np.array(y)[test] for _, test in folds) == min(n, k)


def test_rare_classes_and_few_folds_are_told() -> None:
    assert told(labeled(["a"] * 40 + ["b"] * 40 + ["rare"] * 2 + ["few"] * 4)) == [
        "Little is known of classes with fewer independent images than the 5 folds ('rare': 2, 'few': 4)."
    ]
    assert told(labeled(["a"] * 3 + ["b"] * 3)) == [
        "3 folds instead of 5, as most images are of classes with too few for more."
    ]
    assert told(labeled(["a"] * 5 + ["b"] * 5)) == []


def test_a_class_that_cannot_be_torn_apart_is_refused() -> None:
    with pytest.raises(UsageError, match="'b' has one independent image among the 10 outside"):
        drawn(labeled(["a"] * 8 + ["b"] * 2, [0] * 6 + [1, 2] + [0, 0]))
    # Each two of the three groups share a class, and two of them are in one of the two folds.
    with pytest.raises(UsageError, match=r"All items of class '[bcd]' are grouped .* into one fold"):
        drawn(labeled(list("bcbdcd"), [0, 0, 1, 1, 2, 2]))


def twins(each: int, copied: int) -> tuple[list[str], np.ndarray]:
    """Vectors of two classes; the first ones of each have a twin a thousandth away, behind all others."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(2 * each, 12))
    y = ["ab"[i % 2] for i in range(2 * each)]
    near = X[: 2 * copied] + 1e-3 * rng.normal(size=(2 * copied, 12))
    return y + y[: 2 * copied], np.vstack([X, near]).astype(np.float32)


def test_near_duplicates_are_one_unit() -> None:
    y, X = twins(40, 6)
    items, folds, rare, report = drawn(labeled(y, X=X))
    pairs = [(i, 80 + i) for i in range(12)]
    assert all(items.groups[a] == items.groups[b] for a, b in pairs)
    assert len(np.unique(items.groups)) == 80
    for train, test in folds:
        assert not set(items.groups[train]) & set(items.groups[test])
    assert (report["pairs"], report["across"], report["grouped"]) == (12, 0, True)
    named = {(f"{a:03}.jpg", f"{b:03}.jpg") for a, b in pairs}
    assert len(report["examples"]) == 5
    assert {(one["a"], one["b"]) for one in report["examples"]} <= named
    (text,) = about_items(len(folds), 1, rare, report)
    assert text.startswith("12 pairs of near-duplicates (first: ")
    # Rows that are held out are not looked at.
    assert drawn(labeled(y, X=X), slice(4, 90))[3]["pairs"] == 6


def test_a_class_of_near_duplicates_alone_is_refused() -> None:
    y, X = twins(40, 0)
    near = X[:1] + 1e-3 * np.random.default_rng(1).normal(size=(3, 12))
    with pytest.raises(UsageError, match=r"'c' has one independent image .*\(its 3 are near-duplicates"):
        drawn(labeled([*y[1:], *"ccc"], X=np.vstack([X[1:], near]).astype(np.float32)))


def test_few_items_are_not_searched_and_that_is_told() -> None:
    X = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    near = drawn(labeled(["a", "b"] * 10, X=X))[3]
    assert (near["pairs"], near["grouped"]) == (None, False)
    assert "fewer than 50" in near["note"]


def test_advice_counts_near_duplicates_once(tmp_path: Path) -> None:
    y, X = twins(40, 6)
    found = advise(store_of(tmp_path / "s.fcache", y, {"pooled": X}), budget=10_000, progress=False)
    assert found.near_duplicates["grouped"]
    assert found.units == found.items - found.near_duplicates["pairs"] < found.items
    assert any("pairs of near-duplicates (first: " in text for text in found.reasons)
    # Where there is no time to look for them, that is told.
    found = advise(tmp_path / "s.fcache", budget=1e-6, progress=False)
    assert found.units == found.items
    assert found.near_duplicates["note"] == "not looked for, as the budget is too small"
    assert any(text.startswith("Near-duplicates were not looked for") for text in found.reasons)


def test_a_search_that_takes_longer_than_was_thought_is_given_up(tmp_path: Path) -> None:
    y, X = twins(40, 6)
    dataset, now = labeled(y, X=X), 0.0
    budget = Budget(10, clock=lambda: now)

    class Slow(Silent):
        def advance(self, n: int = 1) -> None:
            nonlocal now
            now += 20

    near = near_duplicates_in_time(dataset, np.arange(len(y)), 0, 0.1, budget, Slow())
    assert near.note == "not looked for, as the budget is too small"
    assert [part["name"] for part in budget.parts] == ["near-duplicates"]


@given(st.lists(st.tuples(st.floats(0, 50), st.floats(0, 50)), max_size=8), st.floats(1, 100))
def test_no_part_begins_whose_estimate_does_not_fit(parts: list[tuple[float, float]], seconds: float) -> None:
    now = 0.0
    budget = Budget(seconds, clock=lambda: now)
    for number, (estimate, takes) in enumerate(parts):
        left = 0.98 * seconds - now

        def work(takes: float = takes) -> bool:
            nonlocal now
            now += takes
            return True

        done = budget.run(str(number), estimate, work)
        assert (done is True) == (estimate <= max(0.0, left))
        assert (budget.parts[-1]["reason"] is None) == (done is True)
        assert budget.parts[-1]["seconds"] == (pytest.approx(takes) if done else None)
    assert len(budget.parts) == len(parts)


def test_what_follows_the_parts_is_left_out_of_the_budget() -> None:
    now = 0.0
    budget = Budget(100, reserved=30, clock=lambda: now)
    assert budget.left() == pytest.approx(68)
    now = 70.0
    assert (budget.left(), budget.spent()) == (0, 70)
    assert budget.pace() > 1


def test_work_that_takes_longer_than_estimated_ends_at_its_next_step() -> None:
    now, steps, ends = 0.0, [], []
    budget = Budget(10, clock=lambda: now)

    class Seen(Silent):
        def finish(self) -> None:
            ends.append(now)

    deadline = Deadline(budget.left, Seen())

    def work() -> bool:
        nonlocal now
        deadline.start("work", 5, "steps")
        for step in range(5):
            now += 4
            deadline.advance()
            steps.append(step)
        return True

    assert budget.run("long", 5, work) is None
    assert (steps, ends) == ([0, 1], [12])
    assert budget.parts[-1]["seconds"] == 12
    assert "ended as the budget was spent" in budget.parts[-1]["reason"]
    # So does a part that finds no room in memory.
    budget = Budget(10, clock=lambda: now)
    budget.failures += (torch.OutOfMemoryError,)
    for error in (MemoryError("no room"), torch.OutOfMemoryError("CUDA out of memory")):

        def fails(error: Exception = error) -> None:
            raise error

        assert budget.run("large", 1, fails) is None
        assert budget.parts[-1]["reason"] == str(error)


def test_probes_of_one_view_take_a_part_of_the_time_of_all_views() -> None:
    def seconds(n: int, views: int, widths: list[int]) -> float:
        items = replace(labeled(["a"] * n), shapes=[(64,)], views=tuple(map(str, range(views))))
        return probe_seconds(replace(outcome("softmax", np.ones(n)), seconds=10.0), items, widths)

    # Twice as wide takes twice as long, narrower no less; 12 s are the 10 s with a margin.
    assert seconds(4000, 1, [64, 128, 32]) == pytest.approx(12 * (1 + 2 + 1))
    assert seconds(4000, 4, [64, 128, 32]) == pytest.approx(12)
    # Of few rows a fit takes no less time than of 400: 200 rows in 4 views are as good as 50.
    assert seconds(50, 4, [64, 128, 32]) == pytest.approx(48)
    assert seconds(50, 16, [64]) == pytest.approx(12 * 400 / (16 * 50))


def test_of_many_blocks_some_are_probed() -> None:
    assert probed_blocks(["0", "1", "2"]) == (["0", "1", "2"], [0.25, 0.5, 0.75])
    many, depths = probed_blocks([str(i) for i in range(40)])
    assert (len(many), many[0], many[-1], depths[-1]) == (12, "0", "39", 40 / 41)


def test_the_most_that_may_be_gained_is_known_from_two_intervals() -> None:
    ones = outcome("a", np.ones(30))
    never = compare(ones, outcome("b", np.ones(30)), np.arange(30), confidence=1 - 0.05 / 2)
    assert never is not None
    # What Clopper and Pearson leave possible after none of 30.
    assert ceiling(never) == pytest.approx(beta.ppf(1 - 0.05 / 4, 1, 30))
    # The later layer wins 20 and loses 10 of 1000: the normal interval of the difference ends at 2.07 points.
    first, last = np.ones(1000), np.ones(1000)
    first[:20] = last[20:30] = 0
    found = compare(outcome("b", last), outcome("a", first), np.arange(1000))
    end = 0.01 + norm.ppf(0.975) * np.sqrt((0.03 - 0.01**2) / 1000)
    assert found is not None
    assert MARGIN < ceiling(found) == pytest.approx(end, abs=1e-3)
