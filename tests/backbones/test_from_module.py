"""Backbones made in Python from any module, and the tiny one for tests."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from featcache.backbones import Backbone, for_recipe, tiny_backbone
from featcache.core.errors import RecipeMismatchError, UnusableImageError, UsageError
from featcache.core.recipe import CustomTransform, StandardTransform
from tests.backbones.making import batch, close, hooked, run

SMALL = StandardTransform((24,), (20, 20), "bilinear", (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))


def module(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )


def as_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image.resize((20, 20)), np.float32) / 255).permute(2, 0, 1)


def test_a_standard_transform() -> None:
    network = module()
    backbone = Backbone.from_module(network, transform=SMALL, name="mine", axes="NCHW")
    assert backbone.recipe.backbone == "module:mine"
    assert backbone.recipe.pixels.transform == SMALL
    images = batch(backbone)
    assert (images.shape, images.dtype) == ((2, 20, 20, 3), np.uint8)
    got = run(backbone, images, "pooled", "1:mean")
    x = (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - torch.tensor(SMALL.mean).view(3, 1, 1)) / torch.tensor(
        SMALL.std
    ).view(3, 1, 1)
    reference = hooked(network, ["1"], x)
    close(got["pooled"], reference[""])
    close(got["1:mean"], reference["1"].mean((2, 3)))
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())


def test_a_module_is_known_by_name_version_and_weights() -> None:
    def make(version: str | None, name: str = "mine", seed: int = 0) -> Backbone:
        return Backbone.from_module(module(seed), transform=SMALL, name=name, version=version)

    several = [make(None), make("1"), make("2"), make("1", "other"), make("1", seed=1)]
    assert len({backbone.recipe.fingerprint for backbone in several}) == 5
    assert make("1").recipe == several[1].recipe


def test_a_callable_is_known_by_name_and_version() -> None:
    def make(version: str, name: str = "mine", seed: int = 0) -> Backbone:
        return Backbone.from_module(module(seed), transform=as_tensor, name=name, version=version, input_size=(20, 20))

    backbone = make("1")
    assert backbone.recipe.pixels.transform == CustomTransform("mine", "1")
    image = Image.fromarray(np.arange(1200, dtype=np.uint8).reshape(20, 20, 3))
    prepared = backbone.prepare(image)
    assert (prepared.shape, prepared.dtype) == ((3, 20, 20), np.float32)
    with torch.no_grad():
        expected = backbone.module(as_tensor(image)[None]).numpy()
    close(run(backbone, prepared[None], "pooled")["pooled"], expected)
    fingerprints = [b.recipe.fingerprint for b in (backbone, make("2"), make("1", "other"), make("1", seed=1))]
    assert len(set(fingerprints)) == 4
    assert make("1").recipe == backbone.recipe


def test_a_callable_that_makes_no_image() -> None:
    backbone = Backbone.from_module(module(), transform=lambda _: torch.zeros(20, 20), name="flat", version="1")
    with pytest.raises(UnusableImageError, match=r"returned shape \(20, 20\), not \(3, height, width\)"):
        backbone.prepare(Image.new("RGB", (4, 4)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"transform": as_tensor, "name": "mine"}, "give version='1'"),
        ({"transform": as_tensor, "name": "", "version": "1"}, "one word without a colon"),
        ({"transform": SMALL, "name": "timm:mine"}, "one word without a colon"),
        ({"transform": SMALL, "name": "mine", "axes": "NCL"}, "'NCHW', 'NHWC' or 'NLC', not 'NCL'"),
    ],
)
def test_what_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Backbone.from_module(module(), **options)


def test_the_name_is_needed() -> None:
    with pytest.raises(TypeError, match="name"):
        Backbone.from_module(module(), transform=SMALL)  # type: ignore[call-arg]


def test_a_module_that_gives_no_vector_has_no_pooled() -> None:
    backbone = Backbone.from_module(module()[:3], transform=SMALL, name="maps", axes="NCHW")
    with pytest.raises(UsageError, match=r"has no 'pooled'.*returns \(1, 6, 18, 18\)"):
        backbone.resolve_layers(["pooled"])
    assert run(backbone, batch(backbone), "0:mean_std")["0:mean_std"].shape == (2, 12)


def test_a_module_is_not_found_by_its_recipe() -> None:
    with pytest.raises(RecipeMismatchError, match="from_module"):
        for_recipe(Backbone.from_module(module(), transform=SMALL, name="mine").recipe)


def test_tokens_with_a_prefix() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add = Prefix()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.add(x)[:, 0]

    class Prefix(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            patches = x[:, :, ::5, ::5].flatten(2).transpose(1, 2)
            return torch.cat([torch.full_like(patches[:, :2], 1000.0), patches], dim=1)

    backbone = Backbone.from_module(Tokens(), transform=SMALL, name="tokens", axes="NLC", prefix_tokens=2)
    images = batch(backbone)
    got = run(backbone, images, "add:mean", "add:none")
    assert got["add:none"].shape == (2, 18, 3)
    close(got["add:mean"], got["add:none"][:, 2:].astype(np.float64).mean(1))


@pytest.mark.slow
def test_the_tiny_backbone_is_the_same_in_every_process() -> None:
    code = (
        "import json, numpy as np; from featcache.backbones import tiny_backbone\n"
        "b = tiny_backbone(3, dim=5, size=16); x = np.arange(2*16*16*3).reshape(2, 16, 16, 3).astype(np.uint8)\n"
        "got = b.forward(x, b.resolve_layers(['pooled', 'body.*:mean']))\n"
        "print(json.dumps([b.recipe.fingerprint, {k: v.tolist() for k, v in got.items()}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    fingerprint, values = json.loads(done.stdout)
    backbone = tiny_backbone(3, dim=5, size=16)
    assert backbone.recipe.fingerprint == fingerprint
    x = np.arange(2 * 16 * 16 * 3).reshape(2, 16, 16, 3).astype(np.uint8)
    got = run(backbone, x, "pooled", "body.*:mean")
    assert got.keys() == values.keys() == {"pooled", "body.0:mean", "body.1:mean"}
    for name, value in got.items():
        np.testing.assert_allclose(value, values[name], rtol=1e-5, atol=1e-6)
    assert got["pooled"].shape == (2, 5)
    assert tiny_backbone(4, dim=5, size=16).recipe.fingerprint != fingerprint
