"""Activations equal those of a plain network with a plain forward hook, pooled in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import nn

from featcache.backbones import Backbone, get
from featcache.backbones.activations import Axes
from featcache.core.errors import UsageError
from tests.backbones.making import batch, close, hooked, randomised, run, saved

# Full name, its classifier, the modules to look at, where the channel is, prefix tokens.
NETWORKS = [
    ("timm:resnet18", "fc", ["bn1", "layer1", "layer2.1.bn2", "layer4"], 1, 0),
    ("timm:vit_tiny_patch16_224", "head", ["blocks.0", "blocks.11", "norm"], 2, 1),
    ("timm:convnext_atto", "head.fc", ["stem", "stages.0", "stages.3"], 1, 0),
    ("timm:swin_tiny_patch4_window7_224", "head.fc", ["patch_embed", "layers.0", "layers.3.blocks.1"], 3, 0),
    ("torchvision:resnet18", "fc", ["conv1", "bn1", "layer1.0", "layer3"], 1, 0),
    ("torchvision:mobilenet_v3_small", "classifier.3", ["features.0.1", "features.4", "features.12"], 1, 0),
]


def plain(name: str) -> nn.Module:
    family, _, inner = name.partition(":")
    if family == "timm":
        return timm.create_model(inner, pretrained=False)
    return torchvision.models.get_model(inner, weights=None)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "classifier", "paths", "channel", "prefix"), NETWORKS, ids=[n[0] for n in NETWORKS])
def test_pooled_and_pooled_layers(
    tmp_path: Path, name: str, classifier: str, paths: list[str], channel: int, prefix: int
) -> None:
    module = randomised(plain(name))
    backbone = get(name, saved(module, tmp_path / "weights.pth"))
    images = batch(backbone)
    poolings = ("mean", "mean_std", "none")
    layers = [f"{path}:{pooling}" for path in paths for pooling in poolings]
    got = run(backbone, images, "pooled", *layers)

    parent, _, last = classifier.rpartition(".")
    setattr(module.get_submodule(parent), last, nn.Identity())
    reference = hooked(module, paths, backbone.network.to_input(images))
    close(got["pooled"], reference[""])
    for path in paths:
        whole = reference[path]
        close(got[f"{path}:none"], whole)
        flat = np.moveaxis(whole, channel, -1).reshape(len(whole), -1, whole.shape[channel])[:, prefix:]
        close(got[f"{path}:mean"], flat.mean(1))
        close(got[f"{path}:mean_std"], np.concatenate([flat.mean(1), flat.std(1)], axis=1))

    for layer in backbone.resolve_layers(["pooled", *layers]):
        assert layer.shape == got[layer.name].shape[1:]
    for layer in backbone.resolve_layers(["pooled", layers[0], layers[-2]]):
        np.testing.assert_array_equal(backbone.forward(images, [layer])[layer.name], got[layer.name])
    infos = {info.name: info for info in backbone.layers()}
    assert infos["pooled"].shape == got["pooled"].shape[1:]
    assert list(infos)[-1] == "pooled"
    for path in set(paths) & infos.keys():
        assert infos[path].shape == reference[path].shape[1:]
        assert infos[path].mean_bytes == 4 * reference[path].shape[channel]
        assert infos[path].none_bytes == 2 * reference[path][0].size


def test_tokens_without_the_prefix_are_not_pooled_as_if_they_had_it(tmp_path: Path) -> None:
    """The patches of a vision transformer have no class token yet: the first patch must not be left out."""
    module = randomised(plain("timm:vit_tiny_patch16_224"))
    backbone = get("timm:vit_tiny_patch16_224", saved(module, tmp_path / "weights.pth"))
    assert {info.name: info.axes for info in backbone.layers()}["patch_embed"] == "?"
    with pytest.raises(UsageError, match="patch_embed"):
        backbone.resolve_layers(["patch_embed:mean"])


@pytest.mark.parametrize(
    ("declared", "shape", "found"),
    [
        ("NCHW", (2, 96, 56, 56), "NCHW"), ("NCHW", (2, 56, 56, 96), "?"), ("NHWC", (2, 56, 56, 96), "NHWC"),
        ("NHWC", (2, 96, 56, 56), "?"), (None, (2, 96, 56, 56), "?"), ("NCHW", (2, 49, 96), "?"),
        ("NCHW", (2, 96), "NC"), ("NCHW", (2, 3, 4, 5, 5), "?"),
    ],
)  # fmt: skip
def test_axes_that_the_shape_contradicts_are_not_known(
    declared: str | None, shape: tuple[int, ...], found: str
) -> None:
    assert Axes(declared).of(nn.Identity(), torch.zeros(shape)) == found


def test_a_network_without_a_penultimate_vector(tmp_path: Path) -> None:
    """The classifier of SqueezeNet is a convolution: its output is not taken for an embedding."""
    module = randomised(plain("torchvision:squeezenet1_1"))
    backbone = get("torchvision:squeezenet1_1", saved(module, tmp_path / "weights.pth"))
    with pytest.raises(UsageError, match="has no 'pooled'"):
        backbone.resolve_layers(["pooled"])
    assert "pooled" not in [info.name for info in backbone.layers()]
    images = batch(backbone)
    expected = hooked(module, ["features.12"], backbone.network.to_input(images))["features.12"]
    close(run(backbone, images, "features.12:mean")["features.12:mean"], expected.mean((2, 3)))


@pytest.mark.parametrize("name", ["timm:resnet18", "torchvision:resnet18"])
def test_the_network_stays_frozen_whatever_the_caller_does(tmp_path: Path, name: str) -> None:
    backbone = get(name, saved(randomised(plain(name)), tmp_path / "weights.pth"))
    images = batch(backbone, 3)
    before = {key: value.clone() for key, value in backbone.module.state_dict().items()}
    first = run(backbone, images, "pooled")["pooled"]
    backbone.module.train()
    np.testing.assert_array_equal(run(backbone, images, "pooled")["pooled"], first)
    after = backbone.module.state_dict()
    assert any(key.endswith("running_mean") for key in after)
    for key, value in before.items():
        assert torch.equal(value, after[key])
    assert not any(p.requires_grad for p in backbone.module.parameters())


def test_a_batch_gives_what_its_images_give_alone(tmp_path: Path) -> None:
    backbone = get("torchvision:resnet18", saved(randomised(plain("torchvision:resnet18")), tmp_path / "w.pth"))
    images = batch(backbone, 3)
    together = run(backbone, images, "pooled")["pooled"]
    for image, expected in zip(images, together, strict=True):
        close(run(backbone, image[None], "pooled")["pooled"][0], expected)


class Twice(nn.Module):
    """Runs one module twice, one never, and one that gives a pair."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.never = nn.Conv2d(3, 3, 1)
        self.pair = Pair()
        self.turn = Turn()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second = self.pair(self.conv(self.conv(x)))
        return self.turn(first + second).mean((1, 2))


class Pair(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, x * 2


class Turn(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.permute(0, 2, 3, 1)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("conv:mean", "'conv' runs more than once"),
        ("never:mean", "'never' does not run"),
        ("pair:mean", "'pair' returns tuple, not a tensor"),
        ("turn:mean", "not declared which axis of 'turn'"),
        ("turn:mean_std", "not declared which axis of 'turn'"),
    ],
)
def test_layers_that_cannot_be_had(layer: str, message: str) -> None:
    def make(_image: Any) -> torch.Tensor:
        return torch.zeros(3, 8, 6)

    backbone = Backbone.from_module(Twice(), transform=make, name="twice", version="1", input_size=(8, 6))
    with pytest.raises(UsageError, match=message):
        backbone.resolve_layers([layer])
    assert [(info.name, info.axes) for info in backbone.layers()] == [("turn", "?"), ("pooled", "C")]
