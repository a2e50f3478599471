"""Bundles that carry trained tensors: they come back bit for bit, and damage is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import featcache as fc
from featcache.backbones import tiny_backbone
from featcache.backbones.registry import with_weights
from featcache.backbones.weights import digest_of
from featcache.core.errors import BundleError, FeatcacheError, RecipeMismatchError, WeightsError
from featcache.heads.predictors import LinearPredictor
from featcache.training.bundle import Bundle
from featcache.training.layer_use import LayerUse
from featcache.training.partial_model import PartialModel, pack, unpack
from tests.training.test_bundle import rewrite

CLASSES = ("ant", "bee", "čmelák")
SHAPE = (8, 16, 16)


def state(seed: int, prefix: str = "") -> dict[str, np.ndarray]:
    """The tensors of the tiny network of another seed, as if it had been trained."""
    module = tiny_backbone(seed).module
    return {name: t.numpy().copy() for name, t in module.state_dict().items() if name.startswith(prefix)}


def output(width: int = 16) -> LinearPredictor:
    rng = np.random.default_rng(0)
    return LinearPredictor(
        rng.normal(size=(3, width)).astype(np.float32), rng.normal(size=3).astype(np.float32), CLASSES, "softmax"
    )


def suffix() -> Bundle:
    """A bundle of the layers from ``body`` on."""
    backbone = tiny_backbone()
    predictor = PartialModel("body", SHAPE, state(1, "body"), output(), backbone.recipe, backbone)
    return Bundle(
        head="tune", classes=CLASSES, layers=(LayerUse("stem:none", SHAPE, 1.0),), recipe=backbone.recipe,
        predictor=predictor, trained_on=np.zeros((1, 32), np.uint8),
    )  # fmt: skip


def whole() -> Bundle:
    """A bundle of a whole network."""
    weights = state(1)
    recipe = with_weights(tiny_backbone(), weights).recipe
    return Bundle(
        head="finetune", classes=CLASSES, layers=(LayerUse("pooled", (16,), 1.0),), recipe=recipe, predictor=output(),
        trained_on=np.zeros((1, 32), np.uint8), weights=weights,
    )  # fmt: skip


MAKERS = {"suffix": suffix, "whole": whole}


def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)


@pytest.mark.parametrize("kind", MAKERS)
def test_it_comes_back_bit_for_bit(tmp_path: Path, kind: str) -> None:
    bundle = MAKERS[kind]()
    bundle.save(tmp_path / "a.fch")
    back = fc.load(tmp_path / "a.fch")
    backbone = tiny_backbone()
    X = np.random.default_rng(1).normal(size=(5, bundle.width)).astype(np.float32)
    if kind == "suffix":
        back = back.on(backbone)
    p, again = bundle.predict_proba_vectors(X), back.predict_proba_vectors(X)
    assert p is not None
    assert again is not None
    assert p.tobytes() == again.tobytes()
    np.testing.assert_allclose(p.sum(1), 1)
    assert back.predict(image(), backbone=backbone) == bundle.predict(image(), backbone=backbone)
    for name in ("head", "classes", "layers", "recipe", "created", "task"):
        assert getattr(back, name) == getattr(bundle, name), name
    back.save(tmp_path / "b.fch")
    assert (tmp_path / "b.fch").read_bytes() == (tmp_path / "a.fch").read_bytes()
    # Tensors without axes stay so.
    names = load_file(tmp_path / "a.fch")
    prefix = "suffix." if kind == "suffix" else "network."
    assert names[f"{prefix}body.0.1.num_batches_tracked"].shape == ()


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("kept", [0, 4, 100, 0.3, 0.6, 0.99])
def test_a_truncated_file(tmp_path: Path, kind: str, kept: float) -> None:
    MAKERS[kind]().save(tmp_path / "a.fch")
    data = (tmp_path / "a.fch").read_bytes()
    (tmp_path / "a.fch").write_bytes(data[: int(kept if kept > 1 else kept * len(data))])
    with pytest.raises(BundleError, match="is not a featcache head"):
        Bundle.load(tmp_path / "a.fch")


@pytest.mark.parametrize(
    ("kind", "tensors", "changes"),
    [
        ("suffix", {"weight": np.zeros((2, 16), np.float32)}, {}),
        ("suffix", {"weight": np.zeros((3, 16), np.float64)}, {}),
        ("suffix", {"weight": np.zeros(3, np.float32)}, {}),
        ("suffix", {"weight": np.full((3, 16), np.nan, np.float32)}, {}),
        ("suffix", {"bias": np.zeros((3, 1), np.float32)}, {}),
        ("suffix", {"bias": np.array(0, np.float32)}, {}),
        ("suffix", {"bias": None}, {}),
        ("suffix", {"suffix.body.0.0.weight": np.full((12, 8, 3, 3), np.inf, np.float32)}, {}),
        ("suffix", {"trained_on": np.zeros((1, 31), np.uint8)}, {}),
        ("suffix", {}, {"from_layer": ""}),
        ("suffix", {}, {"from_layer": 3}),
        ("suffix", {}, {"link": "sigmoid"}),
        ("suffix", {}, {"recipe": None}),
        ("suffix", {}, {"classes": ["ant", "bee"]}),
        ("suffix", {}, {"classes": ["ant", "bee", "bee"]}),
        ("suffix", {}, {"layers": [{"name": "stem:none", "shape": [0, 16, 16], "scale": 1.0}]}),
        ("suffix", {}, {"layers": [{"name": "stem:none", "shape": [-8, -16, 16], "scale": 1.0}]}),
        ("suffix", {}, {"layers": [{"name": "a", "shape": [8], "scale": 1.0}] * 2}),
        ("suffix", {}, {"layers": []}),
        ("suffix", {"network.a": np.zeros(3, np.float32)}, {"network": 1}),
        ("whole", {"weight": np.zeros((3, 15), np.float32)}, {}),
        ("whole", {"network.stem.0.weight": None}, {}),
        ("whole", {"network.other": np.zeros(3, np.float32)}, {}),
        ("whole", {}, {"network": 0}),
        ("whole", {}, {"network": True}),
        ("whole", {}, {"network": "13"}),
        ("whole", {}, {"recipe": None}),
        ("whole", {}, {"kind": "suffix on activations"}),
    ],
)
def test_parts_that_do_not_fit(
    tmp_path: Path, kind: str, tensors: dict[str, np.ndarray | None], changes: dict[str, Any]
) -> None:
    MAKERS[kind]().save(tmp_path / "a.fch")
    rewrite(tmp_path / "a.fch", tensors, **changes)
    with pytest.raises(BundleError, match=r"a\.fch"):
        Bundle.load(tmp_path / "a.fch")


@pytest.mark.parametrize(
    ("tensors", "changes", "error", "words"),
    [
        ({"suffix.body.0.0.weight": None}, {}, WeightsError, "the bundle do not fit this network: 1 missing"),
        ({"suffix.body.9.weight": np.zeros(3, np.float32)}, {}, WeightsError, "1 unexpected"),
        ({"suffix.body.0.0.bias": np.zeros(5, np.float32)}, {}, WeightsError, "1 of another shape"),
        ({}, {"from_layer": "bodi"}, FeatcacheError, "bodi"),
        ({}, {"from_layer": "body.1"}, WeightsError, "unexpected"),
    ],
)
def test_a_suffix_that_is_none_of_its_backbone(
    tmp_path: Path, tensors: dict[str, np.ndarray | None], changes: dict[str, Any], error: type, words: str
) -> None:
    suffix().save(tmp_path / "a.fch")
    rewrite(tmp_path / "a.fch", tensors, **changes)
    with pytest.raises(error, match=words):
        Bundle.load(tmp_path / "a.fch").predict(image(), backbone=tiny_backbone())


@pytest.mark.parametrize(
    "layers",
    [
        [{"name": "stem:none", "shape": [8, 16, 17], "scale": 1.0}],
        [{"name": "stem:none", "shape": [16, 16, 8], "scale": 1.0}],
        [{"name": "body.0:none", "shape": [12, 8, 8], "scale": 1.0}],
    ],
)
def test_a_cut_of_another_layer_or_shape_is_told(tmp_path: Path, layers: list[dict[str, Any]]) -> None:
    suffix().save(tmp_path / "a.fch")
    rewrite(tmp_path / "a.fch", layers=layers)
    with pytest.raises((BundleError, RecipeMismatchError), match=r"at the split point|reads vectors \(n, 2176\)"):
        Bundle.load(tmp_path / "a.fch").predict(image(), backbone=tiny_backbone())


def test_output_of_another_width_than_the_suffix(tmp_path: Path) -> None:
    suffix().save(tmp_path / "a.fch")
    rewrite(tmp_path / "a.fch", {"weight": np.zeros((3, 15), np.float32)})
    with pytest.raises(BundleError, match="15"):
        Bundle.load(tmp_path / "a.fch").predict(image(), backbone=tiny_backbone())


def test_a_backbone_that_is_another(tmp_path: Path) -> None:
    for kind, maker in MAKERS.items():
        maker().save(tmp_path / f"{kind}.fch")
        with pytest.raises(RecipeMismatchError, match="backbone"):
            Bundle.load(tmp_path / f"{kind}.fch").predict(image(), backbone=tiny_backbone(2))


def test_one_flipped_bit_of_a_network_is_noticed(tmp_path: Path) -> None:
    whole().save(tmp_path / "a.fch")
    weight = load_file(tmp_path / "a.fch")["network.stem.0.weight"].copy()
    weight.view(np.uint32)[0, 0, 0, 0] ^= 1
    rewrite(tmp_path / "a.fch", {"network.stem.0.weight": weight})
    with pytest.raises(RecipeMismatchError, match="weights"):
        Bundle.load(tmp_path / "a.fch").predict(image(), backbone=tiny_backbone())


def test_own_weights_leave_the_backbone_as_it_is() -> None:
    backbone = tiny_backbone()
    before = backbone.recipe
    made = with_weights(backbone, state(1))
    x = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    layers = made.resolve_layers(["stem:mean", "pooled"])
    got, expected = made.forward(x, layers), tiny_backbone(1).forward(x, layers)
    assert all(np.array_equal(got[name], expected[name]) for name in expected)
    assert made.recipe.weights == digest_of(tiny_backbone(1).module) != before.weights
    assert (made.recipe.backbone, made.recipe.pixels) == (before.backbone, before.pixels)
    assert backbone.recipe == before
    assert digest_of(backbone.module) == before.weights
    assert not any(parameter.requires_grad for parameter in made.module.parameters())
    lacking = with_weights(backbone, {name: t for name, t in state(1).items() if name != "stem.0.bias"})
    with pytest.raises(WeightsError, match=r"1 missing \(stem\.0\.bias\)"):
        lacking.load()


def test_a_suffix_packs_and_unpacks() -> None:
    predictor = suffix().predictor
    assert isinstance(predictor, PartialModel)
    arrays, values = pack(predictor)
    back = unpack(arrays | {"trained_on": np.zeros((0, 32), np.uint8)}, values, CLASSES, SHAPE, predictor.recipe)
    assert (back.layer, back.shape, back.classes, back.link) == ("body", SHAPE, CLASSES, "softmax")
    assert {n: t.tobytes() for n, t in back.tensors.items()} == {n: t.tobytes() for n, t in predictor.tensors.items()}
    X = np.random.default_rng(0).normal(size=(70, 8 * 16 * 16)).astype(np.float32)
    np.testing.assert_allclose(predictor.scores(X)[33:35], predictor.scores(X[33:35]), rtol=1e-5, atol=1e-5)
    assert predictor.scores(X[:0]).shape == (0, 3)
    np.testing.assert_allclose(predictor.with_temperature(2.0).scores(X), predictor.scores(X) / 2, rtol=1e-4, atol=1e-4)
    assert predictor.predict(X).tolist() == np.array(CLASSES)[predictor.probabilities(X).argmax(1)].tolist()
    with torch.inference_mode():
        module = tiny_backbone(1).module
        by_hand = module.pool(module.body(torch.from_numpy(X).reshape(-1, *SHAPE)))
    np.testing.assert_allclose(
        predictor.scores(X), by_hand.numpy() @ output().weight.T + output().bias, rtol=1e-4, atol=1e-4
    )
