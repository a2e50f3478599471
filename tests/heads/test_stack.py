"""The head `stack`: one linear map that is the weighted sum of its members, with weights by out-of-fold log-loss."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from sklearn.linear_model import LogisticRegression, RidgeClassifier

from featcache.core.errors import UsageError
from featcache.heads import stack
from featcache.heads.predictors import LinearPredictor
from featcache.heads.serialize import export_predictor
from featcache.heads.stack import StackHead, stack_weights
from featcache.heads.streaming import VectorStream


def drawn(n: int = 240, k: int = 3, widths: tuple[int, ...] = (30, 12), seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Layers that each know a part of the classes."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % k
    parts = [rng.normal(size=(n, d)) + 0.4 * rng.normal(size=(k, d))[y] for d in widths]
    return np.concatenate(parts, axis=1).astype(np.float32), np.array([f"class {i}" for i in y])


@pytest.mark.parametrize("k", [2, 3])
def test_the_matrix_is_the_sum_of_its_members(k: int) -> None:
    X, y = drawn(k=k)
    head = StackHead(widths=(30, 12)).fit(X, y)
    assert [(m.name, m.first) for m in head.members_] == [("ridge", 30), ("softmax", 30), ("ridge", 0), ("softmax", 0)]
    assert head.weights_.sum() == pytest.approx(1)
    summed = np.zeros((len(X), k))
    for member, weight in zip(head.members_, head.scale_ * head.weights_, strict=True):
        z = X[:, member.first :].astype(np.float64) @ member.coef.T + member.intercept
        z = np.column_stack([np.zeros(len(X)), z]) if k == 2 else z
        # Log-probabilities, not scores: they differ by a number per row.
        summed += weight * log_softmax(z / member.temperature, axis=1)
    np.testing.assert_allclose(head.predict_proba(X), softmax(summed, axis=1), atol=1e-6)
    exported = export_predictor(head)
    assert isinstance(exported, LinearPredictor)
    np.testing.assert_allclose(exported.probabilities(X), softmax(summed, axis=1), atol=1e-5)


def test_members_are_those_of_scikit_learn() -> None:
    X, y = drawn()
    head = StackHead(widths=(30, 12)).fit(X, y)
    for member in head.members_:
        part = X[:, member.first :]
        if member.name == "ridge":
            same = RidgeClassifier(alpha=member.chosen["alpha"]).fit(part, y)
        else:
            same = LogisticRegression(C=member.chosen["C"], tol=1e-10, max_iter=10_000).fit(part, y)
        centred = lambda W: W - W.mean(axis=0)  # noqa: E731
        np.testing.assert_allclose(centred(member.coef), centred(same.coef_), atol=2e-3)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 4), st.integers(2, 5))
def test_the_weights_have_the_least_loss_within_one_standard_error(seed: int, members: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    n = 150
    truth = rng.integers(0, k, n)
    held_out = [rng.normal(size=(n, k)) + rng.uniform(0, 2) * np.eye(k)[truth] + 0.0 for _ in range(members)]
    weights, how = stack_weights(held_out, truth)
    assert (weights >= 0).all()
    assert how == "out-of-fold log-loss of 150 items"

    def losses(w: np.ndarray) -> np.ndarray:
        target = np.full((n, k), 1 / (n + 2) / (k - 1))
        target[np.arange(n), truth] = 1 - 1 / (n + 2)
        return -(target * log_softmax(np.tensordot(w, np.stack(held_out), 1), axis=1)).sum(axis=1)

    best = minimize(lambda r: losses(r**2).mean(), np.full(members, 0.5), method="Nelder-Mead",
                    options={"xatol": 1e-7, "fatol": 1e-10, "maxiter": 5000}).x ** 2  # fmt: skip
    excess = losses(weights) - losses(best)
    assert excess.mean() <= excess.std(ddof=1) / np.sqrt(n) + 1e-5
    # A twentieth of the way nearer to the best single member costs more than that, unless it is there.
    single = np.eye(members)[int(np.argmin([losses(w).mean() for w in np.eye(members)]))]
    if not np.allclose(weights, single):
        step = np.linalg.norm(weights - single) / np.linalg.norm(best - single)
        nearer = single + (step - 0.06) / step * (weights - single)
        excess = losses(nearer) - losses(best)
        assert excess.mean() > excess.std(ddof=1) / np.sqrt(n) - 1e-3


def test_where_every_answer_is_right_the_weights_stay_small() -> None:
    truth = np.arange(60) % 3
    weights, _ = stack_weights([4.0 * np.eye(3)[truth], 3.0 * np.eye(3)[truth]], truth)
    p = softmax(np.tensordot(weights, np.stack([4.0 * np.eye(3)[truth], 3.0 * np.eye(3)[truth]]), 1), axis=1)
    assert p.max() == pytest.approx(1 - 1 / 62, abs=5e-3)


def test_members_that_agree_to_the_last_digit_are_one() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 90)
    scores = rng.normal(size=(90, 3)) + np.eye(3)[truth]
    weights, _ = stack_weights([scores, scores.copy()], truth)
    assert weights.sum() > 0
    alone, _ = stack_weights([scores, np.zeros_like(scores)], truth)
    assert alone[1] == 0
    # Scores that point away from the truth: no weight is better than 0, and one member must stay.
    lost, how = stack_weights([-5 * np.eye(3)[truth], -4 * np.eye(3)[truth]], truth)
    np.testing.assert_array_equal(lost, [0, 1])
    assert "none tells the classes apart" in how


def test_an_uninformative_layer_changes_little() -> None:
    X, y = drawn(widths=(40, 12))
    X[:, :40] = np.random.default_rng(1).normal(size=(len(X), 40))
    head = StackHead(widths=(40, 12)).fit(X, y)
    assert head.weights_[:2].sum() > 0.9


def test_one_layer_has_two_members_and_class_weights_leave_ridge_out() -> None:
    X, y = drawn()
    assert [m.name for m in StackHead().fit(X, y).members_] == ["ridge", "softmax"]
    weighted = StackHead(widths=(30, 12), class_weight={"class 0": 5.0}).fit(X, y)
    assert [m.name for m in weighted.members_] == ["softmax", "softmax"]
    plain = StackHead(widths=(30, 12)).fit(X, y)
    assert (weighted.predict(X) == "class 0").sum() > (plain.predict(X) == "class 0").sum()


def test_groups_are_left_out_together() -> None:
    X, y = drawn(n=120, widths=(20, 30))
    copies, labels = np.repeat(X, 3, axis=0), np.repeat(y, 3)
    groups = np.repeat(np.arange(len(X)), 3)
    together = StackHead(widths=(20, 30)).fit(copies, labels, groups)
    apart = StackHead(widths=(20, 30)).fit(copies, labels)
    # A copy among the rows learned from gives the answer away.
    assert together.members_[2].log_loss > apart.members_[2].log_loss + 0.05


def test_what_does_not_fit_in_memory_has_ridge_members_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = drawn()
    classes, ids = np.unique(y, return_inverse=True)
    stream = VectorStream(X.__getitem__, ids, np.arange(len(y)), classes, X.shape[1])
    whole = StackHead(widths=(30, 12)).fit_stream(stream)
    np.testing.assert_allclose(whole.coef_, StackHead(widths=(30, 12)).fit(X, y).coef_, rtol=1e-5, atol=1e-7)
    # A machine with little memory: vectors that this one has no room for would take minutes.
    monkeypatch.setattr(stack, "available_memory", lambda: 1000)
    assert [m.name for m in StackHead(widths=(30, 12)).fit_stream(stream).members_] == ["ridge", "ridge"]
    with pytest.raises(UsageError, match="class weights"):
        StackHead(class_weight="balanced").fit_stream(stream)


def test_bad_input_is_named() -> None:
    X, y = drawn()
    with pytest.raises(UsageError, match=r"42 numbers, and layers of \[30, 13\]"):
        StackHead(widths=(30, 13)).fit(X, y)
    with pytest.raises(UsageError, match="one class"):
        StackHead().fit(X, ["a"] * len(X))
    X[7, 3] = np.nan
    with pytest.raises(UsageError, match="Row 7"):
        StackHead().fit(X, y)


@pytest.mark.parametrize("y", [["a", "a", "b"], ["a", "b"], ["a", "a", "b", "c"]])
def test_few_rows_are_enough(y: list[str]) -> None:
    X = np.random.default_rng(0).normal(size=(len(y), 9)).astype(np.float32)
    head = StackHead(widths=(5, 4)).fit(X, y)
    p = head.predict_proba(X)
    assert np.isfinite(p).all()
    np.testing.assert_allclose(p.sum(axis=1), 1)


def test_a_class_without_a_second_row_is_learned() -> None:
    X, y = drawn(n=61)
    y[60] = "rare"
    head = StackHead(widths=(30, 12)).fit(X, y)
    assert list(head.classes_) == ["class 0", "class 1", "class 2", "rare"]
    assert np.isfinite(head.coef_).all()
