"""Heads learn from all views of their items, and nothing of an item that they are scored on."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.base import BaseEstimator, ClassifierMixin

import featcache as fc
from featcache.backbones import tiny_backbone
from featcache.core.errors import MissingVectorsError, UnknownNameError
from featcache.heads import resolve_head
from featcache.heads.predictors import KnnPredictor, LinearPredictor
from featcache.heads.serialize import export_predictor
from featcache.metrics import splits
from featcache.metrics.calibration import held_out_temperature
from featcache.store import FeatureStore, Item
from featcache.training.bundle import Bundle
from featcache.training.dataset import FeatureDataset
from tests.training.sides import sides_of

K = 3


@pytest.fixture(scope="module")
def kept_store(tmp_path_factory: pytest.TempPathFactory, draw_images: Callable[..., Path]) -> Path:
    """The vectors of 24 images in three views; not to be written to."""
    root = draw_images(tmp_path_factory.mktemp("images") / "photos")
    path = root.parent / "kept.fcache"
    fc.extract(root, path, backbone=tiny_backbone(), layers=["pooled", "body.0:mean"], views=K, progress=False)
    return path


@pytest.fixture
def store(kept_store: Path, tmp_path: Path) -> Path:
    """A copy of the store of this test's own."""
    return shutil.copytree(kept_store, tmp_path / "s.fcache")


def train(store: Path, head: Any = "softmax", **options: Any) -> Bundle:
    return fc.train(store, head, progress=False, **options)


def learned_rows(store: Path, layers: str = "pooled") -> tuple[np.ndarray, np.ndarray, list[Item]]:
    """Vectors of all views, labels and items of the training part, as the store gives them."""
    parts = sides_of(store, "photos")
    X, y, items = fc.open(store).arrays(layers=layers, views=True)
    of = np.array([parts[item.sha256] == "train" for item in items])
    return X[of], y[of], [item for item, learned in zip(items, of, strict=True) if learned]


class Memory(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Knows by heart what it was fitted on, and answers anything else with ``unseen``."""

    def fit(self, X: np.ndarray, y: np.ndarray) -> Memory:
        self.classes_ = np.unique(y)
        self.known_ = {row.tobytes(): label for row, label in zip(X, y, strict=True)}
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        return np.array([self.known_.get(row.tobytes(), "unseen") for row in X])


@pytest.mark.parametrize("head", ["softmax", "ridge", "knn"])
def test_a_head_is_the_one_fitted_on_all_views_of_the_training_part(store: Path, head: str) -> None:
    bundle = train(store, head)
    X, y, items = learned_rows(store)
    expected = resolve_head(head).make().fit(X, y, groups=splits.units(items))
    predictor, calibration = export_predictor(expected), bundle.report["calibration"]
    if isinstance(bundle.predictor, LinearPredictor):
        assert isinstance(predictor, LinearPredictor)
        temperature = 1.0 if calibration is None else calibration["temperature"]
        np.testing.assert_allclose(bundle.predictor.weight * temperature, predictor.weight, rtol=1e-4, atol=1e-6)
    else:
        assert isinstance(bundle.predictor, KnnPredictor)
        assert isinstance(predictor, KnnPredictor)
        np.testing.assert_array_equal(bundle.predictor.vectors, predictor.vectors)
        assert bundle.report["chosen_by"] == "leaving out one group"
    assert bundle.chosen == expected.chosen_
    assert bundle.fitted_on == len(bundle.trained_on) == len(X) / K


def test_the_score_is_that_on_view_0_of_the_rest(store: Path) -> None:
    bundle = train(store)
    learned = {item.sha256 for item in learned_rows(store)[2]}
    X, y, items = fc.open(store).arrays()
    test = np.array([item.sha256 not in learned for item in items])
    assert bundle.report["score"]["n"] == test.sum() == 24 - bundle.fitted_on
    assert bundle.report["score"]["accuracy"] == (bundle.predict_vectors(X[test]) == y[test]).mean()
    assert bundle.report["score"]["protocol"].endswith("trained on 3 views (seed 0) of each image, scored on view 0")


@pytest.mark.parametrize("options", [{}, {"cv": 3}, {"group_near_duplicates": True}])
def test_no_view_of_a_scored_item_is_learned_from(store: Path, options: dict[str, Any]) -> None:
    bundle = train(store, Memory(), **options)
    # Whoever knows by heart what was learned knows nothing of what is scored.
    assert bundle.report["score"]["accuracy"] == 0.0
    assert bundle.estimator is not None
    known = set(bundle.estimator.known_)
    X, _, items = fc.open(store).arrays(views=True)
    learned = {row.tobytes() for row in bundle.trained_on}
    assert known == {row.tobytes() for row, item in zip(X, items, strict=True) if item.sha256 in learned}
    assert len(known) == K * bundle.fitted_on


def test_several_layers_are_scaled_by_all_views(store: Path) -> None:
    bundle = train(store, "ridge", layers="pooled+body.0:mean")
    X = learned_rows(store, "pooled+body.0:mean")[0].astype(np.float64)
    weighting = bundle.report["layer_weighting"]["weighting"]
    for use, part in zip(bundle.layers, (X[:, :12], X[:, 12:]), strict=True):
        rows = part - part.mean(axis=0) if "centred" in weighting else part
        width = part.shape[1] if weighting == "per element" else 14
        assert use.scale == pytest.approx(np.sqrt((rows**2).sum(axis=1).mean() / width), rel=1e-5)


def test_the_first_view_alone_is_as_if_no_other_were_stored(store: Path) -> None:
    first = train(store, views="first")
    assert first.report["views"] == ["0"]
    assert "views" not in first.report["score"]["protocol"]
    X, y, items = learned_rows(store)
    expected = resolve_head("softmax").make().fit(X[::K], y[::K], groups=splits.units(items[::K]))
    predictor = export_predictor(expected)
    assert isinstance(predictor, LinearPredictor)
    assert isinstance(first.predictor, LinearPredictor)
    temperature = first.report["calibration"]["temperature"]
    np.testing.assert_allclose(first.predictor.weight * temperature, predictor.weight, rtol=1e-4, atol=1e-6)
    with pytest.raises(UnknownNameError, match="views"):
        train(store, views="second")


def test_the_bundle_notes_the_views(store: Path, tmp_path: Path) -> None:
    train(store).save(tmp_path / "a.fch")
    assert Bundle.load(tmp_path / "a.fch").report["views"] == fc.open(store).view_names()
    assert len(fc.open(store).view_names()) == K


def test_a_store_with_views_of_some_images_is_told(tmp_path: Path, draw_images: Callable[..., Path]) -> None:
    root, store = draw_images(tmp_path / "photos", each=6), tmp_path / "s.fcache"
    other = shutil.copytree(root, tmp_path / "other")
    Image.new("RGB", (40, 30), (1, 2, 3)).save(other / "cats" / "new.png")
    fc.extract(other, store, backbone=tiny_backbone(), progress=False)
    fc.extract(root, store, backbone=tiny_backbone(), views=2, progress=False)
    with pytest.raises(MissingVectorsError, match=r"1 of 13 images.*--views first"):
        train(store, source="other")
    assert train(store, views="first", source="other").report["views"] == ["0"]
    fc.extract(other, store, backbone=tiny_backbone(), views=2, progress=False)
    assert len(train(store, source="other").report["views"]) == 2


def test_several_labels_an_item(tmp_path: Path, draw_images: Callable[..., Path]) -> None:
    root, store = draw_images(tmp_path / "photos"), tmp_path / "s.fcache"
    paths = sorted(p.relative_to(root).as_posix() for p in root.rglob("*.jpg"))
    with (root / "list.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(
            [("path", "label"), *((p, f"{p.split('/')[0]}|{'even' if i % 2 else 'odd'}") for i, p in enumerate(paths))]
        )
    fc.extract(root / "list.csv", store, name="photos", backbone=tiny_backbone(), views=2, progress=False)
    bundle = train(store, task="multilabel")
    X, y, items = learned_rows(store)
    Y = np.array([[label in text.split("|") for label in bundle.classes] for text in y])
    predictor = export_predictor(
        resolve_head("softmax", task="multilabel").make().fit(X, Y, groups=splits.units(items))
    )
    assert isinstance(predictor, LinearPredictor)
    assert isinstance(bundle.predictor, LinearPredictor)
    np.testing.assert_allclose(bundle.predictor.weight, predictor.weight, rtol=1e-4, atol=1e-6)


def test_views_are_read_in_any_order(store: Path) -> None:
    opened = FeatureStore.open(store)
    dataset = FeatureDataset.from_store(opened, "pooled+body.0:mean", views=True)
    X = opened.arrays(layers="pooled+body.0:mean", views=True)[0]
    rows = np.array([5, 0, 23])
    places = dataset.view_rows(rows)
    np.testing.assert_array_equal(dataset.read_views(places), X.reshape(24, K, -1)[rows].reshape(9, -1))
    np.testing.assert_array_equal(dataset.read_views(places[::-2]), X[places[::-2]])
    np.testing.assert_array_equal(dataset.read(rows), X[rows * K])


def test_the_temperature_is_that_of_view_0() -> None:
    """Augmented views are harder, so a head would seem less sure than it is on images as they are."""
    rng = np.random.default_rng(0)
    logits, y = rng.normal(size=(40, 3)), rng.choice(["a", "b", "c"], 40)
    logits[np.arange(40), [" abc".index(label) - 1 for label in y]] += 1.5
    seen = np.repeat(logits, 2, axis=0)
    seen[1::2] *= 50
    alone, both = (
        SimpleNamespace(held_out_logits_=found, classes_=np.array(["a", "b", "c"])) for found in (logits, seen)
    )
    assert held_out_temperature(both, y, 2) == held_out_temperature(alone, y) != held_out_temperature(both, y.repeat(2))
