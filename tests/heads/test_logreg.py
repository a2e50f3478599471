"""``logreg`` is what scikit-learn's own parts give on the same folds."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from featcache.heads.logreg import CS, LogRegHead
from featcache.metrics.splits import folds
from tests.heads.test_heads import gaussians

pytestmark = pytest.mark.usefixtures("one_thread")


def plain(C: float) -> object:
    return make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=2000))


def losses(X: np.ndarray, y: np.ndarray, groups: np.ndarray, k: int, seed: int) -> np.ndarray:
    """The search without warm starts and without stopping early."""
    found = []
    for C in CS:
        total = 0.0
        for train_rows, test in folds(y, groups, k, seed):
            model = plain(C).fit(X[train_rows], y[train_rows])  # type: ignore[attr-defined]
            total += len(test) * log_loss(y[test], model.predict_proba(X[test]), labels=model.classes_)
        found.append(total / len(y))
    return np.array(found)


@pytest.mark.parametrize(("k", "spread"), [(2, 0.2), (3, 0.3), (3, 0.6), (4, 2.0)])
def test_the_choice_is_that_of_a_plain_search(k: int, spread: float) -> None:
    X, y = gaussians(120, k, d=20, seed=k, spread=spread)
    wanted = losses(X, y, np.arange(120), 5, 1)
    head = LogRegHead(random_state=1).fit(X, y)
    assert head.chosen_ == {"C": CS[int(wanted.argmin())]}
    done = np.isfinite(head.scores_)
    assert done[: wanted.argmin() + 1].all()
    np.testing.assert_allclose(head.scores_[done], wanted[done], rtol=2e-3)


def test_the_problems_above_have_different_answers() -> None:
    chosen = {LogRegHead().fit(*gaussians(120, 3, d=20, spread=spread)).chosen_["C"] for spread in (0.1, 0.6, 3.0)}
    assert len(chosen) > 1


@pytest.mark.parametrize("k", [2, 3])
def test_the_scaler_is_folded_in(k: int) -> None:
    X, y = gaussians(150, k)
    X = X * np.array([1, 10, 0.1, 3, 1, 1]) + np.array([0, 100, 0, -5, 0, 0])
    head = LogRegHead().fit(X, y)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=head.chosen_["C"], max_iter=300)).fit(X, y)
    assert head.coef_.shape == (1 if k == 2 else k, 6)
    np.testing.assert_allclose(head.predict_proba(X), model.predict_proba(X), atol=1e-6)
    np.testing.assert_allclose(head.decision_function(X), model.decision_function(X), atol=1e-6)
    assert head.predict(X).tolist() == model.predict(X).tolist()


def test_groups_stay_together_in_the_inner_folds() -> None:
    # Six noisy copies of each item: alone, a copy in another fold gives the label away and weak penalties win.
    rng = np.random.default_rng(0)
    X = np.repeat(rng.normal(size=(40, 80)), 6, axis=0) + rng.normal(size=(240, 80)) * 0.01
    y = np.repeat(np.array(["a", "b"])[np.arange(40) % 2], 6)
    groups = np.repeat(np.arange(40), 6)
    apart, together = LogRegHead().fit(X, y), LogRegHead().fit(X, y, groups)
    assert apart.chosen_["C"] == CS[-1]
    wanted = losses(X, y, groups, 5, 0)
    assert together.chosen_["C"] == CS[int(wanted.argmin())] < apart.chosen_["C"]


def test_no_choice_is_possible_with_one_item_of_a_class() -> None:
    X, y = gaussians(41, 2)
    y[0] = "rare"
    head = LogRegHead().fit(X, y)
    assert np.isnan(head.scores_).all()
    assert head.chosen_ == {"C": CS[len(CS) // 2]}


def test_fewer_folds_where_a_class_is_small() -> None:
    X, y = gaussians(60, 2, spread=0.3)
    y[:3] = "rare"
    head = LogRegHead().fit(X, y)
    wanted = losses(X, y, np.arange(60), 3, 0)
    np.testing.assert_allclose(head.scores_[0], wanted[0], rtol=2e-3)


def test_groups_that_hold_several_classes_can_leave_a_fold_without_one() -> None:
    # With these groups one fold has all items of class 1, so no head can be fitted that knows it.
    for seed in range(3000):
        rng = np.random.default_rng(seed)
        y, groups = rng.integers(0, 3, 12), rng.integers(0, 5, 12)
        if min(len(np.unique(groups[y == c])) for c in range(3)) < 2:
            continue
        parts = folds(y, groups, 2, 0)
        if any(len(np.unique(y[train_rows])) < 3 for train_rows, _ in parts):
            break
    else:
        pytest.fail("no such problem was found")
    head = LogRegHead(cv=2).fit(rng.normal(size=(12, 4)), y, groups)
    assert head.classes_.tolist() == [0, 1, 2]
    assert head.chosen_["C"] in CS


def test_one_c_needs_no_search_and_the_order_of_the_grid_is_irrelevant() -> None:
    X, y = gaussians(60)
    assert LogRegHead(Cs=[0.5]).fit(X, y).chosen_ == {"C": 0.5}
    assert LogRegHead(Cs=CS[::-1]).fit(X, y).chosen_ == LogRegHead().fit(X, y).chosen_


def test_it_says_whether_it_converged() -> None:
    X, y = gaussians(200, spread=0.5)
    assert LogRegHead().fit(X, y).converged_
    assert not LogRegHead(max_iter=1).fit(X, y).converged_
