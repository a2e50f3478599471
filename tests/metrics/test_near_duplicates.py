"""Copies are found, strangers are not, and the quick search finds what the plain one does."""

from __future__ import annotations

import math

import numpy as np
import pytest

from featcache.metrics import near_duplicates
from featcache.metrics.near_duplicates import NearDuplicates, find


def vectors(n: int, seed: int, classes: int = 5, latent: int = 10, width: int = 60) -> np.ndarray:
    """(n, width) float32 of some classes, on a curved surface of *latent* dimensions, far from the origin."""
    rng = np.random.default_rng(seed)
    inner = rng.normal(size=(n, latent)) + rng.normal(size=(classes, latent))[rng.integers(0, classes, n)]
    return (np.tanh(inner @ rng.normal(size=(latent, width)) / 3) + 5).astype(np.float32)


def with_copies(X: np.ndarray, copies: int, seed: int, noise: float = 0.02) -> np.ndarray:
    """The vectors, followed by noisy copies of the first ones."""
    rng = np.random.default_rng(seed)
    return np.concatenate([X, X[:copies] + noise * rng.normal(size=(copies, X.shape[1])).astype(np.float32)])


def look(X: np.ndarray, units: np.ndarray | None = None, **options: object) -> NearDuplicates:
    return find(lambda rows: X[rows], np.arange(len(X)) if units is None else units, **options)  # type: ignore[arg-type]


def pairs(found: NearDuplicates) -> set[tuple[int, int]]:
    return {(int(a), int(b)) for a, b in found.pairs}


def plainly(X: np.ndarray, units: np.ndarray) -> tuple[set[tuple[int, int]], float]:
    """The rule of the module's docstring, over all pairs in float64; what `find` says of up to 512 items."""
    Z = X.astype(np.float64)
    Z -= Z.mean(0)
    Z /= np.linalg.norm(Z, axis=1, keepdims=True)
    D = np.sqrt(np.maximum(2 - 2 * Z @ Z.T, 0))
    D[units[:, None] == units] = np.inf
    near = np.sort(D, axis=1)
    dimension = math.log(2) / np.median(np.log(near[:, 19] / near[:, 9]))
    threshold = min(0.6, (0.05 / (10 * len(X))) ** (1 / dimension))
    scale = np.clip(near[:, 9], np.median(near[:, 9]) / 2, np.quantile(near[:, 9], 0.99))
    close = np.triu(np.minimum(scale[:, None], scale) * threshold >= D, 1)
    return {(int(a), int(b)) for a, b in np.argwhere(close)}, threshold


@pytest.mark.parametrize("seed", range(6))
def test_the_quick_search_is_the_plain_one(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_duplicates, "_ROWS", 64)  # several blocks of few rows
    X = with_copies(vectors(300, seed, width=200), 40, seed, noise=0.08)
    units = np.arange(len(X))
    units[50:80] = 50
    wanted, threshold = plainly(X, units)
    found = look(X, units)
    assert found.threshold == pytest.approx(threshold, rel=1e-3)
    assert len(wanted) > 10
    assert pairs(found) == wanted
    for (a, b), cosine in zip(found.pairs, found.cosines, strict=True):
        Z = X.astype(np.float64) - X.astype(np.float64).mean(0)
        assert cosine == pytest.approx(Z[a] @ Z[b] / np.linalg.norm(Z[a]) / np.linalg.norm(Z[b]), abs=1e-5)
    assert (np.diff(found.cosines) <= 0).all()


def test_copies_are_found_among_more_items_than_the_sample() -> None:
    X = with_copies(vectors(3000, 0), 50, 1, noise=0.005)
    found = look(X)
    assert {(i, 3000 + i) for i in range(50)} <= pairs(found)
    assert len(found.pairs) <= 52


def test_strangers_are_seldom_taken_for_copies() -> None:
    # 0.05 pairs are expected in each; eight or more among 40 sets would be one chance in nine hundred.
    assert sum(len(look(vectors(200, seed)).pairs) for seed in range(40)) < 8


@pytest.mark.parametrize("width", [3, 40, 1000])
def test_noise_of_any_width_has_no_copies(width: int) -> None:
    assert len(look(np.random.default_rng(0).normal(size=(400, width)).astype(np.float32)).pairs) == 0


def test_one_class_of_very_similar_images_is_no_heap_of_copies() -> None:
    X = vectors(400, 3)
    centre = X[:120].mean(0)
    X[:120] = centre + (X[:120] - centre) * 0.2
    assert len(look(X).pairs) <= 1


def test_a_burst_of_many_copies_is_found() -> None:
    rng = np.random.default_rng(5)
    X = vectors(400, 4)
    X[:30] = X[0] + 0.005 * rng.normal(size=(30, X.shape[1])).astype(np.float32)
    found = look(X)
    assert pairs(found) == {(i, j) for i in range(30) for j in range(i + 1, 30)}


def test_items_of_one_unit_are_not_compared_nor_measured_by() -> None:
    X = with_copies(vectors(400, 6), 60, 6, noise=0.005)
    assert len(look(X).pairs) == 60
    units = np.arange(len(X))
    units[400:430] = units[:30]
    assert pairs(look(X, units)) == {(i, 400 + i) for i in range(30, 60)}
    # Ten takes of each object: without its unit each would be the measure of the others.
    takes = np.repeat(vectors(100, 7), 10, axis=0)
    takes += 0.01 * np.random.default_rng(7).normal(size=takes.shape).astype(np.float32)
    takes[999] = takes[0]
    assert (0, 999) in pairs(look(takes, np.arange(1000) // 10))


def test_only_pairs_with_a_scored_item() -> None:
    X = with_copies(vectors(1500, 8), 200, 8, noise=0.01)
    scored = np.random.default_rng(0).random(len(X)) < 0.3
    every = pairs(look(X))
    assert len(every) >= 200
    assert pairs(look(X, scored=scored)) == {(a, b) for a, b in every if scored[a] or scored[b]}


def test_equal_vectors_are_copies() -> None:
    X = vectors(200, 9)
    X[7] = X[100]
    found = look(X)
    assert pairs(found) == {(7, 100)}
    assert found.cosines.tolist() == pytest.approx([1.0])


def test_where_nothing_can_be_told_that_is_told() -> None:
    few = look(vectors(60, 0), np.arange(60) // 2)
    assert (few.threshold, len(few.pairs)) == (None, 0)
    assert "fewer than 50 independent" in str(few.note)
    many = find(lambda rows: np.zeros((len(rows), 2)), np.arange(near_duplicates.MOST + 1))
    assert "more than 100,000" in str(many.note)
    same = look(np.ones((100, 8), np.float32))
    assert "most are the same" in str(same.note)


def test_vectors_of_one_number_tell_nothing_and_warn_of_nothing() -> None:
    # Centered and of length 1 they are all 1 or -1. Warnings are errors here.
    found = look(np.random.default_rng(0).normal(size=(200, 1)).astype(np.float32))
    assert "most are the same" in str(found.note)


def test_where_copies_pass_into_similar_images_no_line_is_drawn() -> None:
    """Half of the items have a twin, at all distances around the threshold."""
    X = vectors(400, 12, latent=20, width=200)
    apart = np.random.default_rng(2).uniform(0.22, 0.45, 200)[:, None].astype(np.float32)
    X[200:] = X[:200] + apart * (X[200:] - X[:200])
    found = look(X)
    assert found.threshold is not None
    assert "no clear gap" in str(found.note)
    assert len(found.pairs) == 0
    # As many twins that are all clearly copies are told as such.
    X[200:] = X[:200] + 0.1 * (X[200:] - X[:200])
    assert len(look(X).pairs) >= 200
