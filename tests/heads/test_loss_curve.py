"""The curve of held-out losses that a head leaves in its report."""

from __future__ import annotations

import numpy as np
import pytest

from featcache.heads.multilabel import SigmoidPathClassifier
from featcache.heads.serialize import loss_curve
from featcache.heads.softmax import SoftmaxPathClassifier
from tests.heads.test_heads import gaussians


def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    y = np.repeat(["a", "b"], 20)
    return rng.normal(size=(40, 5)) + (y == "b")[:, None], y


def test_mean_losses_come_from_small_to_large_c() -> None:
    X, y = data()
    head = SigmoidPathClassifier(Cs=(1.0, 0.01, 1e-4), cv=4).fit(X, np.column_stack([y == "a", y == "b"]))
    curve = loss_curve(head)["loss_over_C"]
    assert [C for C, _ in curve] == [1e-4, 0.01, 1.0]
    assert [loss for _, loss in curve] == [None if np.isnan(s) else s for s in head.scores_]
    assert min((loss, C) for C, loss in curve if loss is not None)[1] == head.chosen_["C"]


def test_negative_losses_a_fold_are_averaged_and_skipped_ones_left_open() -> None:
    head = type("Path", (), {"__module__": "featcache.heads.path"})()
    head.Cs_ = np.array([1.0, 0.1, 10.0])
    head.scores_ = np.array([[-0.5, -0.9, np.nan], [-0.7, -1.1, -3.0]])
    assert loss_curve(head) == {"loss_over_C": [[0.1, 1.0], [1.0, pytest.approx(0.6)], [10.0, None]]}


@pytest.mark.parametrize("attributes", [{"Cs": [1.0]}, {"scores_": [0.5]}, {}])
def test_heads_without_scores_over_c_have_none(attributes: dict[str, list[float]]) -> None:
    head = type("Other", (), {"__module__": "featcache.heads.other"} | attributes)()
    assert loss_curve(head) == {}


def test_scores_of_other_packages_may_mean_anything() -> None:
    assert loss_curve(type("Other", (), {"__module__": "sklearn.linear_model", "Cs": [1.0], "scores_": [0.9]})()) == {}


def test_folds_count_in_the_curve_as_they_do_in_the_choice() -> None:
    X, y = gaussians(90, spread=0.5)
    test = np.arange(30)
    folds = [(np.setdiff1d(np.arange(90), part), part) for part in (test[:4], test[4:])]
    head = SoftmaxPathClassifier(Cs=[0.01, 0.1, 1.0], cv=folds).fit(X, y)
    (curve,) = loss_curve(head).values()
    wanted = -(4 * head.scores_[0] + 26 * head.scores_[1]) / 30
    np.testing.assert_allclose([loss for _, loss in curve], wanted, rtol=1e-12)
    assert min((loss, C) for C, loss in curve)[1] == head.C_
