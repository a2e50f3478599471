"""The hold-out goes by content, and what was held out once is never learned from."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featcache.metrics.holdout import BY_CONTENT, KEPT, TOPPED_UP, Holdout, draw, held_out, key_of, rank_of
from featcache.metrics.splits import units


@dataclass(frozen=True)
class Thing:
    sha256: bytes
    group: str | None = None


def thing(content: int, group: str | None = None) -> Thing:
    return Thing(hashlib.sha256(b"%d" % content).digest(), group)


def below(item: Thing, seed: int = 0) -> bool:
    """The rule as the format's page has it."""
    key = f"{seed}:sha256:{item.sha256.hex()}" if item.group is None else f"{seed}:group:{item.group}"
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64 < 0.2


def drawn(items: list[Thing], y: list[str], known: dict[bytes, str] | None = None, seed: int = 0) -> Holdout:
    return draw(items, np.array(y, dtype=str), units(items), known or {}, seed)


def test_an_image_is_held_out_by_its_content_or_its_group() -> None:
    items = [thing(i, None if i % 3 else f"g{i // 9}") for i in range(600)]
    for seed in (0, 5):
        assert held_out(items, {}, seed).tolist() == [below(item, seed) for item in items]
    assert 80 < held_out(items, {}, 0).sum() < 160


@given(st.lists(st.sampled_from("abc"), min_size=60, max_size=60), st.integers(0, 4))
def test_neither_labels_nor_other_images_matter(labels: list[str], seed: int) -> None:
    items = [thing(i) for i in range(60)]
    whole, some = held_out(items, {}, seed), slice(3, None, 2)
    found = drawn(items, labels, seed=seed)
    assert (found.test >= (whole & found.test)).all()
    assert held_out(items[some], {}, seed).tolist() == whole[some].tolist()


def test_a_class_without_a_heldout_image_gives_the_one_of_the_smallest_hash() -> None:
    items = [thing(i) for i in range(200) if not below(thing(i))][:8]
    found = drawn(items, list("aaaabbbb"))
    assert found.test.sum() == found.topped_up == 2
    for rows in (range(4), range(4, 8)):
        least = min(rows, key=lambda row: rank_of(key_of(items[row]), 0))
        assert found.test[least]
        assert found.records[items[least].sha256] == ("test", TOPPED_UP)


def test_a_class_of_one_independent_image_learns_from_it() -> None:
    inside = next(thing(i) for i in range(50) if below(thing(i)))
    outside = next(thing(i) for i in range(50) if not below(thing(i)))
    found = drawn([inside, inside, outside], ["a", "a", "b"])
    assert found.train.all()
    assert not found.test.any()
    assert found.records == {inside.sha256: ("train", KEPT)}


def test_a_class_that_heads_were_scored_on_whole_is_not_learned() -> None:
    items = [thing(i) for i in range(6)]
    known = {item.sha256: "test" for item in items[:3]}
    found = drawn(items, list("aaabbb"), known)
    assert found.unlearned == ["a"]
    assert found.test[:3].all()
    assert not set(found.records) & set(known)


def test_what_belongs_with_a_heldout_image_is_on_neither_side() -> None:
    items = [thing(i) for i in range(200)]
    inside = [i for i in items if below(i)]
    outside = [i for i in items if not below(i)]
    chosen = [*inside[:3], *outside[:5]]
    linked = draw(chosen, np.array(list("aabaabbb")), units(chosen, [(0, 3)]), {}, 0)
    assert linked.test.tolist() == [True] * 3 + [False] * 5
    assert linked.train.tolist() == [False] * 4 + [True] * 4
    # The same content in two groups, one of which is held out.
    group_in = next(f"g{i}" for i in range(99) if below(thing(0, f"g{i}")))
    group_out = next(f"g{i}" for i in range(99) if not below(thing(0, f"g{i}")))
    several = [thing(1, group_in), thing(1, group_out), thing(2, group_out), *outside[5:9]]
    found = drawn(several, list("aabaabb"))
    assert found.test[:3].tolist() == [True, True, False]
    assert found.train[:3].tolist() == [False] * 3


def test_records_overrule_the_rule_and_a_group_that_was_learned_from_stays_so() -> None:
    items = [thing(i) for i in range(40)]
    known = {item.sha256: "train" if below(item) else "test" for item in items}
    assert held_out(items, known, 0).tolist() == [not below(item) for item in items]
    for name in "pqrstuvw":
        old = [thing(50, name), thing(51, name)]
        assert held_out(old, {old[0].sha256: "train"}, 0).tolist() == [False, False]
        assert held_out(old, {old[0].sha256: "test"}, 0).tolist() == [True, below(old[1])]


LABELS = st.sampled_from("abcd")
WORLDS = st.lists(
    st.lists(st.tuples(st.integers(0, 15), st.none() | st.sampled_from("pqr"), LABELS), min_size=2, max_size=20),
    min_size=2, max_size=6,
)  # fmt: skip


@settings(deadline=None)
@given(WORLDS, st.integers(0, 3), st.booleans())
def test_what_was_held_out_once_is_never_learned_from(
    worlds: list[list[tuple[int, str | None, str]]], seed: int, several: bool
) -> None:
    known: dict[bytes, str] = {}
    ever: set[bytes] = set()
    for world in worlds:
        items = [thing(content, group) for content, group, _ in world]
        y = np.array([label for *_, label in world])
        together = units(items, [(0, len(items) - 1)])
        found = draw(items, y[:, None] == np.array(list("abcd")) if several else y, together, known, seed)
        learned = {items[row].sha256 for row in np.flatnonzero(found.train)}
        tested = {items[row].sha256 for row in np.flatnonzero(found.test)}
        assert not learned & (tested | ever)
        assert not set(together[found.train].tolist()) & set(together[found.test].tolist())
        ever |= tested
        assert not known.keys() & found.records.keys()
        known |= {sha256: part for sha256, (part, _) in found.records.items()}
        assert all(known[sha256] == "test" for sha256 in tested)
        # The same again: nothing new, nothing moved.
        again = draw(items, y[:, None] == np.array(list("abcd")) if several else y, together, known, seed)
        assert (again.test.tolist(), again.train.tolist()) == (found.test.tolist(), found.train.tolist())
        assert again.records == {}


@pytest.mark.parametrize("several", [False, True])
def test_every_class_has_something_on_either_side_where_it_can(several: bool) -> None:
    rng = np.random.default_rng(0)
    for seed in range(20):
        items = [thing(int(content)) for content in rng.integers(0, 10**6, 60)]
        y = rng.choice(12, 60)
        has = y[:, None] == np.arange(12)
        found = draw(items, has if several else y, units(items), {}, seed)
        for name in np.unique(y):
            count = (y == name).sum()
            assert found.train[y == name].any()
            assert found.test[y == name].any() == (count > 1)
        assert {reason for _, reason in found.records.values()} <= {BY_CONTENT, TOPPED_UP, KEPT}


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 40), st.integers(1, 6), st.integers(1, 3))
def test_labels_are_on_both_sides_where_no_other_loses_by_it(seed: int, n: int, k: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    Y = rng.random((n, k)) < 0.3
    Y[np.arange(n), rng.integers(0, k, n)] = True
    items = [thing(i, f"{seed} {i // size}") for i in range(n)]
    found = draw(items, Y, units(items), {}, seed)
    assert (found.train ^ found.test).all()
    for label in np.flatnonzero(Y.any(axis=0)):
        assert Y[found.train, label].any()
        if not Y[found.test, label].any():
            # Each unit that has it is the last one in training of some label.
            for group in {items[row].group for row in np.flatnonzero(Y[:, label])}:
                own = np.array([item.group == group for item in items])
                kept = {
                    items[row].group for row in range(n) if found.records.get(items[row].sha256, ("", ""))[1] == KEPT
                }
                assert group in kept or (Y[own].any(axis=0) & ~Y[found.train & ~own].any(axis=0)).any()
