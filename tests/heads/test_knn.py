"""``knn`` finds what a plain search finds, and leaves out what it should."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import log_loss
from sklearn.neighbors import NearestNeighbors

from featcache.core.errors import UsageError
from featcache.heads import knn, predictors
from featcache.heads.knn import KnnHead
from tests.heads.test_heads import gaussians


def plain(X: np.ndarray, y: np.ndarray, query: np.ndarray, k: int, classes: np.ndarray) -> np.ndarray:
    """Probabilities of one query, written out."""
    cosines = X @ query / np.linalg.norm(X, axis=1) / np.linalg.norm(query)
    order = np.argsort(-cosines)[:k]
    votes = np.exp((cosines[order] - cosines[order[0]]) / 0.07)
    shares = np.array([votes[y[order] == c].sum() + 1 / len(classes) for c in classes])
    return shares / (votes.sum() + 1)


@pytest.mark.parametrize("k", [1, 4, 89])
def test_probabilities_are_weighted_votes(k: int) -> None:
    X, y = gaussians(90)
    X = X.astype(np.float64)
    head = KnnHead(ks=[k]).fit(X, y)
    queries = gaussians(20, seed=1)[0].astype(np.float64)
    wanted = [plain(X, y, query, k, head.classes_) for query in queries]
    np.testing.assert_allclose(head.predict_proba(queries), wanted, atol=1e-12)


def test_the_neighbours_are_those_of_scikit_learn() -> None:
    X, _ = gaussians(200, d=20)
    unit = predictors.normalized(X.astype(np.float64))
    wanted = NearestNeighbors(n_neighbors=7, metric="cosine").fit(X).kneighbors(X[:50])
    ((_, cosines, places),) = predictors.nearest(unit, unit[:50], 7)
    assert places.tolist() == wanted[1].tolist()
    np.testing.assert_allclose(cosines, 1 - wanted[0], atol=1e-6)


@pytest.mark.parametrize("sizes", [1, 3])
@pytest.mark.parametrize("spread", [0.3, 1.5])
def test_k_is_that_of_the_least_left_out_loss(sizes: int, spread: float) -> None:
    X, y = gaussians(90, spread=spread)
    X = X.astype(np.float64)
    groups = np.arange(90) // sizes
    head = KnnHead().fit(X, y, groups)
    losses = []
    for k in head.ks_:
        p = [plain(X[groups != groups[i]], y[groups != groups[i]], X[i], k, head.classes_) for i in range(90)]
        losses.append(log_loss(y, p))
    np.testing.assert_allclose(head.scores_, losses, rtol=1e-9)
    assert head.chosen_ == {"k": int(head.ks_[int(np.argmin(losses))])}
    assert head.chosen_by_ == f"leaving out one {'item' if sizes == 1 else 'group'}"


def test_the_problems_above_have_different_answers() -> None:
    assert (
        len({KnnHead().fit(*gaussians(90, k, spread=spread)).k_ for k, spread in ((3, 0.3), (3, 1.5), (30, 6.0))}) > 1
    )


def test_more_neighbours_than_rows_are_not_asked_for() -> None:
    X, y = gaussians(6)
    head = KnnHead().fit(X, y)
    assert head.ks_.tolist() == [1, 3, 5]


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = gaussians(90)
    whole = KnnHead().fit(X, y)
    wanted = whole.predict_proba(X)
    monkeypatch.setattr(predictors, "_COSINES_AT_ONCE", 90 * 7)
    parts = KnnHead().fit(X, y)
    np.testing.assert_allclose(parts.scores_, whole.scores_, rtol=1e-5)
    np.testing.assert_allclose(parts.predict_proba(X), wanted, atol=1e-5)


def test_of_very_many_rows_some_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = gaussians(600)
    whole = KnnHead().fit(X, y)
    monkeypatch.setattr(knn, "_QUERIES", 300)
    some = KnnHead().fit(X, y)
    assert some.chosen_by_ == "leaving out one item, for 300 items"
    np.testing.assert_allclose(some.scores_, whole.scores_, rtol=0.3)
    assert (KnnHead(random_state=1).fit(X, y).scores_ != some.scores_).any()


@pytest.mark.parametrize("factor", [1e-30, 1e30])
def test_the_length_of_a_vector_does_not_matter(factor: float) -> None:
    X, y = gaussians(90)
    head = KnnHead().fit(X, y)
    np.testing.assert_allclose(head.predict_proba(X * np.float32(factor)), head.predict_proba(X), atol=1e-5)


def test_a_vector_of_zeros_is_like_none() -> None:
    X, y = gaussians(90)
    X[3] = 0
    p = KnnHead(ks=[89]).fit(X, y).predict_proba(np.zeros((1, 6), np.float32))
    np.testing.assert_allclose(p, 1 / 3, atol=0.01)


def test_one_group_alone_cannot_be_left_out() -> None:
    X, y = gaussians(60)
    head = KnnHead().fit(X, y, np.zeros(60))
    np.testing.assert_array_equal(head.scores_, KnnHead().fit(X, y).scores_)
    assert "all are of one group" in head.chosen_by_


def test_errors_name_the_row_and_the_class() -> None:
    X, y = gaussians(30)
    with pytest.raises(UsageError, match="of one class, cat"):
        KnnHead().fit(X, np.full(30, "cat"))
    head = KnnHead().fit(X, y)
    X[4, 2] = np.inf
    for call in (lambda: head.predict(X), lambda: KnnHead().fit(X, y)):
        with pytest.raises(UsageError, match="Row 4 of the vectors holds infinity"):
            call()


@pytest.mark.parametrize("ks", [[], [0], [3, -1], [1.5], ["3"]])
def test_ks_are_whole_numbers_from_one_on(ks: list[object]) -> None:
    with pytest.raises(UsageError, match="ks must be one or more whole numbers from 1 on"):
        KnnHead(ks=ks).fit(*gaussians(30))
