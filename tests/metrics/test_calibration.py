"""The calibration error and the temperature, against the plain formulas and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression

from featcache.metrics.calibration import (
    expected_calibration_error,
    held_out_temperature,
    log_loss,
    plain_temperature,
    with_temperature,
)

ANSWERS = st.lists(st.tuples(st.sampled_from([0.1, 0.25, 0.5, 0.7, 0.9, 1.0]), st.booleans()), min_size=1, max_size=60)


def problem(n: int, k: int, seed: int, sharpness: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """(n, k) logits and (n,) truths drawn from softmax(logits / sharpness)."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, k)) * 2
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    truth = np.array([rng.choice(k, p=row) for row in p])
    return z * sharpness, truth


@given(ANSWERS, st.integers(1, 20), st.randoms(use_true_random=False))
def test_the_error_is_a_share_and_no_order_changes_it(
    answers: list[tuple[float, bool]], bins: int, rng: object
) -> None:
    sure, right = (np.array(column) for column in zip(*answers, strict=True))
    error = expected_calibration_error(sure, right, bins)
    assert 0 <= error <= 1
    order = np.random.default_rng(rng.randrange(1000)).permutation(len(sure))  # type: ignore[attr-defined]
    assert expected_calibration_error(sure[order], right[order], bins) == pytest.approx(error, abs=1e-12)
    # One bin sees only the mean; more bins can only see more.
    assert error >= abs(sure.mean() - right.mean()) - 1e-12
    assert expected_calibration_error(sure, right, 1) == pytest.approx(abs(sure.mean() - right.mean()), abs=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_the_error_is_that_of_scikit_learns_bins(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sure = rng.uniform(0.2, 1, 1500)
    right = rng.random(1500) < sure**2
    share, mean = calibration_curve(right, sure, n_bins=15, strategy="quantile")
    assert expected_calibration_error(sure, right) == pytest.approx(np.abs(share - mean).mean(), abs=2e-4)
    both = np.column_stack([sure, 1 - sure])
    assert expected_calibration_error(both, right) == expected_calibration_error(both.max(1), right)


def test_the_error_of_what_can_be_counted() -> None:
    # Of ten answers at 0.8 eight are right: no error. Of ten at 0.6 none is: an error of 0.6 for half the items.
    sure = np.repeat([0.8, 0.6], 10)
    right = np.array([True] * 8 + [False] * 12)
    assert expected_calibration_error(sure, right) == pytest.approx(0.3)
    assert math.isnan(expected_calibration_error(np.empty(0), np.empty(0)))


@settings(deadline=None, max_examples=60)
@given(st.integers(10, 80), st.integers(2, 6), st.integers(0, 10_000), st.floats(0.05, 20))
def test_no_temperature_is_better(n: int, k: int, seed: int, sharpness: float) -> None:
    z, truth = problem(n, k, seed, sharpness)
    best = plain_temperature(z, truth)
    assert best > 0
    loss = log_loss(z / best, truth)
    assert loss <= log_loss(z, truth) + 1e-12
    for other in (best * 0.9, best * 1.1, 0.3, 3.0):
        if best != 1.0:
            assert loss <= log_loss(z / other, truth) + 1e-12


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.floats(1e-6, 1e6), st.integers(2, 5))
def test_the_temperature_follows_the_scale_and_no_shift(seed: int, factor: float, k: int) -> None:
    z, truth = problem(60, k, seed)
    plain = plain_temperature(z, truth)
    scaled = plain_temperature(z * factor, truth)
    assert scaled == pytest.approx(1.0 if plain == 1.0 else plain * factor, rel=1e-6)
    shift = np.random.default_rng(seed).normal(size=(60, 1))
    assert plain_temperature(z + shift, truth) == pytest.approx(plain, rel=1e-6)


@pytest.mark.parametrize("sharpness", [0.2, 1.0, 5.0])
def test_the_temperature_that_drew_the_labels_is_found(sharpness: float) -> None:
    z, truth = problem(4000, 4, 1, sharpness)
    assert plain_temperature(z, truth) == pytest.approx(sharpness, rel=0.1)


def test_for_two_classes_it_is_a_logistic_regression_of_one_number() -> None:
    z, truth = problem(500, 2, 2, 3.0)
    model = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10).fit((z[:, 1] - z[:, 0])[:, None], truth)
    assert plain_temperature(z, truth) == pytest.approx(1 / model.coef_[0, 0], rel=1e-4)


def test_where_no_temperature_is_best_it_is_one() -> None:
    right = np.array([[2.0, 0], [0, 1]])
    assert plain_temperature(right, np.array([0, 1])) == 1.0
    assert plain_temperature(right, np.array([1, 0])) == 1.0
    assert plain_temperature(np.zeros((4, 3)), np.array([0, 1, 2, 0])) == 1.0
    assert plain_temperature(np.empty((0, 3)), np.empty(0, int)) == 1.0


def test_rows_that_were_never_held_out_are_left_out() -> None:
    z, truth = problem(100, 3, 3, 4.0)
    wanted = plain_temperature(z[:60], truth[:60])
    z[60:] = np.nan
    assert plain_temperature(z, truth) == wanted != 1.0


class Fitted:
    """A head with out-of-fold logits of its own."""

    def __init__(self, logits: np.ndarray, classes: list[str]) -> None:
        self.held_out_logits_ = logits.astype(np.float32)
        self.classes_ = np.array(classes)


def test_a_heads_own_out_of_fold_logits_are_used_by_name_of_class() -> None:
    z, truth = problem(300, 3, 4, 5.0)
    z[::7] = np.nan
    head = Fitted(z[:, [2, 0, 1]], ["c", "a", "b"])
    kept = np.isfinite(z).all(1)
    found = held_out_temperature(head, np.array(["a", "b", "c"])[truth])
    assert found == pytest.approx(plain_temperature(z[kept].astype(np.float32), truth[kept]), rel=1e-6)
    assert held_out_temperature(object(), np.array(["a"])) is None


@given(st.integers(0, 1000), st.floats(0.2, 5))
def test_tempered_is_softmax_of_the_divided_logits(seed: int, temperature: float) -> None:
    z, _ = problem(20, 3, seed)

    def softmax(x: np.ndarray) -> np.ndarray:
        return np.asarray(np.exp(x) / np.exp(x).sum(1, keepdims=True))

    after = with_temperature(softmax(z), temperature)
    np.testing.assert_allclose(after, softmax(z / temperature), rtol=1e-9)
    np.testing.assert_allclose(with_temperature(after, 1 / temperature), softmax(z), rtol=1e-9)
    assert (after.argmax(1) == z.argmax(1)).all()
