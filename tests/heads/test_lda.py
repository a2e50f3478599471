"""Whitening and discriminants against the textbook, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
from sklearn.covariance import ledoit_wolf_shrinkage

from featcache.heads.lda import scatter_of, whiten

SHAPES = [(20, 60), (60, 12), (30, 30)]


def drawn(n: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(n)
    class_ids = np.arange(n) % 5
    means = 2 * rng.normal(size=(5, d))
    return (means[class_ids] + rng.normal(size=(n, d)) * np.linspace(0.2, 2, d) + 3), class_ids


def within(X: np.ndarray, class_ids: np.ndarray) -> np.ndarray:
    return X - np.array([X[class_ids == k].mean(0) for k in range(5)])[class_ids]


@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_the_shrinkage_is_ledoit_and_wolfs(n: int, d: int) -> None:
    X, class_ids = drawn(n, d)
    expected = ledoit_wolf_shrinkage(within(X, class_ids), assume_centered=True)
    assert scatter_of(X, class_ids).ledoit_wolf == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("n", "d"), SHAPES)
@pytest.mark.parametrize("shrinkage", [0.1, 0.7, 1.0])
def test_the_discriminants_solve_the_eigenproblem(n: int, d: int, shrinkage: float) -> None:
    X, class_ids = drawn(n, d)
    start = whiten(scatter_of(X, class_ids), shrinkage, 100)
    residual = within(X, class_ids)
    S = residual.T @ residual / (n - 5)
    S = (1 - shrinkage) * S + shrinkage * np.trace(S) / d * np.eye(d)
    means = np.array([X[class_ids == k].mean(0) for k in range(5)]) - X.mean(0)
    between = (means * np.bincount(class_ids)[:, None]).T @ means
    vectors = scipy.linalg.eigh(between, S)[1][:, ::-1][:, :4]
    got = start.unfolded(start.discriminants)
    assert got.shape == (4, d)
    sign = np.sign((got * vectors.T).sum(1, keepdims=True))
    np.testing.assert_allclose(sign * got, vectors.T, atol=2e-4 * abs(vectors).max())


@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_unfolded_and_coordinates_agree(n: int, d: int) -> None:
    X, class_ids = drawn(n, d)
    start = whiten(scatter_of(X, class_ids), 0.3, 3)
    projected = (X - X.mean(0)) @ start.unfolded(start.discriminants).T.astype(np.float64)
    np.testing.assert_allclose(start.coordinates(X) @ start.discriminants.T, projected, atol=1e-4)
    np.testing.assert_allclose(start.rows, start.coordinates(X), atol=1e-4)


def test_images_of_one_identity_vary_alike_in_all_directions() -> None:
    X, class_ids = drawn(60, 12)
    rows = within(whiten(scatter_of(X, class_ids), 0.0, 4).rows.astype(np.float64), class_ids)
    np.testing.assert_allclose(rows.T @ rows / 55, np.eye(12), atol=1e-4)


def test_with_one_image_of_each_all_vectors_are_whitened() -> None:
    X, _ = drawn(60, 12)
    rows = whiten(scatter_of(X, np.arange(60)), 0.0, 12).rows.astype(np.float64)
    np.testing.assert_allclose(rows.T @ rows / 59, np.eye(12), atol=1e-4)


def test_a_direction_without_variance_is_survived() -> None:
    X, class_ids = drawn(60, 12)
    X[:, 3] = 7
    start = whiten(scatter_of(X, class_ids), 0.0, 4)
    assert np.isfinite(start.unfolded(start.discriminants)).all()
