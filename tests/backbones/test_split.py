"""A network split in two: the tail gives from stored activations what the whole network gives from images."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import load, save
from torch import Tensor, nn

import featcache as fc
from featcache.backbones import Backbone, get, tiny_backbone
from featcache.backbones.activations import Axes
from featcache.backbones.families import timm as timm_family
from featcache.backbones.families import torchvision as torchvision_family
from featcache.backbones.network import Network
from featcache.backbones.split import SplitNetwork, split_network, split_points
from featcache.core.errors import UnknownNameError, UsageError
from featcache.core.recipe import PixelPath, StandardTransform
from tests.backbones.making import randomised, relative

EXACT, HALF = 1e-5, 2e-3
"""Largest ‖a - b‖/‖b‖ of an image's vector where the stored map is float32, and where it is float16."""


def of(module: nn.Module, size: int = 64, axes: str | None = "NCHW") -> Network:
    transform = StandardTransform((size,), (size, size), "bilinear", (0.5,) * 3, (0.5,) * 3)
    return Network(module, "", PixelPath(transform), Axes(axes))


def network(name: str, size: int = 64, **options: Any) -> Network:
    """A network with random weights and, mostly, small images."""
    family, _, arch = name.partition(":")
    if family == "timm":
        module = timm.create_model(arch, pretrained=False, **options)
        module.reset_classifier(0)
        axes = timm_family.axes_of(module)
    else:
        module = torchvision_family.without_classifier(torchvision.models.get_model(arch, weights=None, **options))
        axes = torchvision_family.axes_of(arch)
    made = of(randomised(module), size)
    made.axes = axes
    return made


def vision_transformer() -> Network:
    module = torchvision.models.VisionTransformer(32, 8, 3, 2, 16, 32, dropout=0.1)
    made = of(randomised(torchvision_family.without_classifier(module)), 32)
    made.axes = torchvision_family.axes_of("vit_b_16")
    return made


def random_images(net: Network, count: int = 3) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, *net.size, 3), dtype=np.uint8)


def both(net: Network, made: SplitNetwork, count: int = 3) -> tuple[Tensor, np.ndarray]:
    """The stored activations and ``pooled`` of the same images."""
    backbone = Backbone("module:net", lambda: net)
    got = backbone.forward(random_images(net, count), backbone.resolve_layers([made.cached, "pooled"]))
    assert got[made.cached].shape == (count, *made.shape)
    return torch.from_numpy(got[made.cached].copy()), got["pooled"]


def check(net: Network, made: SplitNetwork) -> None:
    x, expected = both(net, made)
    with torch.inference_mode():
        assert relative(made.tail(x).numpy(), expected) <= EXACT
        assert relative(made.tail(x.half().float()).numpy(), expected) <= HALF
        # One image alone, and more than there were when it was made.
        assert relative(made.tail(x[:1]).numpy(), expected[:1]) <= EXACT
        assert made.tail(torch.cat([x, x])).shape == (6, expected.shape[1])
    in_stages = [parameter for _, stage in made.stages for parameter in stage.parameters()]
    assert len(in_stages) == len(set(in_stages))
    assert set(in_stages) == set(made.tail.parameters())
    assert all(parameter.requires_grad for parameter in in_stages)
    assert not set(in_stages) & set(net.module.parameters())
    assert set(made.tail.state_dict()) <= set(net.module.state_dict())


# Name, options, size of the image, layer, what is stored, its shape, stages.
NETWORKS: list[tuple[str, dict[str, Any], int, str, str, tuple[int, ...], int]] = [
    ("torchvision:resnet18", {}, 64, "layer3.1", "layer3.0:none", (256, 4, 4), 3),
    ("torchvision:resnet50", {}, 64, "layer4", "layer3:none", (1024, 4, 4), 3),
    ("torchvision:mobilenet_v2", {}, 64, "features.10", "features.9:none", (64, 4, 4), 9),
    ("torchvision:efficientnet_b0", {}, 64, "features.6.2", "features.6.1:none", (192, 2, 2), 4),
    ("torchvision:convnext_tiny", {}, 64, "features.5", "features.4:none", (384, 4, 4), 13),
    ("torchvision:regnet_y_400mf", {}, 64, "trunk_output.block4", "trunk_output.block3:none", (208, 4, 4), 6),
    ("torchvision:densenet121", {}, 64, "features.denseblock3", "features.transition2:none", (256, 4, 4), 3),
    ("torchvision:swin_t", {}, 64, "features.5.3", "features.5.2:none", (4, 4, 384), 6),
    ("torchvision:shufflenet_v2_x0_5", {}, 64, "stage4", "stage3:none", (96, 4, 4), 5),
    ("torchvision:alexnet", {}, 64, "classifier.4", "classifier.2:mean", (4096,), 1),
    ("timm:resnet10t", {}, 64, "layer3", "layer2:none", (128, 8, 8), 2),
    ("timm:mobilenetv3_small_050", {}, 64, "conv_head", "global_pool:none", (288, 1, 1), 1),
    ("timm:tf_efficientnet_lite0", {}, 64, "blocks.5", "blocks.4:none", (112, 4, 4), 6),
    ("timm:vit_tiny_patch16_224", {"img_size": 64, "depth": 4}, 64, "blocks.2", "blocks.1:none", (17, 192), 2),
    ("timm:deit_tiny_patch16_224", {"img_size": 64, "depth": 3}, 64, "blocks", "norm_pre:none", (17, 192), 3),
    ("timm:beit_base_patch16_224", {"img_size": 32, "depth": 2, "embed_dim": 48, "num_heads": 4}, 32, "blocks.1",
     "blocks.0:none", (5, 48), 1),
    ("timm:eva02_tiny_patch14_224", {"img_size": 56, "depth": 3}, 56, "blocks.1", "blocks.0:none", (17, 192), 2),
    ("timm:convnext_atto", {}, 64, "stages.2.blocks.3", "stages.2.blocks.2:none", (160, 4, 4), 4),
    ("timm:convnext_femto", {}, 64, "stages.3", "stages.2:none", (192, 4, 4), 1),
    ("timm:swin_tiny_patch4_window7_224", {"img_size": 64, "window_size": 2, "embed_dim": 24}, 64, "layers.2.blocks.3",
     "layers.2.blocks.2:none", (4, 4, 96), 4),
    ("timm:densenet121", {}, 64, "features.transition3.conv", "features.transition3.norm:none", (1024, 4, 4), 2),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "size", "layer", "cached", "shape", "stages"), NETWORKS, ids=[n[0] for n in NETWORKS]
)
def test_the_tail_gives_the_pooled_vector(
    name: str, options: dict[str, Any], size: int, layer: str, cached: str, shape: tuple[int, ...], stages: int
) -> None:
    net = network(name, size, **options)
    made = split_network(net, layer)
    assert (made.layer, made.cached, made.shape, len(made.stages)) == (layer, cached, shape, stages)
    assert made.stages[0][0].startswith(layer)
    check(net, made)


@pytest.mark.parametrize(
    ("make", "layer", "cached"),
    [
        (vision_transformer, "encoder.layers.encoder_layer_0", "encoder.dropout:none"),
        (vision_transformer, "encoder.layers.encoder_layer_2", "encoder.layers.encoder_layer_1:none"),
        (lambda: tiny_backbone().network, "body.1", "body.0:none"),
        (lambda: tiny_backbone().network, "body", "stem:none"),
        (lambda: get("bundled:efficientnet_lite0").network, "blocks.6", "blocks.5:none"),
    ],
)
def test_other_families(make: Callable[[], Network], layer: str, cached: str) -> None:
    net = make()
    made = split_network(net, layer)
    assert made.cached == cached
    check(net, made)


@pytest.mark.slow
def test_every_split_point_of_a_network() -> None:
    net = network("torchvision:mobilenet_v3_small")
    listed = split_points(net)
    assert listed == [*(f"features.{i}" for i in range(1, 13)), "classifier"]
    counts = []
    for layer in listed:
        made = split_network(net, layer)
        check(net, made)
        counts.append(sum(parameter.numel() for parameter in made.tail.parameters()))
    assert counts == sorted(set(counts), reverse=True)
    last = split_network(net, "classifier")
    assert (last.cached, [name for name, _ in last.stages]) == ("avgpool:none", ["classifier.0"])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("timm:resnet10t", ["conv1.3", "conv1.6", "layer1", "layer2", "layer3", "layer4"]),
        ("timm:convnext_atto", ["stages", "stages.1", "stages.2", "stages.3"]),
    ],
)
def test_split_points_are_in_network_order_and_listed_once(name: str, expected: list[str]) -> None:
    assert split_points(network(name)) == expected


def test_training_changes_only_the_tail() -> None:
    net = network("torchvision:resnet18")
    before = copy.deepcopy(net.module.state_dict())
    made = split_network(net, "layer4")
    x, vectors = both(net, made)
    own = copy.deepcopy(made.tail.state_dict())
    made.tail.train()
    assert not any(module.training for module in net.module.modules())
    made.tail(x).square().mean().backward()
    torch.optim.SGD(made.tail.parameters(), 0.1).step()
    for key, value in made.tail.state_dict().items():
        assert not torch.equal(value, own[key]), key
    for key, value in net.module.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert all(p.grad is None and not p.requires_grad for p in net.module.parameters())
    np.testing.assert_array_equal(both(net, made)[1], vectors)
    # The trained tail is another function, and the next split starts from the frozen weights again.
    made.tail.eval()
    with torch.inference_mode():
        assert relative(made.tail(x).numpy(), vectors) > 1e-2
        assert relative(split_network(net, "layer4").tail(x).numpy(), vectors) <= EXACT


def test_training_mode_is_that_of_torchs_own_modules() -> None:
    """Batch normalization, stochastic depth and dropout, against the network's own modules one after the other."""
    net = network("torchvision:efficientnet_b0")
    parts = copy.deepcopy(net.module)
    plain = nn.Sequential(*parts.features[6:], parts.avgpool, nn.Flatten(), parts.classifier)
    made = split_network(net, "features.6")
    x, _ = both(net, made, count=8)
    random = []
    for _ in range(2):
        got = []
        for module in (made.tail, plain):
            module.train()
            torch.manual_seed(len(random))
            got.append(module(x).detach())
        torch.testing.assert_close(got[0], got[1], rtol=1e-5, atol=1e-6)
        random.append(got[0])
    assert not torch.allclose(random[0], random[1])
    mine, before = made.tail.state_dict(), net.module.state_dict()
    assert len(mine) == len(plain.state_dict())
    for name, value in plain.state_dict().items():
        number, _, rest = name.partition(".")
        own = f"features.{int(number) + 6}.{rest}"
        torch.testing.assert_close(mine[own], value, rtol=1e-4, atol=1e-6)
        assert torch.equal(mine[own], before[own]) == ("running" not in name and "tracked" not in name)


class Plain(nn.Module):
    """What beginners write: functions in ``forward``, and the batch's size asked for there."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3, 2), nn.Conv2d(8, 8, 3, 2)
        self.fc1, self.fc2 = nn.Linear(8 * 7 * 7, 32), nn.Linear(32, 16)
        self.scale = nn.Parameter(torch.ones(16))

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[0]
        x = F.relu(self.conv1(x))
        x = F.relu(self.conv2(x), inplace=True)
        x = x.reshape(n, -1)
        x = F.dropout(F.relu(self.fc1(x)), 0.5, self.training)
        return self.fc2(x) * self.scale.exp()


@pytest.mark.parametrize(("layer", "cached"), [("conv2", "conv1:none"), ("fc1", "conv2:none"), ("fc2", "fc1:mean")])
def test_functions_in_forward(layer: str, cached: str) -> None:
    net = of(randomised(Plain()), 32)
    made = split_network(net, layer)
    assert made.cached == cached
    check_plain(net, made)
    assert split_points(net) == ["conv2", "fc1", "fc2"]
    x, _ = both(net, made)
    kept = x.clone()
    whole = copy.deepcopy(net.module).train()
    made.tail.train()
    torch.manual_seed(0)
    expected = whole(net.to_input(random_images(net)))
    torch.manual_seed(0)
    torch.testing.assert_close(made.tail(x), expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(made.tail(x), made.tail(x))
    made.tail.eval()
    assert torch.equal(made.tail(x), made.tail(x))
    # Its ReLU works in place, but not on what belongs to the caller.
    assert torch.equal(x, kept)


def check_plain(net: Network, made: SplitNetwork) -> None:
    check(net, made)
    names = [name for name, _ in made.tail.named_parameters()]
    assert "scale" in names
    assert made.stages[-1][0] == "fc2"


def test_two_splits_have_the_same_names_and_take_each_others_weights() -> None:
    one, other = network("timm:convnext_atto"), network("timm:convnext_atto")
    randomised(other.module, seed=5)
    first, second = split_network(one, "stages.3"), split_network(other, "stages.3")
    assert list(first.tail.state_dict()) == list(second.tail.state_dict())
    assert [name for name, _ in first.stages] == [name for name, _ in second.stages]
    x, vectors = both(one, first)
    with torch.inference_mode():
        assert relative(second.tail(x).numpy(), vectors) > 1e-2
        # Through a file that holds tensors alone.
        second.tail.load_state_dict(load(save(first.tail.state_dict())), strict=True)
        assert relative(second.tail(x).numpy(), vectors) <= EXACT


def test_a_copy_of_a_tail_is_a_tail() -> None:
    net = network("torchvision:mobilenet_v3_small")
    made = split_network(net, "features.9")
    x, vectors = both(net, made)
    with torch.inference_mode():
        assert relative(copy.deepcopy(made.tail)(x).numpy(), vectors) <= EXACT


def test_stored_activations_are_those_of_extraction(tmp_path: Path, photos: Path) -> None:
    backbone = tiny_backbone()
    made = split_network(backbone.network, "body.1")
    fc.extract(photos, tmp_path / "s.fcache", backbone=backbone, layers=[made.cached, "pooled"], progress=False)
    store = fc.open(tmp_path / "s.fcache")
    stored, _, _ = store.arrays(layers=made.cached)
    vectors, _, _ = store.arrays(layers="pooled")
    with torch.inference_mode():
        got = made.tail(torch.from_numpy(np.asarray(stored, np.float32)).view(-1, *made.shape)).numpy()
    assert relative(got, vectors) <= HALF


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (
            "layer3.0.conv2",
            r"skip connection crosses .*'layer3.0.downsample'.*'layer3' before it and at 'layer3.1'",
        ),
        ("layer4.1.conv2", r"skip connection crosses .*'layer4.0'.* at 'layer4.1' before it\.$"),
        ("conv1", r"takes the image itself.* at 'layer1' after it\.$"),
        ("layer1.0.relu", r"'layer1.0.relu': it runs more than once.* at 'layer1' before it and at 'layer1.1'"),
        ("fc", r"neither it nor anything after it has weights\. It can be split at 'layer4.1' before"),
    ],
)
def test_where_it_cannot_be_split(layer: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        split_network(network("torchvision:resnet18"), layer)


def test_a_layer_that_does_not_exist() -> None:
    with pytest.raises(UnknownNameError, match=r"'layer31'.*Did you mean 'layer3"):
        split_network(network("torchvision:resnet18"), "layer31")


def test_a_network_without_vectors() -> None:
    net = of(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)))
    with pytest.raises(UsageError, match="has no 'pooled'"):
        split_network(net, "1")


def test_axes_that_are_not_declared() -> None:
    module = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), nn.Conv2d(4, 4, 3), nn.Flatten())
    with pytest.raises(UsageError, match="not declared which axis of '0'"):
        split_network(of(module, axes=None), "1")
    assert split_points(of(module, axes=None)) == []


class Pooling(nn.Module):
    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.parts = nn.Sequential(*parts)
        self.last = nn.Conv2d(4, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.parts(self.stem(x))).mean((2, 3))


class Branching(Pooling):
    def forward(self, x: Tensor) -> Tensor:
        x = self.parts(self.stem(x))
        return (self.last(x) if x.sum() > 0 else -self.last(x)).mean((2, 3))


class Choice(nn.Module):
    """A block in which Python decides on values; without looking inside it is a block like any other."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) if x.sum() > 0 else self.conv(-x)


def test_code_that_cannot_be_traced() -> None:
    net = of(Branching(nn.Conv2d(4, 4, 1)), 16)
    for act in (lambda: split_network(net, "last"), lambda: split_points(net)):
        with pytest.raises(UsageError, match=r"torch\.fx cannot trace the network's own code: symbolically"):
            act()
    net = of(randomised(Pooling(Choice(), Choice())), 16)
    assert split_points(net) == ["parts", "parts.1", "last"]
    check(net, split_network(net, "parts.1"))
    with pytest.raises(UsageError, match=r"cannot trace the code of 'parts.1'.* 'parts.1' before it and at 'last'"):
        split_network(net, "parts.1.conv")


class Louder(Pooling):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (2.0 if self.training else 1.0)


class Behind(Pooling):
    """Changes activations in place, behind the module that gave them."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x.add_(1.0)
        return self.last(self.parts(x)).mean((2, 3))


def test_code_that_computes_something_else_in_training() -> None:
    with pytest.raises(UsageError, match="In training mode the network's own code computes something else"):
        split_network(of(Louder(nn.Conv2d(4, 4, 1)), 16), "last")


def test_activations_changed_in_place_are_found() -> None:
    net = of(randomised(Behind(nn.Conv2d(4, 4, 1))), 16)
    with pytest.raises(UsageError, match="give other vectors than the whole network"):
        split_network(net, "parts")
    check(net, split_network(net, "last"))


class Sum(Pooling):
    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        return self.last(self.parts(y) + y).mean((2, 3))


def test_an_input_made_of_two_outputs() -> None:
    net = of(Sum(nn.Conv2d(4, 4, 1)), 16)
    with pytest.raises(UsageError, match=r"not the output of one module, but made of .*'parts' and .*'stem'"):
        split_network(net, "last")
    assert split_points(net) == ["parts"]
    made = split_network(net, "parts")
    check(net, made)
    assert [name for name, _ in made.stages] == ["parts.0", "last"]
