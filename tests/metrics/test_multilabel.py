"""Scores of several labels an item are scikit-learn's, and hold-outs and folds share every label out."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score, log_loss, precision_recall_fscore_support

from featcache.core.errors import UsageError
from featcache.metrics import multilabel
from featcache.metrics import multilabel as multilabel_splits
from featcache.metrics.intervals import wilson


def problem(n: int = 200, k: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Truth and probabilities that know something of it, some of them equal."""
    rng = np.random.default_rng(seed)
    Y = rng.random((n, k)) < np.linspace(0.05, 0.6, k)
    return Y, np.round(np.clip(0.5 * Y + 0.7 * rng.random((n, k)) - 0.1, 0.01, 0.99), 2)


def plain(Y: np.ndarray, p: np.ndarray) -> list[float]:
    """The five scores by scikit-learn."""
    given, occurs = p > 0.5, Y.any(axis=0)
    named = occurs | given.any(axis=0)
    return [
        float(np.mean([average_precision_score(Y[:, j], p[:, j]) for j in np.flatnonzero(occurs)])),
        f1_score(Y, given, average="micro"),
        f1_score(Y[:, named], given[:, named], average="macro"),
        float((given == Y).all(axis=1).mean()),
        float(np.mean([log_loss(Y[:, j], p[:, j], labels=[False, True]) for j in range(Y.shape[1])])),
    ]


def values(scores: multilabel.MultilabelScores) -> list[float]:
    names = ("mean_average_precision", "micro_f1", "macro_f1", "exact_match", "log_loss")
    return [getattr(scores, name).value for name in names]


def test_each_labels_scores_are_those_of_scikit_learn() -> None:
    Y, p = problem()
    Y[:, 1], p[:, 2] = False, 0.3  # one that does not occur, and one that is never given
    units = np.arange(200) // 2
    found = multilabel.per_label(Y, p, list("abcde"), units=units)
    wanted = precision_recall_fscore_support(Y, p > 0.5, zero_division=0)
    got = [[label.precision or 0, label.recall or 0, label.f1 or 0, label.items] for label in found]
    np.testing.assert_allclose(np.array(got).T, wanted)
    assert (found[1].recall, found[1].recall_low, found[1].average_precision, found[2].precision) == (None,) * 4
    for i in (0, 2, 3, 4):
        assert found[i].average_precision == pytest.approx(average_precision_score(Y[:, i], p[:, i]))
        interval = wilson(found[i].recall, len(np.unique(units[Y[:, i]])))
        assert (found[i].recall_low, found[i].recall_high) == interval


@pytest.mark.parametrize("seed", range(4))
def test_scores_are_those_of_scikit_learn(seed: int) -> None:
    Y, p = problem(seed=seed)
    np.testing.assert_allclose(values(multilabel.score(Y, p, resamples=1)), plain(Y, p), rtol=1e-9)


def test_labels_that_never_occur_are_left_out() -> None:
    Y, p = problem()
    Y[:, 2] = False
    np.testing.assert_allclose(values(multilabel.score(Y, p, resamples=1)), plain(Y, p), rtol=1e-9)
    p[:, 2] = 0.1
    np.testing.assert_allclose(values(multilabel.score(Y, p, resamples=1)), plain(Y, p), rtol=1e-9)


@pytest.mark.parametrize("alike", [1, 4])
def test_intervals_are_those_of_a_plain_bootstrap(alike: int) -> None:
    Y, p = problem(80, 3)
    units = np.arange(80) // alike
    scores = multilabel.score(Y, p, units=units, seed=3, resamples=50)
    rng, drawn = np.random.default_rng(3), []
    for _ in range(50):
        count = 80 // alike
        times = rng.multinomial(count, np.full(count, 1 / count))
        rows = np.repeat(np.arange(80), times[units])
        drawn.append(plain(Y[rows], p[rows]))
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    names = ("mean_average_precision", "micro_f1", "macro_f1", "exact_match", "log_loss")
    np.testing.assert_allclose([getattr(scores, name).low for name in names], low, rtol=1e-9)
    np.testing.assert_allclose([getattr(scores, name).high for name in names], high, rtol=1e-9)


def test_a_faultless_head_has_wilsons_interval_alone() -> None:
    Y, _ = problem()
    scores = multilabel.score(Y, np.where(Y, 0.9, 0.1))
    assert scores.exact_match.value == scores.exact_match.high == 1
    assert 0.97 < scores.exact_match.low < 1
    assert scores.mean_average_precision.value == 1
    assert math.isnan(scores.mean_average_precision.low)


def test_without_items_there_is_no_score() -> None:
    with pytest.raises(UsageError, match="no items"):
        multilabel.score(np.zeros((0, 3), bool), np.zeros((0, 3)))


@pytest.mark.parametrize("size", [1, 4])
def test_folds_share_every_label_out(size: int) -> None:
    Y, _ = problem(300, 5)
    units = np.arange(300) // size
    folds = multilabel_splits.folds(Y, units, 5, 0)
    assert sorted(row for _, test in folds for row in test) == list(range(300))
    for train_rows, test in folds:
        assert not set(units[train_rows]) & set(units[test])
        assert sorted([*train_rows, *test]) == list(range(300))
        assert (np.abs(Y[test].sum(axis=0) - Y.sum(axis=0) / 5) <= np.maximum(4, Y.sum(axis=0) / 8)).all()


def test_folds_are_none_empty() -> None:
    Y = np.ones((5, 3), bool)
    assert all(len(test) for _, test in multilabel_splits.folds(Y, np.arange(5), 5))
    with pytest.raises(UsageError, match="5 independent items, too few for 6"):
        multilabel_splits.folds(Y, np.arange(5), 6)
    with pytest.raises(UsageError, match="at least 2 folds"):
        multilabel_splits.folds(Y, np.arange(5), 1)


def test_one_unit_has_wilsons_interval_for_exact_matches_alone() -> None:
    Y = np.array([[1, 0], [0, 1]], dtype=bool)
    found = multilabel.score(Y, np.array([[0.9, 0.1], [0.9, 0.1]]), units=np.zeros(2, int))
    assert (found.exact_match.low, found.exact_match.high) == wilson(0.5, 1)
    assert math.isnan(found.log_loss.low)
    alike = multilabel.score(np.tile(Y, (5, 1)), np.where(np.tile(Y, (5, 1)), 0.7, 0.3))
    assert math.isnan(alike.log_loss.low)
