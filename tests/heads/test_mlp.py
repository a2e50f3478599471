"""``mlp`` learns what no linear head can, chooses on rows it did not learn from, and is the same each time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

import featcache as fc
from featcache.core.errors import UsageError
from featcache.heads import mlp, resolve_head, with_hidden_layers
from featcache.heads.minibatch import HeldOutChoice, hold_out, logits
from featcache.heads.mlp import MLPHead
from featcache.heads.streaming import VectorStream
from featcache.metrics.calibration import held_out_temperature
from tests.heads.test_heads import gaussians


def quick(**changes: Any) -> MLPHead:
    return MLPHead(**{"hidden": (16,), "epochs": 12, "batch_size": 32, "decays": (0.1,)} | changes)


def checkers(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two classes by the sign of a product, as of XOR, in two of five dimensions."""
    X = np.random.default_rng(seed).normal(size=(n, 5)).astype(np.float32)
    return X * np.float32(30) + np.float32(100), np.where(X[:, 1] * X[:, 3] > 0, "same", "other")


def test_what_no_linear_head_can_learn() -> None:
    (X, y), (test, truth) = checkers(1500), checkers(1500, seed=1)
    linear = LogisticRegression().fit(X, y)
    head = MLPHead(hidden=(64,), decays=(0.01,)).fit(X, y)
    assert (linear.predict(test) == truth).mean() < 0.6
    assert (head.predict(test) == truth).mean() > 0.95


@pytest.mark.slow
@pytest.mark.parametrize("hidden", [(64,), (32, 16)])
def test_of_gaussians_it_comes_near_the_least_error_there_is(hidden: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(3, 10)) * 0.6
    class_ids, unseen = np.arange(1500) % 3, np.arange(3000) % 3
    X, test = (centres[c] + rng.normal(size=(len(c), 10)) for c in (class_ids, unseen))
    # Of equal spherical Gaussians the logits are x·center - |center|² / 2.
    exact = test @ centres.T - (centres**2).sum(1) / 2
    exact_loss = log_loss(unseen, torch.from_numpy(exact).softmax(1).numpy())
    head = MLPHead(hidden=hidden).fit(X.astype(np.float32), class_ids)
    assert (head.predict(test) == unseen).mean() > (exact.argmax(1) == unseen).mean() - 0.02
    assert log_loss(unseen, head.predict_proba(test)) < exact_loss + 0.04


def test_it_answers_as_its_layers_on_standardized_vectors_do() -> None:
    X, y = gaussians(300, 3, spread=0.7)
    X = X * np.linspace(0.01, 30, 6, dtype=np.float32) + np.linspace(-100, 100, 6, dtype=np.float32)
    X[:, 4] = 7
    head = quick().fit(X, y)
    # The held-out loss was measured on standardized vectors, before that was folded into the first layer.
    held_out = head.held_out_rows_
    loss = log_loss(y[held_out], head.predict_proba(X[held_out]), labels=head.classes_)
    assert loss == pytest.approx(head.losses_.min(), rel=1e-4)
    assert head.loss_curve_.argmin() + 1 == head.chosen_["epochs"]
    # A feature that never varied says nothing, whatever comes later.
    other = X.copy()
    other[:, 4] = -1000
    np.testing.assert_array_equal(head.predict_proba(other), head.predict_proba(X))


def test_training_stops_where_the_held_out_loss_no_longer_falls() -> None:
    X, y = gaussians(200, 3, spread=0.3)
    head = quick(epochs=200, lr=0.01, patience=4, decays=(0.01, 1.0)).fit(X, y)
    lengths = np.isfinite(head.losses_).sum(0)
    assert (lengths < 200).all()
    assert lengths.tolist() == (np.nanargmin(head.losses_, axis=0) + 5).tolist()
    epoch, column = np.unravel_index(np.nanargmin(head.losses_), head.losses_.shape)
    assert head.chosen_ == {"weight_decay": (0.01, 1.0)[column], "epochs": epoch + 1}
    assert head.chosen_by_ == f"the log-loss of {len(head.held_out_rows_)} rows held out"


def test_few_wide_vectors_take_some_hundred_steps_at_most() -> None:
    """117 vectors of 1,280 numbers once took 2,000 steps, of 94 rows each."""
    rng = np.random.default_rng(0)
    y = np.arange(117) % 6
    X = (rng.normal(size=(6, 1280))[y] * 0.3 + rng.normal(size=(117, 1280))).astype(np.float32)
    head = MLPHead().fit(X, y)
    assert np.isfinite(head.losses_).sum() * 94 / 32 <= 300
    assert head.losses_.shape[0] * 94 / 32 >= 900  # those that go on falling have time to


def test_a_decay_takes_its_share_of_the_weights() -> None:
    X, y = gaussians(200, 3, spread=0.3)
    sizes = [np.square(quick(decays=(decay,), patience=12).fit(X, y).weights_[0]).sum() for decay in (0.0, 30.0)]
    assert sizes[1] < 0.9 * sizes[0]


@pytest.mark.parametrize("seed", [0, 1])
def test_groups_are_on_one_side(seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, 60, 400)
    X, y = rng.normal(size=(400, 4)).astype(np.float32), rng.integers(0, 3, 400)
    head = quick(epochs=1, random_state=seed).fit(X, y, groups)
    held_out = head.held_out_rows_
    train_rows = np.setdiff1d(np.arange(400), held_out)
    assert not set(groups[train_rows]) & set(groups[held_out])
    assert set(y[train_rows]) == set(y[held_out]) == {0, 1, 2}


def test_a_group_with_all_rows_of_a_class_is_learned_from() -> None:
    # The second group of "a" has all there is of "b".
    class_ids, groups = np.array([0] * 6 + [1] * 2 + [0] * 12), np.array([0] * 6 + [1] * 6 + [2] * 8)
    for seed in range(9):
        train_rows, held_out = hold_out(class_ids, groups, 0.5, seed)
        assert set(class_ids[train_rows]) == {0, 1}
        assert not set(groups[train_rows]) & set(groups[held_out])


def test_where_no_group_can_be_held_out_all_epochs_are_trained() -> None:
    X, y = gaussians(30, 3)
    head = quick(decays=(0.01, 0.3)).fit(X, y, groups=np.arange(30) % 3)
    assert head.chosen_ == {"weight_decay": 0.3, "epochs": 12}
    assert head.chosen_by_ == "given, as no group can be held out"
    assert (head.held_out_logits_, len(head.held_out_rows_)) == (None, 0)
    assert held_out_temperature(head, y) is None
    # All of one group tells nothing apart, and then each row is one.
    assert len(quick().fit(X, y, groups=np.zeros(30)).held_out_rows_) == 6


@pytest.mark.slow
@pytest.mark.parametrize("each", [1, 2, 3])
def test_tiny_data(each: int) -> None:
    X, y = gaussians(3 * each, 3, spread=5)
    head = MLPHead(hidden=(64,)).fit(X, y)
    assert (head.predict(X) == y).mean() >= (1 if each == 1 else 2 / 3)
    assert np.isfinite(head.predict_proba(X)).all()


def test_each_half_of_the_held_out_rows_is_answered_for_by_the_choice_of_the_other() -> None:
    rng = np.random.default_rng(1)
    x, class_ids, groups = torch.from_numpy(rng.normal(size=(80, 4))).float(), np.arange(80) % 2, np.arange(80) // 2
    choice = HeldOutChoice(x, class_ids, groups, 2, seed=0)
    shown = [[(torch.from_numpy(rng.normal(size=(2, 4))).float(), torch.zeros(2))] for _ in range(12)]
    z = np.array([logits(layers, x).numpy() for layers in shown])
    told = [choice.judge(layers, 0.5, epoch) for epoch, layers in enumerate(shown, start=1)]
    each = -torch.log_softmax(torch.from_numpy(z), 2).numpy()[:, np.arange(80), class_ids]
    np.testing.assert_allclose(told, each.mean(1), rtol=1e-5)
    assert choice.epoch == each.mean(1).argmin() + 1
    halves = hold_out(class_ids, groups, 0.5, 0)
    assert not set(groups[halves[0]]) & set(groups[halves[1]])
    assert choice.logits is not None
    first, second = (each[:, half].mean(1).argmin() for half in halves)
    assert first != second  # else it would not be seen whose choice answers
    np.testing.assert_array_equal(choice.logits[halves[1]], z[first][halves[1]])
    np.testing.assert_array_equal(choice.logits[halves[0]], z[second][halves[0]])


def test_too_few_held_out_rows_give_no_temperature() -> None:
    few, enough = (quick().fit(*gaussians(n, 3, spread=0.5)) for n in (200, 300))
    assert (len(few.held_out_rows_), few.held_out_logits_) == (39, None)
    assert enough.held_out_logits_.shape == (60, 3)
    y = gaussians(300, 3)[1]
    own = held_out_temperature(enough, y)
    # The same of two views an item, of which the first counts.
    twice = clone(enough)
    twice.classes_, twice.held_out_logits_ = enough.classes_, np.repeat(enough.held_out_logits_, 2, axis=0)
    twice.held_out_rows_ = (2 * enough.held_out_rows_[:, None] + np.arange(2)).ravel()
    assert own is not None
    assert held_out_temperature(twice, y, views=2) == own


def test_the_same_seed_gives_the_same_weights_and_leaves_the_global_ones_alone() -> None:
    X, y = gaussians(120, 3, spread=0.5)
    torch.manual_seed(1)
    before, before_numpy = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[union-attr]
    first = quick().fit(X, y)
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == before_numpy).all()  # type: ignore[index]
    torch.manual_seed(2)
    second, other = quick().fit(X, y), quick(random_state=1).fit(X, y)
    for a, b in zip(first.weights_ + first.biases_, second.weights_ + second.biases_, strict=True):
        np.testing.assert_array_equal(a, b)
    assert (first.weights_[0] != other.weights_[0]).any()


def test_a_stream_gives_the_head_of_the_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = gaussians(300, 3)
    head = quick().fit(X, y)
    classes, class_ids = np.unique(y, return_inverse=True)
    # As with a cache larger than what is kept in memory, which a test cannot have: 256 MiB of vectors.
    monkeypatch.setattr(mlp, "_KEPT_BYTES", 0)
    most = 0

    def read(rows: np.ndarray) -> np.ndarray:
        nonlocal most
        if len(rows) < 240:
            most = max(most, len(rows))
        return X[rows]

    streamed = quick().fit_stream(VectorStream(read, class_ids, np.arange(300), classes, 6))
    np.testing.assert_array_equal(streamed.predict_proba(X), head.predict_proba(X))
    assert most == 60  # the rows held out


def test_progress_is_told_to_the_end() -> None:
    told = []
    head = quick(decays=(0.1, 1.0), epochs=40, lr=0.05, patience=2)
    head.on_progress = lambda done, of: told.append((done, of))
    head.fit(*gaussians(90))
    assert told[0] == (0, 80)
    assert told[-1] == (80, 80)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_a_training_that_diverges_is_an_error_and_keeps_no_weights() -> None:
    X, y = gaussians(90, spread=0.3)
    head = quick().fit(X, y)
    head.set_params(lr=1e30)
    with pytest.raises(UsageError, match=r"diverged: in epoch 1, at the weight decay 0\.1.*smaller lr than 1e\+30"):
        head.fit(X, y)
    with pytest.raises(ValueError, match="not fitted"):
        head.predict(X)


@pytest.mark.parametrize("hidden", [(), (0,), (64, -3), (2.5,), "512", ("a",), True, None, ((3, 4), (5, 6))])
def test_wrong_hidden_layers_are_refused(hidden: Any) -> None:
    with pytest.raises(UsageError, match=r"The parameter hidden of the head mlp is .*whole number from 1 on"):
        MLPHead(hidden=hidden).fit(*gaussians(30))


@pytest.mark.parametrize(
    "wrong",
    [
        {"dropout": 1.0},
        {"dropout": -0.1},
        {"dropout": float("nan")},
        {"dropout": "much"},
        {"epochs": 0},
        {"epochs": 1.5},
        {"batch_size": 0},
        {"lr": 0},
        {"lr": float("inf")},
        {"decays": ()},
        {"decays": (-1.0,)},
        {"decays": ("a",)},
        {"patience": 0},
    ],
)
def test_other_wrong_parameters_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"The parameter {next(iter(wrong))} of the head mlp is"):
        quick(**wrong).fit(*gaussians(30))


def test_one_width_alone_is_one_layer() -> None:
    X, y = gaussians(90)
    one, same = quick(hidden=8).fit(X, y), quick(hidden=np.array([8])).fit(X, y)
    assert [w.shape for w in one.weights_] == [(8, 6), (3, 8)]
    np.testing.assert_array_equal(one.predict_proba(X), same.predict_proba(X))


def test_it_cannot_weigh_classes() -> None:
    with pytest.raises(UsageError, match="mlp takes no class weights"):
        resolve_head("mlp", class_weight="balanced")
    with pytest.raises(UsageError, match="mlp takes no class weights"):
        resolve_head(MLPHead(), class_weight="balanced")


def test_layers_in_words() -> None:
    made = resolve_head(with_hidden_layers("mlp", "512, 256", 0.5), seed=3).make()
    assert (made.hidden, made.dropout, made.random_state) == ((512, 256), 0.5, 3)
    assert with_hidden_layers("mlp", None, 0.0).make().get_params() == MLPHead(dropout=0.0).get_params()
    with pytest.raises(UsageError, match=r"--hidden and --dropout are for --head mlp; the head ridge"):
        with_hidden_layers("ridge", "512", None)
    for wrong in ("", "0", "-5", "512,", "5.5", "many"):
        with pytest.raises(UsageError, match="--hidden takes whole numbers"):
            with_hidden_layers("mlp", wrong, None)
    for share in (1.0, -0.1, float("nan")):
        with pytest.raises(UsageError, match="--dropout takes a number from 0 to less than 1"):
            with_hidden_layers("mlp", None, share)


def test_trained_saved_and_read_back(tmp_path: Path) -> None:
    X, y = gaussians(500, 3, spread=0.4)
    np.savez(tmp_path / "x.npz", features=X, labels=y)
    bundle = fc.train(tmp_path / "x.npz", quick(epochs=60, lr=0.02), progress=False)
    assert (bundle.head, bundle.task) == ("mlp", "classify")
    assert bundle.report["calibration"]["temperature"] > 0
    bundle.save(tmp_path / "a.fch")
    back = fc.load(tmp_path / "a.fch")
    p, again = bundle.predict_proba_vectors(X), back.predict_proba_vectors(X)
    assert p is not None
    assert again is not None
    assert again.tobytes() == p.tobytes()
    assert back.chosen == bundle.chosen
    assert (back.predict_vectors(X) == y).mean() == pytest.approx(bundle.report["score"]["accuracy"], abs=0.15)


def test_memory_is_that_of_the_layers_and_of_vectors_up_to_a_bound() -> None:
    head = MLPHead(hidden=(512,))
    layers = 4 * 5 * (1281 * 512 + 513 * 10)
    assert layers + 4 * 1000 * 1280 < head.memory_needed(1000, 1280, 10) < layers + 4 * 2500 * 1280
    # More than 256 MiB are read again in each epoch, and only those held out are kept.
    assert layers + 4 * 50_000 * 1280 < head.memory_needed(50_000, 1280, 10)
    assert head.memory_needed(10**6, 1280, 10) < layers + 4 * 5000 * 1280
