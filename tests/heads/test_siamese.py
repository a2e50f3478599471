"""The siamese head on identities whose best projection is known."""

from __future__ import annotations

import numpy as np
import pytest

from featcache.core.errors import UsageError
from featcache.heads.siamese import SiameseHead
from featcache.metrics.verification import cosine_scores, pairs_within, roc

# In 4 of 24 directions identities differ; within identities the others vary more than these.
WIDTH, TELLING = 24, 4
MIXING = np.random.default_rng(9).normal(size=(WIDTH, WIDTH))


def people(count: int, each: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = np.repeat(np.arange(count), each)
    X = np.concatenate([rng.normal(size=(count, TELLING))[y], np.zeros((len(y), WIDTH - TELLING))], axis=1)
    X += rng.normal(size=X.shape) * np.where(np.arange(WIDTH) < TELLING, 0.35, 2.0)
    return ((X @ MIXING) + 5).astype(np.float32), y


def eer(vectors: np.ndarray, y: np.ndarray) -> float:
    pairs, same = pairs_within(y, 200_000)
    return roc(cosine_scores(vectors, pairs), same).eer()


@pytest.fixture(scope="module")
def learned() -> tuple[np.ndarray, np.ndarray]:
    return people(40, 8, 0)


@pytest.fixture(scope="module")
def unseen() -> tuple[np.ndarray, np.ndarray]:
    return people(120, 5, 1)


@pytest.fixture(scope="module")
def best(unseen: tuple[np.ndarray, np.ndarray]) -> float:
    """The equal error rate of the true projection on unseen people."""
    X, y = unseen
    return eer((X.astype(np.float64) - 5) @ np.linalg.inv(MIXING)[:, :TELLING], y)


@pytest.fixture(scope="module")
def fitted(learned: tuple[np.ndarray, np.ndarray]) -> SiameseHead:
    return SiameseHead(dimensions=TELLING, noise=(1.0,), steps=80).fit(*learned)


def test_discriminant_analysis_recovers_the_best_projection(learned, unseen, best) -> None:
    head = SiameseHead(dimensions=TELLING, loss="none").fit(*learned)
    got = eer(head.transform(unseen[0]), unseen[1])
    assert head.projection_.shape == (TELLING, WIDTH)
    assert head.chosen_["steps"] == 0
    assert got < best + 0.03
    assert eer(unseen[0], unseen[1]) > best + 0.15


def test_training_is_not_worse_than_where_it_started(fitted, learned, unseen) -> None:
    start = SiameseHead(dimensions=TELLING, loss="none").fit(*learned)
    assert fitted.held_out_eer_["chosen"] <= fitted.held_out_eer_["initial"]
    assert fitted.held_out_eer_["initial"] == start.held_out_eer_["chosen"]
    assert eer(fitted.transform(unseen[0]), unseen[1]) < eer(start.transform(unseen[0]), unseen[1]) + 0.02


@pytest.mark.parametrize("loss", ["contrastive", "triplet"])
def test_no_loss_makes_it_worse_on_held_out_identities(loss: str, learned) -> None:
    head = SiameseHead(dimensions=TELLING, loss=loss, noise=(1.0,), steps=40, folds=2).fit(*learned)
    assert head.held_out_eer_["chosen"] <= head.held_out_eer_["initial"]
    assert np.isfinite(head.projection_).all()


def test_out_of_fold_vectors_are_those_of_heads_that_have_not_seen_the_fold(learned) -> None:
    X, y = learned
    head = SiameseHead(loss="none", shrinkage=0.3).fit(X, y)
    for held in range(head.folds):
        inside = head.fold_ == held
        assert not set(y[inside]) & set(y[~inside])
        other = SiameseHead(loss="none", shrinkage=0.3, folds=1000).fit(X[~inside], y[~inside])
        assert other.fold_ is None
        # Equal up to a turn, so the cosines are compared.
        mine, theirs = head.out_of_fold_[inside], other.transform(X[inside])
        np.testing.assert_allclose(mine @ mine.T, theirs @ theirs.T, atol=1e-3)


def test_one_seed_gives_one_head(fitted, learned) -> None:
    again = SiameseHead(dimensions=TELLING, noise=(1.0,), steps=80).fit(*learned)
    assert again.projection_.tobytes() == fitted.projection_.tobytes()
    assert again.out_of_fold_.tobytes() == fitted.out_of_fold_.tobytes()
    assert again.chosen_ == fitted.chosen_


def test_the_form_embeds_as_the_head(fitted, unseen) -> None:
    predictor = fitted.predictor()
    np.testing.assert_array_equal(predictor.embed(unseen[0]), fitted.transform(unseen[0]))
    assert predictor.classes == tuple(str(k) for k in range(40))
    assert predictor.calibration is None


def test_more_numbers_than_vectors() -> None:
    rng = np.random.default_rng(5)
    y = np.repeat(np.arange(12), 3)
    X = rng.normal(size=(12, 200))[y] + rng.normal(size=(36, 200))
    head = SiameseHead(steps=40).fit(X, y)
    assert head.projection_.shape[1] == 200
    new = np.repeat(np.arange(20), 3)
    Z = rng.normal(size=(20, 200))[new] + rng.normal(size=(60, 200))
    assert eer(head.transform(Z), new) < 0.4


def test_groups_are_held_out_together(learned) -> None:
    X, y = learned
    groups = np.arange(len(y))
    groups[0] = groups[-1]
    head = SiameseHead(loss="none", shrinkage=0.5).fit(X, y, groups)
    assert head.fold_[0] == head.fold_[-1]


def test_bad_vectors_and_identities_are_refused(learned) -> None:
    X, y = learned
    broken = X.copy()
    broken[7, 2] = np.nan
    with pytest.raises(UsageError, match="Row 7"):
        SiameseHead().fit(broken, y)
    with pytest.raises(UsageError, match="one class"):
        SiameseHead().fit(X, np.zeros(len(y)))
    with pytest.raises(UsageError, match="2 identities"):
        SiameseHead().fit(X, y % 2)
    with pytest.raises(UsageError, match="320 identities, 0 of them"):
        SiameseHead().fit(X, np.arange(len(y)))


@pytest.mark.parametrize(
    "wrong",
    [
        {"dimensions": 1},
        {"loss": "cosine"},
        {"shrinkage": 1.5},
        {"noise": ()},
        {"noise": (-1.0,)},
        {"steps": 0},
        {"folds": 1},
    ],
)
def test_parameters_out_of_range_are_named(learned, wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        SiameseHead(**wrong).fit(*learned)


def test_training_takes_one_thread_and_gives_the_others_back(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from featcache.heads import metric_learning

    seen = []

    def watched(*arguments, **options):
        seen.append(torch.get_num_threads())
        return real(*arguments, **options)

    real = metric_learning.trained
    monkeypatch.setattr(metric_learning, "trained", watched)
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(12), 4)
    X = rng.normal(size=(12, 6))[y] + rng.normal(size=(48, 6))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        SiameseHead(steps=1, noise=(1.0,)).fit(X, y)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {1}
