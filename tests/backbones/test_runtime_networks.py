"""Real architectures on OpenVINO, at every kind of layer; and a process that needs no torch for them."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import timm
import torchvision

import featcache as fc
from featcache.backbones import get
from featcache.backbones.runtimes import passes_for
from tests.backbones.making import batch, randomised, relative, saved

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATCACHE_CACHE", str(tmp_path / "cache"))


NETWORKS: dict[str, list[str]] = {
    "bundled:efficientnet_lite0": ["pooled", "blocks.2:mean_std", "blocks.4:none", "bn1:mean"],
    "timm:resnet18": ["pooled", "layer1:mean", "layer2.1.bn2:mean_std"],
    "timm:vit_tiny_patch16_224": ["pooled", "blocks.0:mean_std", "blocks.11:mean", "blocks.11:none"],
    "timm:convnextv2_atto": ["pooled", "stem:mean", "stages.3:mean_std"],
    "torchvision:mobilenet_v3_small": ["pooled", "features.0.1:mean_std", "features.12:mean"],
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_is_that_of_eager_torch(tmp_path: Path, name: str) -> None:
    family, _, inner = name.partition(":")
    weights = None
    if family != "bundled":
        plain = (
            timm.create_model(inner, pretrained=False)
            if family == "timm"
            else torchvision.models.get_model(inner, weights=None)
        )
        weights = saved(randomised(plain), tmp_path / "weights.pth")
    backbone = get(name, weights, runtime="openvino")
    layers = backbone.resolve_layers(NETWORKS[name])
    x = batch(backbone, 3)
    passes = passes_for(backbone, batch_size=2, cores=1)
    passes.ready(x, layers)
    assert (passes.runtime, passes.notes) == ("openvino", [])
    got, expected = passes.forward(x, layers), backbone.network.forward(x, layers)
    assert got.keys() == expected.keys() == set(NETWORKS[name])
    for layer in layers:
        assert got[layer.name].dtype == np.float32
        assert got[layer.name].shape == (3, *layer.shape)
        assert relative(got[layer.name], expected[layer.name]) <= 1e-4
    for n in (1, 2):  # a batch that is not full, and one that is
        for layer_name, part in passes.forward(x[:n], layers).items():
            np.testing.assert_array_equal(part, got[layer_name][:n])


def test_a_second_process_predicts_without_torch(photos: Path, tmp_path: Path) -> None:
    """The weights are bundled, so recipe, layers and graph are all known to a later process."""
    fc.extract(photos, tmp_path / "s.fcache", progress=False)
    fc.train(tmp_path / "s.fcache", head="ridge", progress=False).save(tmp_path / "s.fch")
    code = """
        import sys
        import featcache as fc
        (found,) = fc.Bundle.load(sys.argv[1]).predict([sys.argv[2]])
        assert found.labels[0][1] > 0.5, found
        loaded = {"torch", "timm", "torchvision"} & sys.modules.keys()
        assert "openvino" in sys.modules
        assert not loaded, loaded
        assert sys.modules.get("openvino_telemetry") is None
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "s.fch"), str(photos / "cats" / "cat-00.jpg")],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
