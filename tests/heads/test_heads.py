"""What every head promises, for each name that is registered."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import Any

import numpy as np
import pytest
from sklearn.base import BaseEstimator, clone
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from featcache.core.errors import UnknownNameError, UsageError
from featcache.heads import HEADS, WEIGHING, resolve_head
from featcache.heads.knn import KnnHead


def gaussians(n: int = 90, k: int = 3, d: int = 6, seed: int = 0, spread: float = 1.5) -> tuple[np.ndarray, np.ndarray]:
    """(n, d) float32 around one center a class, and text labels."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(k, d)) * spread
    class_ids = np.arange(n) % k
    X = (centres[class_ids] + rng.normal(size=(n, d))).astype(np.float32)
    return X, np.array([f"class {i}" for i in range(k)])[class_ids]


@pytest.fixture(params=sorted(HEADS))
def head(request: pytest.FixtureRequest) -> Any:
    return resolve_head(request.param).make()


@pytest.fixture
def short(head: Any) -> Any:
    """The head, of 30 epochs where it has any: for what does not depend on how far it has learned."""
    return head.set_params(epochs=30) if "epochs" in head.get_params() else head


@pytest.mark.parametrize("k", [2, 3])
def test_it_fits_and_answers(head: Any, k: int) -> None:
    X, y = gaussians(90, k)
    assert head.fit(X, y) is head
    assert head.classes_.tolist() == [f"class {i}" for i in range(k)]
    p = head.predict_proba(X)
    assert p.shape == (90, k)
    assert (p >= 0).all()
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-9)
    said = head.predict(X)
    assert said.tolist() == head.classes_[p.argmax(1)].tolist()
    assert (said == y).mean() > 0.8
    assert head.chosen_
    assert all(isinstance(name, str) and isinstance(v, int | float) for name, v in head.chosen_.items())


@pytest.mark.parametrize("labels", [np.array([3, 7, 11]), np.array(["a", "b", "c"], dtype=object)])
def test_labels_keep_their_type(short: Any, labels: np.ndarray) -> None:
    X, _ = gaussians(60)
    y = labels[np.arange(60) % 3]
    short.fit(X, y)
    assert short.classes_.tolist() == labels.tolist()
    assert short.predict(X).dtype == y.dtype
    assert set(short.predict(X)) <= set(labels)


def test_the_same_seed_gives_the_same_head(short: Any) -> None:
    X, y = gaussians(90, spread=0.5)
    if "random_state" in short.get_params():
        short.set_params(random_state=3)
    first, second = clone(short).fit(X, y), clone(short).fit(X, y)
    np.testing.assert_array_equal(first.predict_proba(X), second.predict_proba(X))
    assert first.chosen_ == second.chosen_


def test_a_constant_feature_does_no_harm(head: Any) -> None:
    X, y = gaussians(90)
    X[:, 2] = 5000.1
    p = head.fit(X, y).predict_proba(X)
    assert np.isfinite(p).all()
    # By the cosine all vectors are alike where one feature is that large.
    assert isinstance(head, KnnHead) or (head.predict(X) == y).mean() > 0.8


def test_a_class_with_one_item_can_be_learned(short: Any) -> None:
    X, y = gaussians(61, 2)
    X[0], y[0] = 20, "rare"
    short.fit(X, y)
    assert short.classes_.tolist() == ["class 0", "class 1", "rare"]
    assert np.isfinite(short.predict_proba(X)).all()


def test_vectors_of_another_width_are_refused(short: Any) -> None:
    short.fit(*gaussians(60, d=6))
    with pytest.raises(ValueError, match="6 features"):
        short.predict(np.zeros((2, 7), np.float32))


def test_vectors_that_are_not_finite_are_refused(short: Any) -> None:
    X, y = gaussians(60)
    X[7, 1] = np.nan
    with pytest.raises(UsageError, match="Row 7 of the vectors holds NaN"):
        short.fit(X, y)
    short.fit(*gaussians(60))
    with pytest.raises(UsageError, match="Row 7 of the vectors holds NaN"):
        short.predict(X)


def test_one_class_and_groups_that_do_not_fit_are_refused(head: Any) -> None:
    X, y = gaussians(60)
    with pytest.raises(UsageError, match="All 60 rows are of one class, class 0"):
        head.fit(X, y[[0] * 60])
    with pytest.raises(UsageError, match=r"groups must have the shape \(60,\), not \(9,\)"):
        head.fit(X, y, np.arange(9))


def test_scikit_learn_can_clone_it(head: Any) -> None:
    if "random_state" in head.get_params():
        head.set_params(random_state=5)
    assert clone(head).get_params() == head.get_params()


def test_an_estimator_is_cloned() -> None:
    mine = KNeighborsClassifier(3)
    resolved = resolve_head(mine)
    made = resolved.make()
    assert isinstance(made, KNeighborsClassifier)
    assert made is not mine
    assert made.n_neighbors == 3
    assert (resolved.name, resolve_head("ridge").name) == ("KNeighborsClassifier", "ridge")


def test_the_seed_reaches_our_heads() -> None:
    made = [resolve_head(name, seed=7).make().get_params() for name in HEADS]
    assert {params["random_state"] for params in made if "random_state" in params} == {7}
    assert [name for name, params in zip(HEADS, made, strict=True) if "random_state" not in params] == ["centroid"]


def test_groups_of_any_kind_are_taken(short: Any) -> None:
    X, y = gaussians(90)
    by_name = clone(short).fit(X, y, np.array([f"person {i // 2}" for i in range(90)]))
    by_number = short.fit(X, y, np.arange(90) // 2)
    np.testing.assert_array_equal(by_name.predict_proba(X), by_number.predict_proba(X))


def test_arrays_in_any_order_and_in_half_precision(short: Any) -> None:
    X, y = gaussians(90)
    X = X.astype(np.float16).astype(np.float32)  # the same numbers in either
    wanted = clone(short).fit(X, y).predict_proba(X)
    spread = np.zeros((90, 12), np.float32)
    spread[:, ::2] = X
    for other in (np.asfortranarray(X), spread[:, ::2], X.astype(np.float16)):
        fitted = clone(short).fit(other, y)
        np.testing.assert_allclose(fitted.predict_proba(other), wanted, atol=1e-5)


def test_an_unknown_head_offers_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="'softmax'"):
        resolve_head("sofmax")


@pytest.mark.parametrize("thing", [3, RidgeClassifier.fit, BaseEstimator()])
def test_what_is_no_classifier_is_refused(thing: Any) -> None:
    with pytest.raises(UsageError, match="scikit-learn classifier"):
        resolve_head(thing)


def test_a_head_is_imported_in_the_background() -> None:
    with pytest.raises(UnknownNameError, match="softmax"):
        resolve_head("softmacks")
    with pytest.raises(UsageError, match="scikit-learn classifier"):
        resolve_head(3)
    resolve_head("centroid").start_import()
    for thread in threading.enumerate():
        if thread.name == "featcache import":
            thread.join()
    assert "featcache.heads.centroid" in sys.modules


def test_the_names_cost_no_import() -> None:
    code = (
        "import sys, featcache.heads, featcache.metrics.splits, featcache.metrics.classification; "
        "print(sorted({'torch', 'sklearn', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", WEIGHING)
def test_classes_weigh_the_same_on_request(name: str) -> None:
    """Of overlapping classes the rare one is hardly ever named, unless it weighs as much."""
    rng = np.random.default_rng(0)
    y = np.repeat(["common", "rare"], [540, 60])
    X = rng.normal(size=(600, 4)).astype(np.float32)
    X[540:, 0] += 1
    recall = {
        weight: (resolve_head(name, class_weight=weight).make().fit(X, y).predict(X)[540:] == "rare").mean()
        for weight in ("balanced", None)
    }
    assert recall[None] < 0.3
    assert recall["balanced"] > 0.5
    weights = {"common": 600 / (2 * 540), "rare": 600 / (2 * 60)}
    same, balanced = (resolve_head(name, class_weight=w).make().fit(X, y) for w in (weights, "balanced"))
    close = 0.02 if name == "torch" else 1e-6  # the held-out tenth is not in its counts
    np.testing.assert_allclose(same.predict_proba(X), balanced.predict_proba(X), atol=close)


@pytest.mark.parametrize("name", sorted({*WEIGHING} - {"stack"}))  # whose members these are
def test_weights_multiply_the_loss_as_in_scikit_learn(name: str) -> None:
    X, y = gaussians(300, 3, spread=0.7)
    weights = {"class 1": 3.0}
    made = resolve_head(name, class_weight=weights).make().set_params(Cs=(100.0,))
    if name == "torch":
        # Judged by the rows it learns from, it goes on to the end.
        class_ids = np.unique(y, return_inverse=True)[1]
        made.set_params(epochs=400, lr=0.1, patience=400)._fit_batches(
            lambda: [(X, class_ids)], np.unique(y), 6, (X, class_ids)
        )
    else:
        made.fit(X, y)
    # The others learn from standardized vectors, and their C is meant for these.
    Z = X if name == "softmax" else StandardScaler().fit_transform(X)
    wanted, plain = (
        LogisticRegression(C=100.0, class_weight=given, tol=1e-8).fit(Z, y).predict_proba(Z)
        for given in (weights, None)
    )
    assert np.abs(made.predict_proba(X) - wanted).max() < (0.01 if name == "torch" else 1e-3)
    assert np.abs(plain - wanted).max() > 0.15


def test_heads_that_cannot_weigh_classes_are_told_which_can() -> None:
    assert {name for name in HEADS if "class_weight" in resolve_head(name).make().get_params()} == set(WEIGHING)
    for name in HEADS.keys() - set(WEIGHING):
        with pytest.raises(UsageError, match=rf"{name} takes no class weights.*{', '.join(WEIGHING)}"):
            resolve_head(name, class_weight="balanced")
    with pytest.raises(UnknownNameError, match=r"'bal'\. Did you mean 'balanced'"):
        resolve_head("softmax", class_weight="bal")
    with pytest.raises(UsageError, match=rf"KNeighborsClassifier takes no class weights.*{', '.join(WEIGHING)}"):
        resolve_head(KNeighborsClassifier(), class_weight="balanced")


def test_a_pipelines_classifier_weighs_classes() -> None:
    made = resolve_head(make_pipeline(StandardScaler(), RidgeClassifier()), class_weight="balanced").make()
    assert made.steps[-1][1].class_weight == "balanced"


def test_our_own_heads_are_called_by_their_names() -> None:
    assert [resolve_head(resolve_head(name).make()).name for name in HEADS] == list(HEADS)
