"""``ridge`` is scikit-learn's ridge, and its leave-one-out is what fitting again and again gives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge, RidgeClassifier

from featcache.core.errors import UsageError
from featcache.heads import ridge
from featcache.heads.ridge import RELATIVE_ALPHAS, RidgeHead, left_out_scores, ridge_axes, signs
from featcache.heads.streaming import VectorStream
from featcache.heads.validation import class_scores
from featcache.metrics.calibration import fit_temperature
from tests.heads.test_heads import gaussians

PENALTIES = np.array([1e-2, 1.0, 100.0])


def stream(X: np.ndarray, class_ids: np.ndarray, groups: np.ndarray | None = None) -> VectorStream:
    groups = np.arange(len(X)) if groups is None else groups
    return VectorStream(lambda rows: X[rows], class_ids, groups, np.unique(class_ids), X.shape[1])


def problem(n: int, d: int, k: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Vectors far from zero, in float64, and class ids."""
    rng = np.random.default_rng(seed)
    class_ids = rng.permutation(np.arange(n) % k)
    return rng.normal(size=(n, d)) * rng.uniform(0.2, 3, d) + 5 + class_ids[:, None] * 0.3, class_ids


def refitted(X: np.ndarray, Y: np.ndarray, groups: np.ndarray, penalty: float) -> np.ndarray:
    scores = np.empty_like(Y)
    for group in np.unique(groups):
        out = groups == group
        scores[out] = Ridge(penalty).fit(X[~out], Y[~out]).predict(X[out]).reshape(out.sum(), -1)
    return scores


GROUPINGS = {
    "items": lambda n: np.arange(n),
    "pairs": lambda n: np.arange(n) // 2,
    "mixed": lambda n: np.random.default_rng(3).integers(0, n // 3, n),
    "one larger than the axes": lambda n: np.maximum(np.arange(n) - n // 2, 0) // 3,
}


@pytest.mark.parametrize("grouping", GROUPINGS)
@pytest.mark.parametrize(("n", "d", "k"), [(40, 6, 2), (41, 6, 4), (24, 60, 2), (25, 60, 3)])
def test_left_out_scores_are_those_of_refitting(n: int, d: int, k: int, grouping: str) -> None:
    X, class_ids = problem(n, d, k)
    groups, Y = GROUPINGS[grouping](n), signs(class_ids, k)
    fitted = ridge_axes(stream(X, class_ids, groups))
    found = list(left_out_scores(fitted, fitted.rotated(X), Y, groups, PENALTIES))
    for penalty, scores in zip(PENALTIES, found, strict=True):
        np.testing.assert_allclose(scores, refitted(X, Y, groups, penalty), atol=1e-8)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(4, 30), st.integers(1, 20), st.integers(2, 4), st.integers(2, 12))
def test_left_out_scores_of_any_problem(seed: int, n: int, d: int, k: int, count: int) -> None:
    X, class_ids = problem(n, d, min(k, n), seed)
    groups = np.random.default_rng(seed).integers(0, count, n)
    groups[:2] = 0, 1  # at least two
    Y = signs(class_ids, min(k, n))
    fitted = ridge_axes(stream(X, class_ids, groups))
    for penalty, scores in zip(
        PENALTIES, left_out_scores(fitted, fitted.rotated(X), Y, groups, PENALTIES), strict=True
    ):
        np.testing.assert_allclose(scores, refitted(X, Y, groups, penalty), atol=1e-7)


def test_left_out_scores_in_single_precision() -> None:
    X, class_ids = problem(200, 20, 3)
    X = X.astype(np.float32)
    fitted = ridge_axes(stream(X, class_ids))
    found = left_out_scores(fitted, fitted.rotated(X), signs(class_ids, 3), np.arange(200), PENALTIES)
    for penalty, scores in zip(PENALTIES, found, strict=True):
        wanted = refitted(X.astype(np.float64), signs(class_ids, 3), np.arange(200), penalty)
        np.testing.assert_allclose(scores, wanted, atol=2e-5)


@pytest.mark.parametrize(("n", "d", "k"), [(80, 6, 2), (81, 6, 4), (30, 50, 2), (30, 50, 3)])
def test_the_coefficients_are_those_of_scikit_learn(n: int, d: int, k: int) -> None:
    X, class_ids = problem(n, d, k)
    for penalty in PENALTIES:
        head = RidgeHead(alphas=[penalty]).fit(X, class_ids)
        wanted = RidgeClassifier(alpha=penalty).fit(X, class_ids)
        np.testing.assert_allclose(head.coef_, np.atleast_2d(wanted.coef_), atol=1e-9)
        np.testing.assert_allclose(head.intercept_, wanted.intercept_, atol=1e-8)
        np.testing.assert_allclose(head.decision_function(X), wanted.decision_function(X), atol=1e-8)
        assert head.predict(X).tolist() == wanted.predict(X).tolist()
        assert (head.alpha_, head.chosen_, head.chosen_by_) == (penalty, {"alpha": penalty}, "given")


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("spread", [0.1, 0.4, 2.0])
def test_the_penalty_is_that_of_the_least_left_out_loss(k: int, spread: float) -> None:
    X, y = gaussians(90, k, d=30, spread=spread)
    X = X.astype(np.float64)
    class_ids = np.unique(y, return_inverse=True)[1]
    head = RidgeHead().fit(X, y)
    wanted = []
    for penalty in head.alphas_:
        scores = refitted(X, signs(class_ids, k), np.arange(90), penalty)
        wanted.append(fit_temperature(class_scores(scores), class_ids))
    losses = [loss for _, loss in wanted]
    np.testing.assert_allclose(head.scores_, losses, rtol=1e-4)
    best = int(np.argmin(losses))
    assert head.alpha_ == head.alphas_[best]
    assert head.temperature_ == pytest.approx(wanted[best][0], rel=1e-4)


def test_the_problems_above_have_different_answers() -> None:
    heads = [RidgeHead().fit(*gaussians(90, 3, d=30, spread=spread)) for spread in (0.1, 0.4, 2.0)]
    assert len({int(np.argmin(head.scores_)) for head in heads}) > 1


def test_groups_are_left_out_together() -> None:
    # Noisy copies of items whose labels are arbitrary: alone, the others give an item away.
    rng = np.random.default_rng(0)
    X = np.repeat(rng.normal(size=(40, 80)), 4, axis=0) + rng.normal(size=(160, 80)) * 0.01
    y = np.repeat(np.arange(40) % 2, 4)
    apart, together = RidgeHead().fit(X, y), RidgeHead().fit(X, y, np.repeat(np.arange(40), 4))
    assert apart.scores_.min() < 0.1 < 0.6 < together.scores_.min()
    assert (apart.chosen_by_, together.chosen_by_) == ("leaving out one item", "leaving out one group")


def test_of_equal_losses_the_larger_penalty_is_taken() -> None:
    X = np.zeros((20, 3))
    head = RidgeHead().fit(X, np.arange(20) % 2)
    assert len(set(head.scores_)) == 1
    assert head.alpha_ == head.alphas_[-1] == RELATIVE_ALPHAS[-1]


def test_the_default_penalties_follow_the_scale_of_the_vectors() -> None:
    X, y = gaussians(90)
    small, large = RidgeHead().fit(X, y), RidgeHead().fit(X * 1000, y)
    np.testing.assert_allclose(large.alphas_, small.alphas_ * 1e6, rtol=1e-4)
    np.testing.assert_allclose(large.predict_proba(X * 1000), small.predict_proba(X), atol=1e-4)
    scatter = np.square(X - X.mean(0), dtype=np.float64).sum() / 6
    np.testing.assert_allclose(small.alphas_, np.array(RELATIVE_ALPHAS) * scatter, rtol=1e-5)


def test_probabilities_are_calibrated_on_what_was_not_seen() -> None:
    X, y = gaussians(3000, 3, d=10, spread=0.5)
    head = RidgeHead().fit(X[:1500], y[:1500])
    p = head.predict_proba(X[1500:])
    confident, right = p.max(1), head.predict(X[1500:]) == y[1500:]
    assert confident.mean() == pytest.approx(right.mean(), abs=0.04)
    assert 0.5 < right.mean() < 0.95


def test_rows_are_read_in_blocks_and_the_answer_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    X, class_ids = problem(10_000, 5, 3)
    X, asked = X.astype(np.float32), []

    def read(rows: np.ndarray) -> np.ndarray:
        asked.append(len(rows))
        return X[rows]

    whole = RidgeHead().fit(X, class_ids)
    streamed = RidgeHead().fit_stream(VectorStream(read, class_ids, np.arange(10_000), np.arange(3), 5))
    np.testing.assert_array_equal(streamed.coef_, whole.coef_)
    assert streamed.temperature_ == whole.temperature_
    assert max(asked) <= 4096
    assert sum(asked) == 2 * len(X)


@pytest.mark.parametrize("size", [1, 7])
def test_of_very_many_rows_some_groups_are_left_out(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    X, class_ids = problem(900, 5, 3)
    groups = np.arange(900) // size
    whole = RidgeHead().fit(X, class_ids, groups)
    monkeypatch.setattr(ridge, "SCORED_ROWS", 300)
    some = RidgeHead(random_state=1).fit(X, class_ids, groups)
    assert some.chosen_by_ == f"leaving out one {'item' if size == 1 else 'group'}, for {300 // size * size} items"
    np.testing.assert_allclose(some.scores_, whole.scores_, rtol=0.1)
    assert (some.scores_ != whole.scores_).any()
    # The fit itself is that of all rows.
    again = RidgeHead(alphas=[some.alpha_]).fit(X, class_ids)
    np.testing.assert_allclose(some.coef_, again.coef_, atol=1e-12)


def test_one_group_alone_cannot_be_left_out() -> None:
    X, y = gaussians(60)
    head, plain = RidgeHead().fit(X, y, np.zeros(60)), RidgeHead().fit(X, y)
    assert head.alpha_ == plain.alpha_
    assert "all are of one group" in head.chosen_by_


@pytest.mark.parametrize(("value", "what"), [(np.nan, "NaN"), (np.inf, "inf"), (-np.inf, "inf")])
@pytest.mark.parametrize(("n", "row"), [(90, 7), (5000, 4999)])
def test_a_row_that_is_not_finite_is_named(value: float, what: str, n: int, row: int) -> None:
    X, y = gaussians(n)
    X[row, 3] = value
    with pytest.raises(UsageError, match=f"Row {row} of the vectors holds {what}|Row {row} .*{what}"):
        RidgeHead().fit(X, y)
    class_ids = np.unique(y, return_inverse=True)[1]
    with pytest.raises(UsageError, match=f"Row {row} "):
        RidgeHead().fit_stream(stream(X, class_ids))
    head = RidgeHead().fit(*gaussians(60))
    with pytest.raises(UsageError, match=f"Row {row} "):
        head.predict(X)


@pytest.mark.parametrize("alphas", [[], [0.0], [1.0, -1.0], [float("nan")]])
def test_penalties_are_positive(alphas: list[float]) -> None:
    with pytest.raises(UsageError, match="alphas must be one or more positive"):
        RidgeHead(alphas=alphas).fit(*gaussians(30))


def test_numbers_whose_squares_overflow_are_refused() -> None:
    X, y = gaussians(30)
    with np.errstate(over="ignore"), pytest.raises(UsageError, match="squares overflow"):
        RidgeHead().fit(X * np.float32(1e25), y)


def test_one_class_is_named() -> None:
    X, _ = gaussians(30)
    with pytest.raises(UsageError, match="All 30 rows are of one class, cat"):
        RidgeHead().fit(X, np.full(30, "cat"))


def test_groups_of_another_length_are_refused() -> None:
    X, y = gaussians(30)
    with pytest.raises(UsageError, match=r"\(30,\), not \(29,\)"):
        RidgeHead().fit(X, y, np.arange(29))
