"""Layers are weighed against each other as the leave-one-out loss of ridge regression says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import LeaveOneGroupOut

import featcache as fc
from featcache.backbones import tiny_backbone
from featcache.metrics.calibration import fit_temperature
from featcache.store import Item
from featcache.training import layer_scales
from featcache.training.dataset import FeatureDataset
from featcache.training.layer_scales import ALONE, COMPARED, WEIGHTINGS, choose_layers, layer_uses
from featcache.training.layer_use import scale_layers


def dataset(parts: list[np.ndarray], y: np.ndarray, groups: np.ndarray | None = None) -> FeatureDataset:
    X = np.concatenate(parts, axis=1).astype(np.float32)
    return FeatureDataset(
        items=[Item("s", f"{i}.jpg", bytes([i % 256, i // 256] * 16), str(y[i]), None, None) for i in range(len(y))],
        y=y.astype(str),
        groups=np.arange(len(y)) if groups is None else groups,
        layers=[f"layer {i}" for i in range(len(parts))],
        shapes=[part.shape[1:] for part in parts],
        recipe=None,
        read=lambda rows: X[rows],
    )


def drawn(n: int = 90, signal: tuple[float, ...] = (0.5, 0.5), seed: int = 0) -> tuple[list[np.ndarray], np.ndarray]:
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 3
    widths = (40, 10)
    return [
        rng.normal(size=(n, d)) + s * rng.normal(size=(3, d))[y] + 3 for d, s in zip(widths, signal, strict=True)
    ], y


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_each_weighting_is_what_its_name_says(name: str) -> None:
    parts, y = drawn()
    of = dataset(parts, y)
    scaled = scale_layers(of.read(np.arange(90)), layer_uses(of, np.arange(90), **WEIGHTINGS[name])).astype(np.float64)
    halves = [scaled[:, :40], scaled[:, 40:]]
    if name == "per element":
        assert [np.mean(half**2) for half in halves] == pytest.approx([1, 1], rel=1e-5)
        return
    if "centred" in name:
        halves = [half - half.mean(axis=0) for half in halves]
    norms = [(half**2).sum(axis=1).mean() for half in halves]
    assert norms == pytest.approx([25, 25], rel=1e-5)  # two layers of 50 numbers: 1 a number in the mean


def test_the_choice_is_the_least_loss_of_fits_without_each_group() -> None:
    parts, y = drawn(n=45)
    groups = np.arange(45) // 3 * 3 + np.arange(45) % 3 // 2  # some of two rows
    of = dataset(parts, y, groups)
    chosen = choose_layers(of, np.arange(45), alone=True, seed=0)
    assert chosen.losses is not None
    assert list(chosen.losses) == [*WEIGHTINGS, ALONE]
    assert chosen.losses[str(chosen.weighting)] <= min(chosen.losses.values()) + 1e-4
    for name, loss in chosen.losses.items():
        X = of.read(np.arange(45))
        X = X[:, 40:] if name == ALONE else scale_layers(X, layer_uses(of, np.arange(45), **WEIGHTINGS[name]))
        X = X.astype(np.float64)
        total = np.square(X - X.mean(axis=0)).sum() / X.shape[1]
        losses = []
        for alpha in np.geomspace(1e-3, 1e3, 13) * total:
            scores = np.zeros((45, 3))
            for rest, out in LeaveOneGroupOut().split(X, y, groups):
                scores[out] = RidgeClassifier(alpha=alpha).fit(X[rest], y[rest]).decision_function(X[out])
            losses.append(fit_temperature(scores, y)[1])
        assert loss == pytest.approx(min(losses), rel=1e-3)


def test_of_blocks_that_know_nothing_the_last_layer_is_left() -> None:
    parts, y = drawn(n=150, signal=(0.0, 1.5))
    alone = choose_layers(dataset(parts, y), np.arange(150), alone=True, seed=0)
    assert (alone.weighting, [use.name for use in alone.uses], alone.uses[0].scale) == (ALONE, ["layer 1"], 1.0)
    assert len(choose_layers(dataset(parts, y), np.arange(150), alone=False, seed=0).uses) == 2


def test_a_sample_has_each_class_its_share_and_whole_groups() -> None:
    parts, y = drawn(n=1500)
    y[:750] = 0
    groups = np.arange(1500) // 2
    of = dataset(parts, y, groups)
    rows = layer_scales._sample(of, np.arange(1500), seed=0)
    assert COMPARED <= len(rows) <= 2 * COMPARED
    assert sorted(np.unique(groups[rows], return_counts=True)[1]) == [2] * (len(rows) // 2)
    assert 0.5 < (y[rows] == 0).mean() < 0.85
    assert choose_layers(of, np.arange(1500), alone=False, seed=0).compared == len(rows)


def test_a_layer_that_does_not_vary_and_one_of_zeros_keep_their_scale() -> None:
    parts, y = drawn()
    of = dataset([np.full((90, 7), 3.0), np.zeros((90, 5)), parts[1]], y)
    uses = layer_uses(of, np.arange(90), centred=True, per_element=False)
    assert [use.scale == 1.0 for use in uses] == [True, True, False]


@pytest.mark.parametrize("head", ["ridge", "knn"])
def test_a_head_that_reads_the_last_layer_alone_predicts_saves_and_scores(
    photos: Path, tmp_path: Path, head: str
) -> None:
    layers = ["pooled", "body.0:mean_std"]
    fc.extract(photos, tmp_path / "s.fcache", backbone=tiny_backbone(), layers=layers, progress=False)
    bundle = fc.train(tmp_path / "s.fcache", head)
    chosen = bundle.report["layer_weighting"]["weighting"]
    names = ["pooled"] if chosen == ALONE else ["body.0:mean_std", "pooled"]
    assert [use.name for use in bundle.layers] == names == bundle.report["layers"]
    bundle.save(tmp_path / "a.fch")
    image = next(photos.rglob("*.jpg"))
    assert fc.load(tmp_path / "a.fch").predict([image], backbone=tiny_backbone())[0].labels
