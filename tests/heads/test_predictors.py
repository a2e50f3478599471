"""The linear form says what the estimator says, and what has none is refused."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import (
    LogisticRegression,
    LogisticRegressionCV,
    Perceptron,
    RidgeClassifier,
    RidgeClassifierCV,
    SGDClassifier,
)
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MaxAbsScaler, MinMaxScaler, PolynomialFeatures, StandardScaler
from sklearn.svm import SVC, LinearSVC

from featcache.core.errors import BundleError
from featcache.heads import HEADS, resolve_head
from featcache.heads.predictors import linear_predictor
from featcache.heads.serialize import check_exportable, export_predictor
from tests.heads.test_heads import gaussians

SOFTMAX = {
    "logistic": LogisticRegression(),
    "logistic without intercept": LogisticRegression(fit_intercept=False),
    "standard": make_pipeline(StandardScaler(), LogisticRegression()),
    "standard, mean alone": make_pipeline(StandardScaler(with_std=False), LogisticRegression()),
    "standard, deviation alone": make_pipeline(StandardScaler(with_mean=False), LogisticRegression()),
    "min-max": make_pipeline(MinMaxScaler((-2, 3)), LogisticRegression()),
    "max-abs": make_pipeline(MaxAbsScaler(), LogisticRegression()),
    "PCA": make_pipeline(PCA(4), LogisticRegression()),
    "PCA, whitened": make_pipeline(PCA(4, whiten=True), LogisticRegression()),
    "truncated SVD": make_pipeline(TruncatedSVD(4, random_state=0), LogisticRegression()),
    "several": make_pipeline(StandardScaler(), "passthrough", PCA(3), MinMaxScaler(), LogisticRegression()),
}  # fmt: skip
MARGIN = {
    "LinearSVC": LinearSVC(),
    "ridge": RidgeClassifier(),
    "ridge CV": RidgeClassifierCV(),
    "SGD": SGDClassifier(random_state=0),
    "SGD log": SGDClassifier(loss="log_loss", random_state=0),
    "perceptron": Perceptron(random_state=0),
    "standard and LinearSVC": make_pipeline(StandardScaler(), LinearSVC()),
}
NONE = {
    "RandomForestClassifier": RandomForestClassifier(5, random_state=0),
    "KNeighborsClassifier": KNeighborsClassifier(3),
    "SVC": SVC(),
    "GaussianNB": GaussianNB(),
}


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("name", SOFTMAX)
def test_probabilities_are_equal(name: str, k: int) -> None:
    X, y = gaussians(120, k)
    fitted = SOFTMAX[name].fit(X, y)
    predictor = linear_predictor(fitted)
    assert (predictor.link, predictor.classes, predictor.weight.shape) == ("softmax", tuple(fitted.classes_), (k, 6))
    assert predictor.weight.dtype == predictor.bias.dtype == np.float32
    p = predictor.probabilities(X)
    np.testing.assert_allclose(p, fitted.predict_proba(X), atol=1e-5)
    assert predictor.predict(X).tolist() == fitted.predict(X).tolist()


@pytest.mark.parametrize("k", [2, 3])
def test_cross_validated_logistic_regression(k: int) -> None:
    X, y = gaussians(120, k)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of coming changes in its options
        fitted = LogisticRegressionCV(Cs=3, cv=3).fit(X, y)
    predictor = linear_predictor(fitted)
    np.testing.assert_allclose(predictor.probabilities(X), fitted.predict_proba(X), atol=1e-5)
    assert predictor.predict(X).tolist() == fitted.predict(X).tolist()


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("name", MARGIN)
def test_labels_are_equal_where_there_are_no_probabilities(name: str, k: int) -> None:
    X, y = gaussians(120, k, spread=0.6)
    fitted = MARGIN[name].fit(X, y)
    predictor = linear_predictor(fitted)
    assert predictor.link == "margin"
    assert predictor.probabilities(X) is None
    assert predictor.predict(X).tolist() == fitted.predict(X).tolist()
    assert len(set(predictor.predict(X))) == k


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("name", sorted(HEADS))
def test_our_heads_have_one_or_another_form(name: str, k: int) -> None:
    X, y = gaussians(120, k)
    fitted = resolve_head(name).make().fit(X, y)
    predictor = export_predictor(fitted)
    np.testing.assert_allclose(predictor.probabilities(X), fitted.predict_proba(X), atol=1e-5)
    assert predictor.predict(X).tolist() == fitted.predict(X).tolist()


@pytest.mark.parametrize(("strategy", "k"), [("ovr", 3), ("multinomial", 2)])
def test_probabilities_that_are_no_softmax_of_the_scores_are_left_out(strategy: str, k: int) -> None:
    # An option of scikit-learn before 1.8, which newer ones do not take but whose value decides there.
    X, y = gaussians(120, k)
    fitted = LogisticRegression().fit(X, y)
    fitted.multi_class = strategy
    assert linear_predictor(fitted).link == "margin"


def test_labels_become_text() -> None:
    X, y = gaussians(60)
    predictor = linear_predictor(LogisticRegression().fit(X, np.unique(y, return_inverse=True)[1]))
    assert predictor.classes == ("0", "1", "2")


def test_probabilities_of_large_scores_are_finite() -> None:
    X, y = gaussians(60)
    predictor = linear_predictor(LogisticRegression().fit(X, y))
    p = predictor.probabilities(X * 1e6)
    assert p is not None
    np.testing.assert_allclose(p.sum(1), 1)


@pytest.mark.parametrize("name", NONE)
def test_what_has_none_says_what_is_supported(name: str) -> None:
    fitted = NONE[name].fit(*gaussians(60))
    for estimator in (fitted, make_pipeline(StandardScaler(), NONE[name]).fit(*gaussians(60))):
        with pytest.raises(BundleError, match=f"A {name} cannot be saved.*LogisticRegression.*PCA"):
            linear_predictor(estimator)
    for unfitted in (NONE[name], make_pipeline(StandardScaler(), NONE[name])):
        with pytest.raises(BundleError, match=f"A {name} cannot be saved"):
            check_exportable(clone(unfitted))


CLIPPING = [MinMaxScaler(clip=True)]
if "clip" in MaxAbsScaler().get_params():  # an option of newer versions of scikit-learn
    CLIPPING.append(MaxAbsScaler(clip=True))


@pytest.mark.parametrize("step", [PolynomialFeatures(2), *CLIPPING])
def test_a_step_that_is_not_affine_is_named(step: Any) -> None:
    fitted = make_pipeline(step, LogisticRegression(max_iter=2000)).fit(*gaussians(60))
    with pytest.raises(BundleError, match=f"A pipeline with {type(step).__name__}.*StandardScaler"):
        linear_predictor(fitted)
    with pytest.raises(BundleError, match=f"A pipeline with {type(step).__name__}"):
        check_exportable(clone(fitted))


def test_a_linear_regression_of_numbers_is_no_classifier() -> None:
    from sklearn.linear_model import LinearRegression

    X, _ = gaussians(60)
    with pytest.raises(BundleError, match="LinearRegression"):
        linear_predictor(LinearRegression().fit(X, X[:, 0]))


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("name", sorted(set(HEADS) - {"knn", "mlp"}))
def test_the_order_in_memory_is_that_of_a_file(name: str, k: int) -> None:
    # A bundle read back has its rows in order; BLAS may round another order otherwise.
    predictor = linear_predictor(resolve_head(name).make().fit(*gaussians(60, k)))
    assert predictor.weight.flags["C_CONTIGUOUS"]
