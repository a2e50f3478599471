"""``centroid`` is scikit-learn's nearest centroid, and its temperature is that of means without the item."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import log_loss
from sklearn.neighbors import NearestCentroid

from featcache.core.errors import BundleError, UsageError
from featcache.heads.centroid import CentroidHead
from featcache.heads.serialize import export_predictor
from featcache.metrics.calibration import fit_temperature
from tests.heads.test_heads import gaussians


def distances(X: np.ndarray, class_ids: np.ndarray, weights: np.ndarray, query: np.ndarray, k: int) -> np.ndarray:
    means = [np.average(X[class_ids == c], axis=0, weights=weights[class_ids == c]) for c in range(k)]
    return np.array([((query - mean) ** 2).sum() for mean in means])


@pytest.mark.parametrize("k", [2, 4])
def test_the_nearest_mean_wins(k: int) -> None:
    X, y = gaussians(91, k, spread=0.5)
    X = X + 1000
    head = CentroidHead().fit(X, y)
    wanted = NearestCentroid().fit(X.astype(np.float64), y)
    np.testing.assert_allclose(head.centroids_, wanted.centroids_, rtol=1e-6)
    queries = gaussians(200, k, seed=1)[0] + 1000
    agree = head.predict(queries) == wanted.predict(queries.astype(np.float64))
    assert agree.mean() > 0.99


def test_scikit_learns_scores_differently_and_cannot_be_saved() -> None:
    """Why this head is not scikit-learn's: equal labels, but probabilities that are not calibrated, and no weights."""
    X, y = gaussians(2000, 5, d=40, spread=0.4)
    mine, theirs = CentroidHead().fit(X[:400], y[:400]), NearestCentroid().fit(X[:400], y[:400])
    assert (mine.predict(X[400:]) == theirs.predict(X[400:])).all()
    losses = [log_loss(y[400:], head.predict_proba(X[400:])) for head in (mine, theirs)]
    assert losses[0] < 0.9 * losses[1]
    with pytest.raises(TypeError):
        NearestCentroid().fit(X, y, sample_weight=np.ones(2000))
    with pytest.raises(BundleError, match="NearestCentroid cannot be saved"):
        export_predictor(theirs)


@pytest.mark.parametrize("k", [2, 3])
def test_scores_differ_by_half_the_squared_distances(k: int) -> None:
    X, y = gaussians(60, k)
    X = X.astype(np.float64)
    head = CentroidHead().fit(X, y)
    halves = -((X[:, None] - head.centroids_) ** 2).sum(2) / 2
    p = np.exp(halves / head.temperature_)
    np.testing.assert_allclose(head.predict_proba(X), p / p.sum(1, keepdims=True), atol=1e-9)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("grouping", ["items", "pairs", "mixed"])
@pytest.mark.parametrize("k", [2, 3])
def test_the_temperature_is_that_of_means_without_the_group(k: int, grouping: str, weighted: bool) -> None:
    rng = np.random.default_rng(2)
    X, y = gaussians(60, k, spread=0.6)
    X = X.astype(np.float64)
    class_ids = np.unique(y, return_inverse=True)[1]
    groups = {"items": np.arange(60), "pairs": np.arange(60) // 2, "mixed": rng.integers(0, 25, 60)}[grouping]
    weights = rng.uniform(0.1, 3, 60) if weighted else np.ones(60)
    scores = np.array(
        [
            -distances(X[groups != g], class_ids[groups != g], weights[groups != g], x, k) / 2
            for x, g in zip(X, groups, strict=True)
        ]
    )
    head = CentroidHead().fit(X, y, groups, weights if weighted else None)
    assert head.temperature_ == pytest.approx(fit_temperature(scores, class_ids, weights)[0], rel=1e-6)
    assert head.chosen_ == {"temperature": head.temperature_}


def test_weights_are_those_of_repeated_rows() -> None:
    X, y = gaussians(60)
    times = np.random.default_rng(0).integers(0, 4, 60)
    weighted = CentroidHead().fit(X, y, sample_weight=times)
    repeated = CentroidHead().fit(np.repeat(X, times, axis=0), np.repeat(y, times), np.repeat(np.arange(60), times))
    np.testing.assert_allclose(weighted.centroids_, repeated.centroids_, rtol=1e-5)
    np.testing.assert_allclose(weighted.predict_proba(X), repeated.predict_proba(X), atol=1e-5)


def test_a_class_of_one_item_does_not_spoil_the_temperature() -> None:
    X, y = gaussians(61)
    without = CentroidHead().fit(X[:60], y[:60])
    y = y.astype(object)
    X[60], y[60] = 30, "rare"
    head = CentroidHead().fit(X, y)
    assert head.temperature_ == pytest.approx(without.temperature_, rel=0.2)
    assert head.predict(X[60:]) == ["rare"]


def test_classes_of_one_group_each() -> None:
    X, y = gaussians(60)
    for groups in (np.unique(y, return_inverse=True)[1], np.zeros(60)):
        head = CentroidHead().fit(X, y, groups)
        assert head.chosen_by_.startswith("the items learned from")
        assert (head.predict(X) == y).mean() > 0.8


@pytest.mark.parametrize("weights", [np.ones(29), -np.ones(30), np.full(30, np.nan), np.zeros(30)])
def test_weights_that_are_none(weights: np.ndarray) -> None:
    X, y = gaussians(30)
    with pytest.raises(UsageError, match="sample_weight must have the shape"):
        CentroidHead().fit(X, y, sample_weight=weights)


def test_weights_that_leave_one_class() -> None:
    X, y = gaussians(30)
    with pytest.raises(UsageError, match="one class"):
        CentroidHead().fit(X, y, sample_weight=y == "class 1")


def test_vectors_far_from_zero_keep_their_digits() -> None:
    X, y = gaussians(91, spread=0.5)
    far = X + np.float32(123_456.7)
    head = CentroidHead().fit(far, y)
    wanted = NearestCentroid().fit(far.astype(np.float64), y)
    np.testing.assert_allclose(head.centroids_, wanted.centroids_, rtol=0, atol=1e-5)
    halves = -((far[:, None].astype(np.float64) - wanted.centroids_) ** 2).sum(2) / 2
    p = np.exp((halves - halves.max(1, keepdims=True)) / head.temperature_)
    np.testing.assert_allclose(head.predict_proba(far), p / p.sum(1, keepdims=True), atol=1e-5)
