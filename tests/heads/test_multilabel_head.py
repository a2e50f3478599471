"""The head for several labels is scikit-learn's logistic regression for each, with one C."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from featcache.core.errors import UsageError
from featcache.heads import resolve_head
from featcache.heads.multilabel import SigmoidPathClassifier
from featcache.heads.predictors import linear_predictor
from featcache.metrics import multilabel
from featcache.metrics.multilabel import binary_losses


def problem(n: int = 120, k: int = 3, d: int = 6, noise: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, d)) + 4
    Y = (X - 4) @ rng.normal(size=(d, k)) + noise * rng.normal(size=(n, k)) > 0.5
    return X, Y


def one_by_one(X: np.ndarray, Y: np.ndarray, C: float, queries: np.ndarray) -> np.ndarray:
    models = [LogisticRegression(C=C, tol=1e-8, max_iter=5000).fit(X, y) for y in Y.T]
    return np.column_stack([model.predict_proba(queries)[:, 1] for model in models])


def test_each_label_is_a_logistic_regression_with_the_same_c() -> None:
    X, Y = problem()
    head = SigmoidPathClassifier(Cs=[0.3]).fit(X, Y)
    p = head.predict_proba(X)
    np.testing.assert_allclose(p, one_by_one(X, Y, 0.3, X), atol=1e-3)
    assert (head.predict(X) == (p > 0.5)).all()
    assert (head.chosen_, head.chosen_by_, head.converged_) == ({"C": 0.3}, "given", True)
    assert head.coef_.shape == (3, 6)


@pytest.mark.parametrize("noise", [0.3, 5.0])
@pytest.mark.parametrize("size", [1, 3])
def test_c_is_that_of_a_plain_search(noise: float, size: int) -> None:
    X, Y = problem(noise=noise)
    groups = np.arange(120) // size
    head = SigmoidPathClassifier(random_state=2).fit(X, Y, groups)
    wanted = np.zeros(len(head.Cs_))
    for train_rows, test in multilabel.folds(Y, groups, 5, 2):
        for place, C in enumerate(head.Cs_):
            wanted[place] += binary_losses(Y[test], one_by_one(X[train_rows], Y[train_rows], C, X[test])).sum() / Y.size
    done = ~np.isnan(head.scores_)
    np.testing.assert_allclose(head.scores_[done], wanted[done], rtol=2e-3)
    assert done[: wanted.argmin() + 1].all()
    assert head.Cs_[wanted.argmin()] == head.C_
    assert head.chosen_by_ == "5-fold cross-validation"


def test_the_problems_above_have_different_answers() -> None:
    assert len({SigmoidPathClassifier().fit(*problem(noise=noise)).C_ for noise in (0.3, 5.0)}) == 2


def test_labels_that_all_or_none_have() -> None:
    X, Y = problem()
    Y[:, 0], Y[:, 1] = True, False
    head = SigmoidPathClassifier().fit(X, Y)
    p = head.predict_proba(X)
    np.testing.assert_allclose(p[:, 0], 120.5 / 121, rtol=1e-9)
    np.testing.assert_allclose(p[:, 1], 0.5 / 121, rtol=1e-9)
    assert np.isfinite(p).all()


def test_few_groups_mean_few_folds() -> None:
    X, Y = problem()
    assert SigmoidPathClassifier().fit(X, Y, np.arange(120) % 2).chosen_by_ == "2-fold cross-validation"
    alone = SigmoidPathClassifier().fit(X, Y, np.zeros(120))
    assert "not compared" in alone.chosen_by_
    assert alone.Cs_[len(alone.Cs_) // 2] == alone.C_


def test_the_linear_form_has_a_sigmoid() -> None:
    X, Y = problem()
    head = SigmoidPathClassifier().fit(X, Y)
    predictor = linear_predictor(head)
    assert predictor.link == "sigmoid"
    np.testing.assert_allclose(predictor.probabilities(X), head.predict_proba(X), atol=1e-5)
    assert (predictor.predict(X) == head.predict(X)).all()
    large = predictor.probabilities(X * 1e6)
    assert large is not None
    assert np.isfinite(large).all()


def test_what_cannot_be_fitted() -> None:
    X, Y = problem()
    for wrong in (Y[:, 0], Y[:60], Y.astype(int) + 1):
        with pytest.raises(UsageError, match=r"Y has the shape \(120, labels\)"):
            SigmoidPathClassifier().fit(X, wrong)
    X[3, 1] = np.nan
    with pytest.raises(UsageError, match="Row 3 of the vectors holds NaN"):
        SigmoidPathClassifier().fit(X, Y)


@pytest.mark.parametrize("head", ["ridge", "sklearn.linear_model:LogisticRegression", "torch", LogisticRegression()])
def test_heads_of_one_label_name_those_of_several(head: object) -> None:
    with pytest.raises(UsageError, match=r"multilabel takes only the heads softmax"):
        resolve_head(head, task="multilabel").make()


def test_the_seed_reaches_it() -> None:
    assert resolve_head("softmax", seed=7, task="multilabel").make().random_state == 7


def test_what_is_wrong_with_the_call_is_said() -> None:
    X, Y = problem(30)
    with pytest.raises(UsageError, match=r"groups must have the shape \(30,\), not \(29,\)"):
        SigmoidPathClassifier().fit(X, Y, np.arange(29))
    for Cs in ((), (0.0, 1.0), (np.nan,)):
        with pytest.raises(UsageError, match="Cs must be one or more positive"):
            SigmoidPathClassifier(Cs=Cs).fit(X, Y)
    with pytest.raises(UsageError, match="cv must be at least 2, not 1"):
        SigmoidPathClassifier(cv=1).fit(X, Y)


def test_vectors_far_from_zero_keep_their_digits() -> None:
    X, Y = problem()
    far = (X + 1e6).astype(np.float32)
    narrow, wide = (SigmoidPathClassifier(Cs=[0.1, 1.0]).fit(x, Y) for x in (far, far.astype(np.float64)))
    np.testing.assert_allclose(narrow.predict_proba(far), wide.predict_proba(far), atol=2e-3)
    np.testing.assert_allclose(narrow.scores_, wide.scores_, rtol=1e-3)
