"""The head `softmax` against plain float64 references, and at home in scikit-learn."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, log_loss
from sklearn.model_selection import TimeSeriesSplit
from sklearn.utils.estimator_checks import parametrize_with_checks

from featcache.core.errors import UsageError
from featcache.heads import SoftmaxPathClassifier
from featcache.metrics import splits
from featcache.metrics.calibration import held_out_temperature, plain_temperature

REPEATED = "rows that stand several times can lie in several folds, as in LogisticRegressionCV; a weight cannot"


def expected_failures(estimator: Any) -> dict[str, str]:
    return {f"check_sample_weight_equivalence_on_{kind}_data": REPEATED for kind in ("dense", "sparse")}


@parametrize_with_checks([SoftmaxPathClassifier(Cs=7)], expected_failed_checks=expected_failures)
def test_scikit_learns_own_checks(estimator: Any, check: Any) -> None:
    check(estimator)


def draw(n: int, d: int, k: int, seed: int, spread: float = 0.6) -> tuple[np.ndarray, np.ndarray]:
    """(n, d) float32 around a center a class, and class ids; every class occurs twice at least."""
    rng = np.random.default_rng(seed)
    y = np.concatenate([np.arange(k), np.arange(k), rng.integers(0, k, n - 2 * k)])
    X = spread * rng.normal(size=(k, d))[y] + rng.normal(size=(n, d)) * np.geomspace(1, 0.1, d)
    return X.astype(np.float32), y


def losses_and_residuals(
    X: np.ndarray, y: np.ndarray, coef: np.ndarray, intercept: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(n,) losses and (n, k) p - [is right], plainly, in float64 and without cancellation."""
    z = X.astype(np.float64) @ coef.T + intercept
    if z.shape[1] == 1:
        z = np.hstack([np.zeros_like(z), z])
    at = np.arange(len(y)), y
    z = z - z[at][:, None]
    z[at] = -np.inf
    others = np.logaddexp.reduce(z, axis=1)
    losses = np.logaddexp(0, others)
    p = np.exp(z - losses[:, None])
    p[at] = -np.exp(others - losses)
    return losses, p


def objective(X: np.ndarray, y: np.ndarray, s: np.ndarray, C: float, coef: np.ndarray, intercept: np.ndarray) -> float:
    """scikit-learn's objective."""
    return 0.5 * float((coef**2).sum()) + C * float(s @ losses_and_residuals(X, y, coef, intercept)[0])


def least(X: np.ndarray, y: np.ndarray, s: np.ndarray, C: float) -> float:
    """The least objective by scikit-learn's Newton solver in float64, then by SciPy from there on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SciPy goes on where it stops
        model = LogisticRegression(C=C, solver="newton-cholesky", tol=1e-12).fit(X.astype(np.float64), y, s)
    shape, k = model.coef_.shape, len(model.coef_)

    def both(flat: np.ndarray) -> tuple[float, np.ndarray]:
        coef, intercept = flat[:-k].reshape(shape), flat[-k:]
        losses, p = losses_and_residuals(X, y, coef, intercept)
        r = (s[:, None] * p)[:, -k:]
        gradient = np.concatenate([(C * r.T @ X + coef).ravel(), C * r.sum(0)])
        return 0.5 * float((coef**2).sum()) + C * float(s @ losses), gradient

    start = np.concatenate([model.coef_.ravel(), model.intercept_])
    found = minimize(both, start, jac=True, method="L-BFGS-B", options={"maxiter": 50, "ftol": 0, "gtol": 1e-12})
    return float(found.fun)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(
        ["plain", "separable", "wide", "imbalanced", "duplicates", "constant", "two classes", "many classes", "weights"]
    ),
    seed=st.integers(0, 10**6),
    step=st.integers(0, 8),
)
def test_the_objective_is_the_least(kind: str, seed: int, step: int) -> None:
    n, d, k = 60, 8, 3
    if kind == "wide":
        d = 90
    if kind == "two classes":
        k = 2
    if kind == "many classes":
        n, k = 150, 60
    X, y = draw(n, d, k, seed, 8.0 if kind == "separable" else 0.6)
    s = np.ones(n)
    if kind == "imbalanced":
        keep = np.flatnonzero((y == 0) | (np.arange(n) < 2 * k))
        X, y, s = X[keep], y[keep], s[keep]
    if kind == "duplicates":
        X[n // 2 :], y[n // 2 :] = X[: n // 2], y[: n // 2]
    if kind == "constant":
        X[:, 3] = 1000.0
    if kind == "weights":
        s = np.random.default_rng(seed).exponential(size=n) + 0.01
    C = 10.0 ** (step - 4)
    model = SoftmaxPathClassifier(Cs=[C]).fit(X, y, sample_weight=s)
    assert model.C_ == C
    assert model.gap_ <= 1e-8
    found, best = objective(X, y, s, C, model.coef_, model.intercept_), least(X, y, s, C)
    assert found <= best + 1e-8 * abs(best)
    # What the certificate says is true, up to what float64 can tell.
    assert best >= found * (1 - model.gap_) - 1e-11 * abs(found)


@pytest.mark.parametrize("k", [2, 4])
def test_the_scores_are_those_of_fits_without_the_fold(k: int) -> None:
    X, y = draw(150, 12, k, 0)
    s = np.random.default_rng(1).uniform(0.2, 3, 150)
    model = SoftmaxPathClassifier(Cs=[1e-3, 1e-1, 10.0], early_stopping=False).fit(X, y, sample_weight=s)
    by_accuracy = SoftmaxPathClassifier(Cs=[1e-3, 1e-1, 10.0], scoring="accuracy").fit(X, y, sample_weight=s)
    for fold, (train_rows, test) in enumerate(splits.folds(y, np.arange(150), 5, 0)):
        for place, C in enumerate(model.Cs_):
            plain = LogisticRegression(C=C, tol=1e-10, max_iter=10_000)
            p = plain.fit(X[train_rows].astype(np.float64), y[train_rows], sample_weight=s[train_rows]).predict_proba(
                X[test]
            )
            loss = log_loss(y[test], p, sample_weight=s[test])
            # Along the path the gap is at most 1e-4, and the weights are off by its square root; where C was
            # chosen they are nearer.
            off = 1e-4 if C == model.C_ else 0.01 * loss
            assert -model.scores_[fold, place] == pytest.approx(loss, abs=off)
            right = accuracy_score(y[test], p.argmax(1), sample_weight=s[test])
            if C == by_accuracy.C_:
                assert by_accuracy.scores_[fold, place] == pytest.approx(right, abs=1e-6)
    assert (model.gaps_ <= 1e-4).all()
    weights = [s[test].sum() for _, test in splits.folds(y, np.arange(150), 5, 0)]
    assert model.Cs_[np.average(model.scores_, axis=0, weights=weights).argmax()] == model.C_


def test_held_out_logits_are_those_of_the_other_folds() -> None:
    X, y = draw(100, 6, 3, 2)
    model = SoftmaxPathClassifier(Cs=[0.01, 0.1]).fit(X, y)
    for train_rows, test in splits.folds(y, np.arange(100), 5, 0):
        plain = LogisticRegression(C=model.C_, tol=1e-10, max_iter=10_000).fit(
            X[train_rows].astype(np.float64), y[train_rows]
        )
        z = plain.decision_function(X[test])
        got = model.held_out_logits_[test]
        np.testing.assert_allclose(
            got - got.mean(1, keepdims=True), z - z.mean(1, keepdims=True), atol=0.02 * np.abs(z).max()
        )


def test_groups_stay_in_one_fold_and_a_single_row_is_always_learned_from() -> None:
    X, y = draw(90, 5, 3, 3)
    X, y = np.vstack([X, [[30.0] * 5]]).astype(np.float32), np.append(y, 9)
    groups = np.append(np.arange(90) // 3, 99)
    model = SoftmaxPathClassifier().fit(X, y, groups=groups)
    assert model.classes_.tolist() == [0, 1, 2, 9]
    assert np.isnan(model.held_out_logits_[90]).all()
    assert np.isfinite(model.held_out_logits_[:90]).all()
    assert model.chosen_by_ == "5-fold cross-validation"


def test_a_class_that_a_fold_lacks() -> None:
    X, y = draw(60, 5, 3, 4)
    lacking = np.flatnonzero(y == 2)
    others = np.array_split(np.flatnonzero(y != 2), 2)
    folds = [(np.setdiff1d(np.arange(60), test), test) for test in (np.append(others[0], lacking), others[1])]
    model = SoftmaxPathClassifier(Cs=[0.01, 1.0], cv=folds).fit(X, y)
    assert np.isfinite(model.scores_).all()
    assert (model.gaps_ <= 1e-4).all()
    test, train_rows = folds[0][1], folds[0][0]
    plain = LogisticRegression(C=model.C_, tol=1e-10, max_iter=10_000).fit(X[train_rows], y[train_rows])
    p = np.column_stack([plain.predict_proba(X[test]), np.zeros(len(test))])
    loss = -np.log(np.clip(p[np.arange(len(test)), y[test]], np.finfo(np.float64).eps, 1)).mean()
    assert -model.scores_[0, list(model.Cs_).index(model.C_)] == pytest.approx(loss, rel=1e-2)
    assert (model.held_out_logits_[test, 2] == -np.inf).all()
    assert np.isfinite(model.held_out_logits_[test, :2]).all()
    assert np.isfinite(model.held_out_logits_[folds[1][1]]).all()


def test_a_class_that_a_fold_lacks_does_not_set_the_temperature() -> None:
    # Rows that their fold cannot answer: by them the best head would be one that knows nothing.
    y = np.repeat([0, 1, 2, 0, 1, 0, 1, 2], [20, 20, 6, 20, 20, 20, 20, 6])
    X = (3 * np.eye(5)[y] + np.random.default_rng(5).normal(size=(len(y), 5))).astype(np.float32)
    rare = np.flatnonzero(y == 2)
    halves = np.flatnonzero((y != 2) & (np.arange(len(y)) % 2 == 0)), np.flatnonzero((y != 2) & (np.arange(len(y)) % 2))
    tests = np.append(halves[0], rare), halves[1]
    folds = [(np.setdiff1d(np.arange(len(y)), test), test) for test in tests]
    model = SoftmaxPathClassifier(cv=folds).fit(X, y)
    temperature = held_out_temperature(model, y)
    assert temperature == pytest.approx(plain_temperature(model.held_out_logits_[tests[1]], y[tests[1]]))
    assert 0.1 < temperature < 10


def test_the_path_ends_when_the_loss_has_clearly_passed_its_minimum() -> None:
    X, y = draw(200, 20, 3, 6, spread=0.2)
    short, whole = (SoftmaxPathClassifier(early_stopping=early).fit(X, y) for early in (True, False))
    assert np.isnan(short.scores_).any()
    assert np.isfinite(whole.scores_).all()
    reached = np.isfinite(short.scores_[0])
    np.testing.assert_array_equal(short.scores_[:, reached], whole.scores_[:, reached])
    assert short.C_ == whole.C_
    np.testing.assert_array_equal(short.coef_, whole.coef_)


def test_of_equal_scores_the_smaller_c_wins() -> None:
    X, y = draw(60, 4, 2, 7, spread=20.0)
    model = SoftmaxPathClassifier(Cs=[1.0, 10.0, 100.0], scoring="accuracy").fit(X, y)
    assert (model.scores_ == 1).all()
    assert model.C_ == 1.0


def test_class_weights_are_sample_weights() -> None:
    X, y = draw(80, 5, 3, 8)
    balanced = 80 / (3 * np.bincount(y))
    named = SoftmaxPathClassifier(Cs=[0.1], class_weight="balanced").fit(X, y)
    given_ = SoftmaxPathClassifier(Cs=[0.1], class_weight=dict(enumerate(balanced))).fit(X, y)
    weighted = SoftmaxPathClassifier(Cs=[0.1]).fit(X, y, sample_weight=balanced[y])
    for other in (given_, weighted):
        np.testing.assert_array_equal(named.coef_, other.coef_)


def test_balanced_classes_are_balanced_by_weight() -> None:
    X, y = draw(80, 5, 3, 8)
    s = np.random.default_rng(0).uniform(0.1, 5, 80)
    s[y == 1] *= (np.arange(80) % 4 == 0)[y == 1]
    model = SoftmaxPathClassifier(Cs=[0.1], class_weight="balanced").fit(X, y, sample_weight=s)
    masses = np.bincount(y, s)
    given_ = SoftmaxPathClassifier(Cs=[0.1]).fit(X, y, sample_weight=s * (s.sum() / (3 * masses))[y])
    np.testing.assert_allclose(model.coef_, given_.coef_, atol=1e-6)
    kept = s > 0
    without = SoftmaxPathClassifier(Cs=[0.1], class_weight="balanced").fit(X[kept], y[kept], sample_weight=s[kept])
    np.testing.assert_allclose(model.coef_, without.coef_, atol=1e-6)


def test_a_row_of_weight_zero_is_absent() -> None:
    X, y = draw(80, 5, 3, 9)
    s = np.ones(80)
    s[::7] = 0
    with_zeros = SoftmaxPathClassifier().fit(X, y, sample_weight=s)
    without = SoftmaxPathClassifier().fit(X[s > 0], y[s > 0])
    np.testing.assert_array_equal(with_zeros.coef_, without.coef_)
    assert np.isnan(with_zeros.held_out_logits_[::7]).all()


def test_folds_by_number_of_row_count_the_rows_without_weight() -> None:
    X, y = draw(80, 5, 3, 9)
    s = (np.arange(80) >= 20).astype(float)
    tests = np.array_split(np.random.default_rng(0).permutation(80), 3)
    given_ = [(np.setdiff1d(np.arange(80), test), test) for test in tests]
    kept = [(train_rows[train_rows >= 20] - 20, test[test >= 20] - 20) for train_rows, test in given_]
    with_zeros = SoftmaxPathClassifier(cv=given_).fit(X, y, sample_weight=s)
    without = SoftmaxPathClassifier(cv=kept).fit(X[20:], y[20:])
    np.testing.assert_array_equal(with_zeros.scores_, without.scores_)
    np.testing.assert_array_equal(with_zeros.held_out_logits_[20:], without.held_out_logits_)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_dtypes_and_orders(dtype: type) -> None:
    X, y = draw(80, 6, 3, 10)
    X = X.astype(np.float16).astype(np.float32)
    plain = SoftmaxPathClassifier(Cs=[0.1]).fit(X, y)
    other = SoftmaxPathClassifier(Cs=[0.1]).fit(np.asfortranarray(X.astype(dtype))[:, ::1], y)
    every_second = np.repeat(X, 2, axis=0)[::2]
    assert not every_second.flags.c_contiguous
    np.testing.assert_allclose(other.coef_, plain.coef_, atol=1e-5)
    np.testing.assert_array_equal(SoftmaxPathClassifier(Cs=[0.1]).fit(every_second, y).coef_, plain.coef_)


def test_float64_vectors_far_from_zero_keep_their_digits() -> None:
    X, y = draw(80, 6, 3, 11)
    near = SoftmaxPathClassifier(Cs=[0.1]).fit(X.astype(np.float64), y)
    far = SoftmaxPathClassifier(Cs=[0.1]).fit(X.astype(np.float64) + 1e7, y)
    np.testing.assert_allclose(far.coef_, near.coef_, atol=1e-5)


def test_labels_of_all_kinds() -> None:
    X, y = draw(60, 5, 3, 12)
    for labels in (np.array(["b", "a", "c"]), np.array([5, -1, 7]), np.array([0.5, 1.0, 2.0]) * 2):
        named = labels.astype(int) if labels.dtype.kind == "f" else labels
        model = SoftmaxPathClassifier(Cs=[0.1]).fit(X, named[y])
        assert set(model.predict(X)) <= set(named)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"Cs": [0.1, -1.0]}, "Cs must be one or more positive"),
        ({"Cs": []}, "Cs must be one or more positive"),
        ({"Cs": [np.nan]}, "Cs must be one or more positive"),
        ({"scoring": "f1"}, "scoring must be one of"),
        ({"cv": 1}, "cv must be at least 2"),
    ],
)
def test_wrong_parameters(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SoftmaxPathClassifier(**change).fit(*draw(40, 4, 2, 0))


def test_wrong_data_is_named() -> None:
    X, y = draw(40, 4, 2, 0)
    s = np.ones(40)
    bad = X.copy()
    bad[17, 2] = np.nan
    with pytest.raises(ValueError, match="Row 17 of the vectors holds NaN"):
        SoftmaxPathClassifier().fit(bad, y)
    bad[17, 2] = np.inf
    with pytest.raises(ValueError, match="Row 17 of the vectors holds infinity"):
        SoftmaxPathClassifier().fit(bad, y)
    with pytest.raises(ValueError, match="one class, only"):
        SoftmaxPathClassifier().fit(X, np.full(40, "only"))
    s[3] = -1
    with pytest.raises(ValueError, match=r"weight of row 3 is -1\.0"):
        SoftmaxPathClassifier().fit(X, y, sample_weight=s)
    with pytest.raises(ValueError, match=r"Every row of class 1 has the weight zero"):
        SoftmaxPathClassifier().fit(X, y, sample_weight=(y == 0).astype(float))
    with pytest.raises(ValueError, match="Fold 0 of cv neither learns from row 22 nor tests it"):
        SoftmaxPathClassifier(cv=TimeSeriesSplit(2, test_size=9)).fit(*draw(31, 4, 2, 0))
    overlapping = [(np.arange(20), np.arange(20, 40)), (np.arange(10), np.arange(10, 40))]
    with pytest.raises(ValueError, match="a row more than once"):
        SoftmaxPathClassifier(cv=overlapping).fit(X, y)


def test_too_few_passes_are_told() -> None:
    X, y = draw(200, 30, 4, 13)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        assert SoftmaxPathClassifier().fit(X, y).converged_


@pytest.mark.parametrize(
    "options", [{}, {"early_stopping": False, "Cs": 5}, {"Cs": [0.1]}, {"cv": 2, "Cs": [0.1, 1.0]}]
)
def test_it_tells_how_many_values_of_c_are_done(options: dict[str, Any]) -> None:
    head, told = SoftmaxPathClassifier(**options), []
    head.on_progress = lambda done, of: told.append((done, of))
    head.fit(*draw(60, 4, 3, 0))
    c = len(head.Cs_)
    done = [number for number, _ in told]
    assert {of for _, of in told} == {c}
    assert done == [*range(len(done) - 1), c]
    assert len(done) - 1 == np.isfinite(head.gaps_[-1]).sum()
    assert "on_progress" not in head.get_params()


def test_a_numpy_number_of_cs_is_a_number() -> None:
    X, y = draw(60, 4, 3, 0)
    plain, of_numpy = (SoftmaxPathClassifier(Cs=number).fit(X, y) for number in (5, np.int64(5)))
    np.testing.assert_array_equal(of_numpy.Cs_, plain.Cs_)
    assert len(plain.Cs_) == 5
    for none in (0, -3, []):
        with pytest.raises(UsageError, match="Cs must be one or more positive"):
            SoftmaxPathClassifier(Cs=none).fit(X, y)
