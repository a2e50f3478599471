"""A network given in Python that was trained on afterwards is another network, at every door that uses it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import featcache as fc
from featcache.backbones.runtimes import passes_for
from featcache.core.errors import RecipeMismatchError, WeightsError
from featcache.core.progress import Silent
from featcache.core.recipe import StandardTransform

TRANSFORM = StandardTransform((32,), (32, 32), "bilinear", (0.5,) * 3, (0.5,) * 3)


class Net(nn.Module):
    """Convolution, batch norm, mean; with *qr* OpenVINO steps aside, as it does for every GPU."""

    def __init__(self, *, qr: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.qr = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), qr

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.conv(x)).mean((2, 3))
        return y + 0 * torch.linalg.qr(y[:, :, None])[1][:, 0] if self.qr else y


def by_an_optimizer(net: Net) -> None:
    net.requires_grad_(True).train()
    step = torch.optim.SGD(net.parameters(), 0.5)
    net(torch.randn(4, 3, 32, 32)).square().sum().backward()
    step.step()


def in_place(net: Net) -> None:
    with torch.no_grad():
        net.conv.weight.add_(0.5)


def past_the_counters(net: Net) -> None:
    net.conv.weight.data.add_(0.5)


def through_numpy(net: Net) -> None:
    net.conv.bias.detach().numpy()[:] += 1


def a_buffer(net: Net) -> None:
    assert net.norm.running_mean is not None
    net.norm.running_mean += 1


def by_loading(net: Net) -> None:
    net.load_state_dict({name: tensor + 1 for name, tensor in net.state_dict().items()})


CHANGES = [by_an_optimizer, in_place, past_the_counters, through_numpy, a_buffer, by_loading]


def given(*, qr: bool) -> tuple[Net, fc.Backbone]:
    net = Net(qr=qr)
    return net, fc.Backbone.from_module(net, transform=TRANSFORM, name="mine")


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("qr", [True, False])
def test_another_recipe_and_no_old_vector(
    change: Callable[[Net], None], qr: bool, photos: Path, tmp_path: Path
) -> None:
    net, backbone = given(qr=qr)
    first = fc.extract(photos, tmp_path / "s.fcache", backbone=backbone, limit=4, progress=False)
    change(net)
    again = fc.extract(photos, tmp_path / "s.fcache", backbone=backbone, limit=4, progress=False)
    assert again.computed == 4
    assert again.space != first.space
    fresh = fc.Backbone.from_module(net, transform=TRANSFORM, name="mine")
    assert fresh.recipe == backbone.recipe
    items = fc.extract(photos, tmp_path / "new.fcache", backbone=fresh, limit=4, progress=False)
    assert items.space == again.space
    old = fc.open(tmp_path / "s.fcache").arrays(layers="pooled", space=again.space)[0]
    new = fc.open(tmp_path / "new.fcache").arrays(layers="pooled")[0]
    np.testing.assert_allclose(old, new, rtol=1e-4, atol=1e-5)


def test_an_unchanged_network_keeps_its_recipe(photos: Path, tmp_path: Path) -> None:
    _, backbone = given(qr=False)
    fc.extract(photos, tmp_path / "s.fcache", backbone=backbone, limit=4, progress=False)
    assert fc.extract(photos, tmp_path / "s.fcache", backbone=backbone, limit=4, progress=False).computed == 0


def test_a_run_digests_the_weights_at_its_beginning_and_its_end(photos: Path, tmp_path: Path) -> None:
    net, backbone = given(qr=False)
    fc.extract(photos, tmp_path / "s.fcache", backbone=backbone, limit=4, progress=False)
    read: list[str] = []
    net.register_state_dict_pre_hook(lambda _module, prefix, _keep: read.append(prefix))
    fc.extract(photos, tmp_path / "s.fcache", backbone=backbone, limit=8, progress=False)
    assert len(read) == 2


@pytest.mark.parametrize("qr", [True, False])
def test_training_it_while_it_computes_is_an_error(qr: bool, photos: Path, tmp_path: Path) -> None:
    net, backbone = given(qr=qr)

    class Trains(Silent):
        def advance(self, n: int = 1) -> None:
            in_place(net)

    with pytest.raises(WeightsError, match="while it computed"):
        fc.extract(photos, tmp_path / "s.fcache", backbone=backbone, limit=4, progress=Trains())


class Scaled(Net):
    """With a buffer that its state does not hold."""

    def __init__(self) -> None:
        super().__init__(qr=False)
        self.register_buffer("scale", torch.ones(1), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * self.scale


def test_a_buffer_that_is_not_persistent_counts_once_it_is_another(photos: Path, tmp_path: Path) -> None:
    net = Scaled()
    backbone = fc.Backbone.from_module(net, transform=TRANSFORM, name="mine")
    first = fc.extract(photos, tmp_path / "s.fcache", backbone=backbone, limit=4, progress=False)
    assert backbone.recipe.weights == given(qr=False)[1].recipe.weights
    net.scale *= 2.0
    again = fc.extract(photos, tmp_path / "s.fcache", backbone=backbone, limit=4, progress=False)
    assert again.space != first.space
    store = fc.open(tmp_path / "s.fcache")
    one, two = (store.arrays(layers="pooled", space=space)[0] for space in (first.space, again.space))
    np.testing.assert_allclose(2 * one, two, rtol=1e-4, atol=1e-5)
    net.scale /= 2
    assert backbone.recipe.fingerprint == first.space


def test_a_compiled_graph_is_that_of_the_weights() -> None:
    net, backbone = given(qr=False)
    layers, batch = backbone.resolve_layers(["pooled"]), np.zeros((2, 32, 32, 3), np.uint8)
    for change in (None, in_place, a_buffer):
        if change is not None:
            change(net)
        passes = passes_for(backbone, batch_size=2)
        passes.ready(batch, layers)
        expected = backbone.forward(batch, layers)["pooled"]
        np.testing.assert_allclose(passes.forward(batch, layers)["pooled"], expected, rtol=1e-4, atol=1e-5)


def test_the_copies_of_a_backbone_follow_it() -> None:
    net, backbone = given(qr=False)
    copies = [backbone.with_runtime(runtime="torch"), backbone.reference()]
    _ = [one.recipe for one in copies]
    in_place(net)
    assert {one.recipe.weights for one in copies} == {backbone.recipe.weights}


def test_the_embedder_and_heads(photos: Path, tmp_path: Path) -> None:
    net, backbone = given(qr=False)
    files = sorted(photos.rglob("*.jpg"))[:3]
    embedder = fc.CachedEmbedder(backbone, tmp_path / "e.fcache", progress=False)
    before = embedder.transform(files)
    fc.extract(photos, tmp_path / "s.fcache", backbone=backbone, progress=False)
    head: Any = fc.train(tmp_path / "s.fcache", head="ridge", progress=False)
    in_place(net)
    assert not np.allclose(before, embedder.transform(files))
    with pytest.raises(RecipeMismatchError, match="weights"):
        head.predict(files, backbone=backbone, progress=False)


def test_training_a_converted_module_leaves_the_backbone(photos: Path, tmp_path: Path) -> None:
    _, backbone = given(qr=False)
    fc.extract(photos, tmp_path / "s.fcache", backbone=backbone, progress=False)
    module = fc.train(tmp_path / "s.fcache", head="ridge", progress=False).to_torch(backbone=backbone)
    before = backbone.recipe
    with torch.no_grad():
        next(module.backbone.parameters()).add_(1)  # type: ignore[union-attr]
    assert backbone.recipe == before
