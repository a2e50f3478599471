"""The parts of the path solver: what they compute, and that no fold learns what it must not know."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from featcache.core.threads import row_threads
from featcache.heads import softmax_solver
from featcache.heads.softmax_certificate import Labeled, Solution, certify
from featcache.heads.softmax_solver import NO_FOLD, Problem, Rows, principal_axes, to_residuals

FOLDS = [(0, 0, 40), (1, 40, 80), (2, 80, 120)]


def rows(seed: int, relabeled: bool = False) -> Rows:
    """Three folds of 40 rows, 4 classes; the labels of the last fold are 0…2, or relabeled 1…3."""
    rng = np.random.default_rng(seed)
    y = np.concatenate([np.sort(rng.integers(0, 4, 40)), np.sort(rng.integers(0, 4, 40)), np.sort(np.arange(40) % 3)])
    Z = rng.normal(size=(120, 7)).astype(np.float32) + rng.normal(size=(4, 7)).astype(np.float32)[y]
    Z[:, -1] = 1
    y[80:] += relabeled
    return Rows(Z, y, np.ones(120, np.float32), FOLDS, 4)


@pytest.mark.parametrize("scale", [1.0, 40.0, 1e4])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_residuals_and_losses(scale: float, dtype: type) -> None:
    rng = np.random.default_rng(0)
    z = (scale * rng.normal(size=(5, 3, 50))).astype(dtype)
    y, s = np.sort(rng.integers(0, 5, 50)), rng.exponential(size=50).astype(dtype)
    p = softmax(z.astype(np.float64), axis=0)
    own = np.eye(5)[:, y][:, None, :]
    others = s * p * (1 - own)
    expected = others - own * others.sum(0)
    losses = -(log_softmax(z.astype(np.float64), axis=0) * own).sum(0) @ s
    R = z.copy()
    found = to_residuals(R, y, s)
    digits = 2e-5 if dtype == np.float32 else 1e-12
    np.testing.assert_allclose(found, losses, rtol=digits)
    np.testing.assert_allclose(R, expected, rtol=digits * max(scale, 1), atol=1e-30)


def test_the_residual_of_a_sure_answer_keeps_its_digits() -> None:
    R = np.array([[[30.0]], [[0.0]]], np.float32)
    (loss,) = to_residuals(R, np.array([0]), np.ones(1, np.float32))
    assert loss == pytest.approx(np.exp(-30), rel=1e-5)
    assert R[0, 0, 0] == pytest.approx(-np.exp(-30), rel=1e-5)


def test_losses_and_gradients_of_stacked_problems_are_those_of_each() -> None:
    data, rng = rows(1), np.random.default_rng(2)
    problems = [Problem(1.0, f, rng.normal(size=(4, 7)).astype(np.float32)) for f in (0, 1, 2, NO_FOLD)]
    with row_threads() as threads:
        found = list(softmax_solver.evaluate(problems, data, threads, curvature=True))
    for problem, (loss, gradient, curvature) in zip(problems, found, strict=True):
        seen = np.concatenate([np.arange(a, b) for f, a, b in FOLDS if f != problem.fold])
        z = data.Z[seen].astype(np.float64) @ problem.x.T
        p = softmax(z, axis=1)
        assert loss == pytest.approx(-log_softmax(z, axis=1)[np.arange(len(seen)), data.y[seen]].sum(), rel=1e-5)
        np.testing.assert_allclose(gradient, (p - np.eye(4)[data.y[seen]]).T @ data.Z[seen], atol=1e-4)
        np.testing.assert_allclose(curvature, (p * (1 - p)).sum(0) / 120, rtol=1e-4)


def test_no_fold_knows_the_labels_that_it_is_scored_on() -> None:
    # Loose solutions still show where they started from: had the last fold's problem started from that of all
    # rows, other labels of that fold would show in it. With every problem's own start they do not.
    found = []
    for relabeled in (False, True):
        data = rows(3, relabeled)
        problems = [softmax_solver.start(data, 1e-3, fold) for fold in (2, NO_FOLD)]
        with row_threads() as threads:
            for C in np.geomspace(1e-3, 1e2, 11):
                for problem in problems:
                    if problem.C != C:
                        problem.move_to(float(C))
                softmax_solver.solve(problems, data, 0.05, 100, threads)
        found.append([problem.x.copy() for problem in problems])
    (own, everything), (own_again, everything_again) = found
    np.testing.assert_allclose(own, own_again, atol=1e-4 * np.abs(own).max())
    assert np.abs(everything - everything_again).max() > 0.1 * np.abs(everything).max()


def test_a_warm_start_keeps_the_history_true() -> None:
    data = rows(4)
    problem = softmax_solver.start(data, 0.1, NO_FOLD)
    with row_threads() as threads:
        softmax_solver.solve([problem], data, 1e-6, 100, threads)
        pairs = [(s.copy(), y.copy()) for s, y, _ in problem.pairs]
        problem.move_to(0.3)
        for (s, y), (same, scaled, _) in zip(pairs, problem.pairs, strict=True):
            np.testing.assert_array_equal(s, same)
            penalty = np.where(np.arange(7) < 6, s, 0)
            np.testing.assert_allclose(scaled, penalty + 3 * (y - penalty), rtol=1e-4, atol=1e-5)
        softmax_solver.solve([problem], data, 1e-6, 100, threads)
        warm = problem.x
        cold = softmax_solver.start(data, 0.3, NO_FOLD)
        softmax_solver.solve([cold], data, 1e-6, 100, threads)
    np.testing.assert_allclose(warm[:, :-1], cold.x[:, :-1], atol=5e-3)


@pytest.mark.parametrize("n", [40, 12])
@pytest.mark.parametrize("scale", [1.0, 1e-9])
def test_axes_are_orthonormal_and_lose_nothing(n: int, scale: float) -> None:
    rng = np.random.default_rng(5)
    X = (scale * (rng.normal(size=(n, 20)) * np.geomspace(1, 1e-5, 20) + 3)).astype(np.float32)
    weights = rng.uniform(0.5, 2, n)
    axes = principal_axes(X, weights)
    assert axes.basis.shape == (20, min(n, 20))
    np.testing.assert_allclose(axes.basis.T @ axes.basis, np.eye(axes.basis.shape[1]), atol=1e-5)
    centred = X - np.average(X, axis=0, weights=weights)
    Z = axes.rotated(X)
    np.testing.assert_allclose(Z @ axes.basis.T, centred, atol=1e-5 * np.abs(centred).max())
    gram = Z.T.astype(np.float64) * weights @ Z
    off = gram - np.diag(np.diag(gram))
    assert np.abs(off).max() < 1e-5 * np.diag(gram).max()


@pytest.mark.parametrize("offset", [0.0, 0.3])
def test_a_certificate_bounds_the_distance_to_the_optimum(offset: float) -> None:
    rng = np.random.default_rng(6)
    y = np.sort(np.arange(90) % 3)
    X = (rng.normal(size=(3, 5))[y] + rng.normal(size=(90, 5))).astype(np.float32)
    data = Labeled(X, y, rng.uniform(0.5, 2, 90), [(NO_FOLD, 0, 90)], 3)
    with row_threads() as threads:

        def at(coef: np.ndarray, intercept: np.ndarray) -> tuple[float, float]:
            (found,) = certify(data, [Solution(coef, intercept, 0.7, NO_FOLD)], threads, 1e-10)
            return found.objective, found.gap

        rows_ = Rows(
            np.column_stack([X, np.ones(90)]).astype(np.float32), y, data.weights.astype(np.float32), data.folds, 3
        )
        problem = softmax_solver.start(rows_, 0.7, NO_FOLD)
        softmax_solver.solve([problem], rows_, 1e-9, 500, threads)
        best, gap = at(problem.weights.astype(np.float64), problem.intercepts.astype(np.float64))
        assert gap < 1e-6
        for size in (1e-3, 1e-1, 1.0):
            coef = problem.weights + size * rng.normal(size=(3, 5))
            f, gap = at(coef, problem.intercepts + offset * rng.normal(size=3))
            assert f > best
            assert f - best <= gap * f * (1 + 1e-9)
            plain = -log_softmax(X @ coef.T + 0.0, axis=1)
            assert np.isfinite(plain).all()
