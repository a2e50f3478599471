"""``torch`` finds what logistic regression finds, from arrays and from a stream."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from featcache.heads.sgd_softmax import TorchSoftmaxHead, held_out_rows
from featcache.heads.softmax import SoftmaxPathClassifier
from featcache.heads.streaming import VectorStream
from tests.heads.test_heads import gaussians


@pytest.mark.parametrize("k", [2, 4])
def test_its_loss_is_near_that_of_logistic_regression(k: int) -> None:
    X, y = gaussians(1600, k, d=10, spread=0.7)
    X = X * np.linspace(0.01, 30, 10, dtype=np.float32) + np.linspace(-100, 100, 10, dtype=np.float32)
    train_rows, test = slice(0, 1000), slice(1000, 1600)
    mine = TorchSoftmaxHead().fit(X[train_rows], y[train_rows])
    exact = make_pipeline(StandardScaler(), SoftmaxPathClassifier(Cs=mine.Cs)).fit(X[train_rows], y[train_rows])
    loss, wanted = (log_loss(y[test], head.predict_proba(X[test]), labels=head.classes_) for head in (mine, exact))
    assert wanted < 0.9 * np.log(k)
    assert loss == pytest.approx(wanted, abs=0.01)


def test_a_stream_gives_the_head_of_the_arrays() -> None:
    X, y = gaussians(300, 3)
    head = TorchSoftmaxHead(epochs=6, batch_size=64, random_state=4).fit(X, y)
    classes, class_ids = np.unique(y, return_inverse=True)
    most = 0

    def read(rows: np.ndarray) -> np.ndarray:
        nonlocal most
        most = max(most, len(rows))
        return X[rows]

    streamed = TorchSoftmaxHead(epochs=6, batch_size=64, random_state=4)
    streamed.fit_stream(VectorStream(read, class_ids, np.arange(300), classes, 6))
    np.testing.assert_array_equal(streamed.coef_, head.coef_)
    np.testing.assert_array_equal(streamed.intercept_, head.intercept_)
    np.testing.assert_array_equal(streamed.predict_proba(X), head.predict_proba(X))
    assert most == 64


def test_the_global_random_numbers_are_left_alone() -> None:
    torch.manual_seed(1)
    before, before_numpy = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[union-attr]
    TorchSoftmaxHead(epochs=2).fit(*gaussians(60))
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == before_numpy).all()  # type: ignore[index]


def test_the_global_random_numbers_do_not_matter() -> None:
    heads = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        heads.append(TorchSoftmaxHead(epochs=3).fit(*gaussians(60)))
    np.testing.assert_array_equal(heads[0].coef_, heads[1].coef_)


def test_the_best_epoch_is_kept() -> None:
    X, y = gaussians(200, 3, spread=0.3)
    head = TorchSoftmaxHead(epochs=30, lr=0.2, patience=4).fit(X, y)
    epoch, column = np.unravel_index(head.losses_.argmin(), head.losses_.shape)
    assert head.chosen_ == {"C": head.Cs[column], "epochs": epoch + 1}
    assert len(head.losses_) < 30
    class_ids = np.unique(y, return_inverse=True)[1]
    held_out = held_out_rows(class_ids, np.arange(200), 0)[1]
    loss = log_loss(y[held_out], head.predict_proba(X[held_out]), labels=head.classes_)
    assert loss == pytest.approx(head.losses_.min(), rel=1e-4)


def test_the_held_out_tenth_keeps_groups_together() -> None:
    class_ids = np.arange(400) % 2
    groups = np.arange(400) // 4
    train_rows, held_out = held_out_rows(class_ids, groups, 0)
    assert sorted([*train_rows, *held_out]) == list(range(400))
    assert not set(groups[train_rows]) & set(groups[held_out])
    assert len(held_out) == pytest.approx(40, abs=8)


def test_at_most_some_thousand_rows_are_held_out() -> None:
    train_rows, held_out = held_out_rows(np.arange(60_000) % 2, np.arange(60_000), 0)
    assert len(held_out) == 4096
    assert sorted([*train_rows, *held_out]) == list(range(60_000))


def test_of_large_groups_whole_ones_are_held_out() -> None:
    groups = np.arange(120_000) // 1000
    train_rows, held_out = held_out_rows(np.arange(120_000) % 2, groups, 0)
    assert len(held_out) == 4000
    assert not set(groups[train_rows]) & set(groups[held_out])


def test_all_rows_serve_for_both_where_nothing_can_be_held_out() -> None:
    train_rows, held_out = held_out_rows(np.array([0, 1, 1]), np.array([0, 1, 1]), 0)
    assert train_rows.tolist() == held_out.tolist() == [0, 1, 2]
