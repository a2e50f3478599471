"""Drawn pairs: no pair twice, no person in two folds, everybody as often as can be."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featcache.core.errors import UsageError
from featcache.faces.sample_pairs import _shares, draw_pairs, largest_draw
from featcache.metrics.verification import of_triangle

LABELS = [f"p{i:03}" for i in range(60) for _ in range(2 + i % 9)]


def check(pairs, labels, folds, each) -> None:
    """What holds of all drawn pairs."""
    people = np.array([str(label) for label in labels])[pairs.images]
    assert pairs.images.shape == (2 * folds * each, 2)
    np.testing.assert_array_equal(people[:, 0] == people[:, 1], pairs.same)
    assert (pairs.images[:, 0] != pairs.images[:, 1]).all()
    assert len({tuple(sorted(pair)) for pair in pairs.images.tolist()}) == len(pairs.images)
    np.testing.assert_array_equal(np.bincount(pairs.fold), np.full(folds, 2 * each))
    np.testing.assert_array_equal(np.bincount(pairs.fold, pairs.same), np.full(folds, each))
    folds_of: dict[str, set[int]] = {}
    for two, fold in zip(people.tolist(), pairs.fold.tolist(), strict=True):
        for person in two:
            folds_of.setdefault(person, set()).add(fold)
    assert all(len(found) == 1 for found in folds_of.values())


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 99), st.integers(1, 5), st.integers(1, 8), st.integers(0, 99))
def test_what_holds_of_all_drawn_pairs(draw: int, folds: int, each: int, seed: int) -> None:
    rng = np.random.default_rng(draw)
    labels = [None if place < 0 else LABELS[place] for place in rng.integers(-60, len(LABELS), 300).tolist()]
    pairs = draw_pairs(labels, folds=folds, each=each, seed=seed)
    check(pairs, labels, folds, each)
    assert not any(labels[place] is None for place in pairs.images.ravel().tolist())
    again = draw_pairs(list(labels), folds=folds, each=each, seed=seed)
    np.testing.assert_array_equal(pairs.images, again.images)


def test_another_seed_is_another_draw() -> None:
    a, b = (draw_pairs(LABELS, folds=3, each=20, seed=seed) for seed in (0, 1))
    assert (a.images != b.images).any()


def test_as_many_pairs_as_there_are_can_be_drawn() -> None:
    labels = [f"p{i}" for i in range(6) for _ in range(4)]
    # Two folds of three people, with 3 × 6 pairs of one of them each.
    pairs = draw_pairs(labels, folds=2, each=18)
    check(pairs, labels, 2, 18)
    with pytest.raises(UsageError, match=r"3 people of fold 0 have only 18 different pairs of one person, and 19"):
        draw_pairs(labels, folds=2, each=19)
    with pytest.raises(UsageError, match="only 4 different pairs of two people"):
        draw_pairs(["a"] * 4 + ["b"], folds=1, each=5)
    with pytest.raises(UsageError, match="only 0 different pairs of one person"):
        draw_pairs(["a", "b"], folds=1, each=1)


def test_people_and_couples_serve_as_often_as_each_other() -> None:
    pairs = draw_pairs(LABELS, folds=2, each=100, seed=3)
    people = np.array(LABELS)[pairs.images]
    for fold in range(2):
        own = people[(pairs.fold == fold) & pairs.same, 0]
        counts = Counter(own.tolist())
        size = Counter(LABELS)
        most = max(counts.values())
        # Whoever serves less than others by more than one has given all pairs he has.
        for person, count in counts.items():
            assert count >= most - 1 or count == size[person] * (size[person] - 1) // 2
        couples = Counter(tuple(sorted(two)) for two in people[(pairs.fold == fold) & ~pairs.same].tolist())
        assert set(couples.values()) == {1}


def test_folds_have_equally_many_people_and_about_as_many_images() -> None:
    from featcache.faces.sample_pairs import _fold_of_each

    sizes = np.random.default_rng(0).geometric(0.2, size=995)
    fold_of = _fold_of_each(sizes, 10, np.random.default_rng(1))
    assert set(np.bincount(fold_of).tolist()) == {99, 100}
    images = np.bincount(fold_of, sizes)
    assert np.ptp(images) < 0.08 * images.mean()


def test_people_are_dealt_forwards_and_backwards() -> None:
    from featcache.faces.sample_pairs import _fold_of_each

    # So whoever comes first in one round comes last in the next, and steps that are all alike cancel out.
    sizes = np.random.default_rng(0).permutation(np.arange(1, 81))
    fold_of = _fold_of_each(sizes, 4, np.random.default_rng(1))
    assert np.bincount(fold_of, sizes).tolist() == [810, 810, 810, 810]


def test_copies_are_one_image_and_those_of_two_people_none() -> None:
    labels = ["a", "a", "a", "b", "b", "b", "c", "c"]
    contents = [b"1", b"1", b"2", b"3", b"4", b"5", b"6", b"5"]
    # Left are images 0 and 2 of a, 3 and 4 of b, 6 of c.
    pairs = draw_pairs(labels, folds=1, each=2, sha256=contents)
    same = {tuple(sorted(pair)) for pair in pairs.images[pairs.same].tolist()}
    assert same == {(0, 2), (3, 4)}
    for seed in range(20):
        drawn = draw_pairs(labels, folds=1, each=2, sha256=contents, seed=seed).images
        assert set(drawn.ravel().tolist()) <= {0, 2, 3, 4, 6}
    # An image that nobody is named on takes no part, and so its copies stay.
    kept = draw_pairs([None, "a", "a", "b", "b"], folds=1, each=2, sha256=[b"1", b"1", b"2", b"3", b"4"])
    assert {1, 2, 3, 4} == set(kept.images[kept.same].ravel().tolist())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folds": 0}, "0 folds of 300"),
        ({"each": 0}, "10 folds of 0"),
        ({"folds": 31}, "need 62 people, two each; there are images of 60. Draw 30 folds or less"),
    ],
)
def test_what_cannot_be_drawn_is_refused(options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        draw_pairs(LABELS, **options)


@given(st.lists(st.integers(1, 9), max_size=12), st.integers(1, 60), st.integers(0, 5))
def test_shares_are_even_and_use_all_that_is_wanted(capacities: list[int], wanted: int, seed: int) -> None:
    shares = dict(_shares(len(capacities), capacities.__getitem__, wanted, np.random.default_rng(seed)))
    assert sum(shares.values()) == min(wanted, sum(capacities) if len(capacities) < wanted else wanted)
    most = max(shares.values(), default=0)
    for group, share in shares.items():
        assert 1 <= share <= capacities[group]
        assert share >= most - 1 or share == capacities[group]


def test_numbers_of_a_triangle_are_its_pairs_in_order() -> None:
    first, second = of_triangle(np.arange(45))
    assert [(i, j) for i in range(10) for j in range(i)] == list(zip(first.tolist(), second.tolist(), strict=True))
    big = 3_000_000_000
    ends = np.array([big * (big - 1) // 2 - 1, big * (big - 1) // 2, big * (big - 1) // 2 + 1])
    first, second = of_triangle(ends)
    assert first.tolist() == [big - 1, big, big]
    assert second.tolist() == [big - 2, 0, 1]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 5), min_size=4, max_size=14), st.integers(2, 10), st.integers(1, 40), st.integers(0, 9))
def test_the_largest_draw_can_be_drawn_and_no_larger_one(sizes: list[int], folds: int, each: int, seed: int) -> None:
    labels = [f"p{i}" for i, size in enumerate(sizes) for _ in range(size)]
    if sum(size > 1 for size in sizes) < 2:
        with pytest.raises(UsageError, match="two folds or more"):
            largest_draw(labels, folds=folds, each=each, seed=seed)
        return
    most, pairs = largest_draw(labels, folds=folds, each=each, seed=seed)
    check(draw_pairs(labels, folds=most, each=pairs, seed=seed), labels, most, pairs)
    assert most == min(folds, len(sizes) // 2, sum(size > 1 for size in sizes))
    if pairs < each:
        with pytest.raises(UsageError, match="different pairs"):
            draw_pairs(labels, folds=most, each=pairs + 1, seed=seed)
