"""The temperature is that of the least log-loss, found another way."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from sklearn.metrics import log_loss

from featcache.metrics.calibration import fit_temperature, softmax


def made(n: int, k: int, scale: float, noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    class_ids = rng.integers(0, k, n)
    return scale * (np.eye(k)[class_ids] + noise * rng.normal(size=(n, k))), class_ids


def smoothed_loss(slope: float, scores: np.ndarray, class_ids: np.ndarray, weights: np.ndarray) -> float:
    n, k = scores.shape
    wrong = 1 / (weights.sum() + 2)
    targets = np.zeros((n, k))
    targets[np.arange(n), class_ids] = 1 - wrong
    others = np.where(targets > 0, -np.inf, scores)
    targets[np.arange(n), others.argmax(1)] = wrong
    z = slope * scores
    logs = z - np.log(np.exp(z - z.max(1, keepdims=True)).sum(1, keepdims=True)) - z.max(1, keepdims=True)
    return float(-(weights[:, None] * targets * logs).sum() / weights.sum())


@pytest.mark.parametrize(("k", "scale", "noise"), [(2, 1.0, 1.0), (5, 1e-4, 0.5), (5, 1e5, 2.0), (40, 3.0, 0.2)])
@pytest.mark.parametrize("weighted", [False, True])
def test_it_has_the_least_loss(k: int, scale: float, noise: float, weighted: bool) -> None:
    scores, class_ids = made(400, k, scale, noise)
    weights = np.random.default_rng(1).random(400) if weighted else np.ones(400)
    found = minimize_scalar(
        lambda log: smoothed_loss(np.exp(log), scores, class_ids, weights), bounds=(-20, 20), options={"xatol": 1e-9}
    )
    T, loss = fit_temperature(scores, class_ids, weights if weighted else None)
    assert pytest.approx(np.exp(-found.x), rel=1e-4) == T
    assert loss == pytest.approx(
        log_loss(class_ids, softmax(scores / T), sample_weight=weights, labels=range(k)), rel=1e-3
    )


def test_a_class_that_is_never_near_does_not_matter() -> None:
    scores, class_ids = made(300, 4, 1.0, 0.5)
    far = np.column_stack([scores, np.full(300, -1e4)])
    assert fit_temperature(far, class_ids)[0] == pytest.approx(fit_temperature(scores, class_ids)[0], rel=1e-3)


def test_where_it_starts_does_not_matter() -> None:
    scores, class_ids = made(300, 4, 1.0, 0.7)
    wanted, _ = fit_temperature(scores, class_ids)
    for start in (1e-6, 1.0, 1e6):
        assert fit_temperature(scores, class_ids, start=start)[0] == pytest.approx(wanted, rel=1e-4)


def test_scores_that_are_always_right_have_a_finite_one() -> None:
    scores, class_ids = made(300, 3, 1.0, 0.0)
    T, loss = fit_temperature(scores, class_ids)
    assert 0.01 < T < 1
    assert 0 < loss < 0.02


def test_scores_that_mislead_or_say_nothing_give_equal_probabilities() -> None:
    scores, class_ids = made(300, 3, 1.0, 0.3)
    for bad in (-scores, np.zeros_like(scores)):
        T, loss = fit_temperature(bad, class_ids)
        np.testing.assert_allclose(softmax(bad / T), 1 / 3, atol=0.01)
        assert loss == pytest.approx(np.log(3), abs=0.01)


def test_many_rows_are_summed_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, class_ids = made(300, 3, 1.0, 0.5)
    whole = fit_temperature(scores, class_ids)
    monkeypatch.setattr("featcache.metrics.calibration._AT_ONCE", 30)
    assert fit_temperature(scores, class_ids) == pytest.approx(whole)
