"""Whole networks that train from images, and the bundles that carry them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

import featcache as fc
from featcache.backbones import Backbone, get, tiny_backbone
from featcache.backbones.compute import has_bfloat16
from featcache.core.errors import RecipeMismatchError, UsageError
from featcache.extraction.stored_source import known_images
from featcache.finetuning.batches import ImageBatches, ItemImages, images_in_order
from featcache.finetuning.config import Schedule
from featcache.finetuning.finetune import finetune
from featcache.images.augmentation import views_beside
from featcache.training.bundle import Bundle
from tests.backbones.making import randomised, saved
from tests.finetuning.stores import colour_blind, contents, draw_hues, extracted, labeled

pytestmark = pytest.mark.slow
SHORT = Schedule(epochs=1, lr=1e-3, batch_size=16)
FEW = Schedule(epochs=7, lr=3e-2, batch_size=12, layer_decay=1.0)


@pytest.fixture(scope="module")
def hues(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the vectors of a network that cannot tell its 60 images apart; not to be written to."""
    root = draw_hues(tmp_path_factory.mktemp("hues") / "photos")
    store = extracted(root, root.parent / "s.fcache", colour_blind())
    fc.train(store, progress=False)  # keeps the hold-out
    return store


def run(store: Path, **options: Any) -> Bundle:
    return finetune(store, **({"config": SHORT, "backbone": colour_blind(), "progress": False} | options))


def learned(bundle: Bundle) -> dict[str, bytes]:
    assert bundle.weights is not None
    return {name: np.asarray(tensor).tobytes() for name, tensor in bundle.weights.items()}


def answers(bundle: Bundle, paths: list[Path], backbone: Backbone | None = None) -> np.ndarray:
    """(n, k) probabilities."""
    predictions = bundle.predict(paths, backbone=backbone)
    return np.array([[dict(p.labels)[name] for name in bundle.classes] for p in predictions])


@pytest.fixture(scope="module")
def trained(hues: Path) -> Bundle:
    return run(hues, config=Schedule(epochs=14, lr=3e-2, batch_size=12, layer_decay=1.0))


def test_it_beats_its_frozen_start_where_that_sees_nothing(hues: Path, trained: Bundle) -> None:
    frozen = fc.train(hues, progress=False)
    assert frozen.report["score"]["accuracy"] <= 0.75
    assert trained.report["score"]["accuracy"] >= 0.9
    assert trained.trained_on.tobytes() == frozen.trained_on.tobytes()
    assert trained.report["score"]["n"] == frozen.report["score"]["n"]
    shared = {"head", "task", "classes", "n", "score", "chosen", "balanced_accuracy", "macro_f1", "log_loss"}
    shared |= {"views", "calibration", "near_duplicates", "fit_seconds", "seconds", "predicts", "unscored"}
    assert shared <= set(frozen.report)
    assert shared - {"views"} <= set(trained.report)
    text = json.dumps(trained.report)
    assert json.dumps(json.loads(text)) == text


def test_it_answers_as_torch_does(hues: Path, trained: Bundle, tmp_path: Path) -> None:
    """Evaluation, prediction, the saved file and one torch module agree with the network run by hand."""
    root = Path(fc.open(hues).sources()["photos"])
    paths = sorted(root.rglob("*.png"))
    module = tiny_backbone().module
    assert trained.weights is not None
    module.load_state_dict({name: torch.from_numpy(np.array(t)) for name, t in trained.weights.items()})
    module.eval()
    backbone = colour_blind()
    pixels = np.stack([backbone.prepare(backbone.decode(path.read_bytes())) for path in paths])
    x = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
    predictor: Any = trained.predictor
    with torch.no_grad():
        expected = (
            (module(x) @ torch.from_numpy(predictor.weight).T + torch.from_numpy(predictor.bias)).softmax(1).numpy()
        )
    got = answers(trained, paths, backbone)
    np.testing.assert_allclose(got, expected, atol=1e-5)
    with torch.no_grad():
        np.testing.assert_allclose(trained.to_torch(backbone)(x).softmax(1).numpy(), expected, atol=1e-5)

    trained.save(tmp_path / "a.fch")
    back = Bundle.load(tmp_path / "a.fch")
    assert learned(back) == learned(trained)
    assert json.dumps(back.report) == json.dumps(trained.report)
    assert answers(back, paths, backbone).tolist() == got.tolist()
    report = fc.evaluate(back, hues, backbone=backbone, progress=False)
    seen = {row.tobytes() for row in back.trained_on}
    test = np.array([hashlib.sha256(path.read_bytes()).digest() not in seen for path in paths])
    right = np.array([path.parent.name for path in paths]) == np.array(back.classes)[got.argmax(1)]
    assert report.n == test.sum()
    assert report.accuracy == right[test].mean() == trained.report["score"]["accuracy"]
    # The backbone gives the architecture alone: another with the same names and shapes does as well.
    assert answers(back, paths, colour_blind()).tolist() == got.tolist()
    with pytest.raises(RecipeMismatchError, match="backbone is"):
        back.predict(paths, backbone=tiny_backbone(3))
    with pytest.raises(UsageError, match="made from a module in Python"):
        back.predict(paths)


def test_it_leaves_the_backbone_and_the_store_as_they_are(hues: Path, tmp_path: Path) -> None:
    store = shutil.copytree(hues, tmp_path / "s.fcache")
    backbone, before = colour_blind(), contents(store)
    digest = backbone.recipe.weights
    state = torch.get_rng_state()
    first = run(store, backbone=backbone, config=FEW)
    assert first.chosen["epoch"] > 0
    assert colour_blind().recipe.weights == digest == backbone.recipe.weights
    reference = colour_blind().module.state_dict()
    assert all(torch.equal(tensor, reference[name]) for name, tensor in backbone.module.state_dict().items())
    assert contents(store) == before
    torch.set_rng_state(state)
    torch.rand(7)  # what others drew before changes nothing
    assert learned(run(store, config=FEW)) == learned(first)
    assert learned(run(store, config=FEW, seed=1)) != learned(first)


def test_augmented_views_are_those_that_are_stored(tmp_path: Path) -> None:
    backbone = tiny_backbone()
    store = extracted(draw_hues(tmp_path / "photos", each=3), tmp_path / "s.fcache", backbone, views=3, seed=7)
    opened = fc.open(store)
    items = list(labeled(store).values())
    there = known_images(opened, "photos", items, [])
    pictures = ItemImages(backbone, items, [there[item.uri] for item in items], seed=7)
    layers = backbone.resolve_layers(["pooled"])
    X, _, stored = opened.arrays(views=True)
    assert [item.uri for item in stored[::3]] == [item.uri for item in items]
    for place, epoch in enumerate((None, 1, 2)):
        pixels = np.stack([pictures.pixels(row, epoch) for row in range(len(items))])
        np.testing.assert_allclose(X[place::3], backbone.forward(pixels, layers)["pooled"], rtol=1e-3, atol=1e-4)
    assert views_beside(3, 7)[1].name == opened.view_names()[2]
    batches = ImageBatches(pictures, np.arange(6), np.arange(6), 4, seed=0)
    seen = [(x.numpy(), y.tolist()) for x, y in batches(2)]
    assert [len(y) for _, y in seen] == [3, 3]
    for x, y in seen:
        np.testing.assert_array_equal(x, [pictures.pixels(row, 2) for row in y])
    (first, _), _ = images_in_order(pictures, np.arange(6), np.arange(6), 4)
    np.testing.assert_array_equal(first.numpy(), [pictures.pixels(row) for row in range(4)])


def test_bfloat16_where_the_processor_has_it(hues: Path, tmp_path: Path) -> None:
    store, config = shutil.copytree(hues, tmp_path / "s.fcache"), replace(SHORT, precision="bfloat16")
    if has_bfloat16():
        assert len(run(store, config=config).report["curve"]["epochs"]) == 1
    else:
        with pytest.raises(UsageError, match=r"does not compute in bfloat16.*float32"):
            run(store, config=config)


def test_a_small_network_learns_from_nothing(hues: Path, tmp_path: Path) -> None:
    config = Schedule(epochs=8, lr=2e-3, batch_size=12, layer_decay=1.0)
    bundle = run(hues, init="scratch", arch="scratch:small_cnn", config=config, backbone=None)
    assert bundle.report["score"]["accuracy"] >= 0.9
    assert bundle.recipe is not None
    assert bundle.recipe.backbone == "scratch:small_cnn"
    bundle.save(tmp_path / "a.fch")
    back = Bundle.load(tmp_path / "a.fch")
    paths = sorted(Path(fc.open(hues).sources()["photos"]).rglob("*.png"))
    assert answers(back, paths).tolist() == answers(bundle, paths).tolist()
    assert fc.evaluate(back, hues, progress=False).accuracy == bundle.report["score"]["accuracy"]
    assert get("scratch:small_cnn").architecture() is not None


def test_a_bundle_needs_no_published_weights(
    tmp_path: Path, draw_images: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole network is in the file: where nobody has the weights that it began with it answers all the same."""
    name, root = "timm:test_resnet.r160_in1k", draw_images(tmp_path / "photos", each=5)
    weights = saved(randomised(timm.create_model("test_resnet", pretrained=False)), tmp_path / "w.pth")
    os.utime(weights, (1e9, 1e9))
    store = tmp_path / "s.fcache"
    fc.extract(root, store, backbone=get(name, weights, runtime="torch"), progress=False)
    config = Schedule(epochs=1, lr=1e-4, batch_size=8)
    bundle = finetune(store, init="scratch", config=config, backbone=get(name, weights), progress=False)
    bundle.save(tmp_path / "a.fch")
    paths = sorted(root.rglob("*.jpg"))
    expected = answers(bundle, paths, get(name, weights))
    weights.unlink()
    monkeypatch.setenv("FEATCACHE_CACHE", str(tmp_path / "empty"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "empty"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    back = Bundle.load(tmp_path / "a.fch")
    np.testing.assert_allclose(answers(back, paths), expected, atol=1e-5)
    report = fc.evaluate(back, store, progress=False)
    assert report.accuracy == bundle.report["score"]["accuracy"]
