"""Other sizes of a network's input, and whole images: the vectors are those that PIL and torch give."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from operator import attrgetter
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import nn

from featcache.backbones import Backbone, for_recipe, get, tiny_backbone
from featcache.backbones.recipe_cache import cache_folder
from featcache.backbones.registry import with_weights
from featcache.backbones.runtimes import passes_for
from featcache.backbones.split import split_network
from featcache.core.errors import RecipeMismatchError, UnknownNameError, UsageError
from featcache.core.recipe import PixelPath, StandardTransform
from featcache.extraction.embed import backbone_for, embed
from featcache.images.decode import SCALED
from tests.backbones.making import batch, randomised, relative, run, textile

LITE0 = "bundled:efficientnet_lite0"
PUBLISHED = "ef014ea5bc3c6296d5c221a51315aef298a074a52901d70d7b732145e771c2e4"
"""The fingerprint of its published recipe, which stores have."""


def at_hand(name: str) -> nn.Module:
    """Weights of a network of timm where one puts them by hand; returns the network."""
    module = randomised(timm.create_model(name))
    path = cache_folder() / "weights" / f"timm_{name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(module.state_dict(), path)
    return module


def lite0(side: int) -> nn.Module:
    return get(LITE0).module


def resnet(side: int) -> nn.Module:
    module = at_hand("test_resnet")
    module.reset_classifier(0)  # type: ignore[operator]  # a method of timm's
    return module.eval()


def vit(side: int) -> nn.Module:
    """As timm makes it for a size of images, from weights for another."""
    weights = at_hand("test_vit").state_dict()
    module = timm.create_model("test_vit", img_size=side)
    module.load_state_dict(checkpoint_filter_fn(weights, module))
    module.reset_classifier(0)
    return module.eval()


NETWORKS: dict[str, tuple[Callable[[int], nn.Module], int, int]] = {
    LITE0: (lite0, 256, 224),
    "timm:test_resnet": (resnet, 168, 160),
    "timm:test_vit": (vit, 168, 160),
}
"""By name: what makes it for a size, and the published resize and crop."""


def reference(
    module: nn.Module, paths: list[Path], transform: StandardTransform, side: int, share: float
) -> np.ndarray:
    """Vectors (n, d) by PIL and torch alone; *share* is 0 for whole images."""
    inputs = []
    how = Image.Resampling[transform.interpolation.upper()]
    for path in paths:
        image = Image.open(path).convert("RGB")
        if not share:
            image = image.resize((side, side), how)
        else:
            shorter = round(side * share)
            size = [int(shorter * length / min(image.size)) for length in image.size]
            image = image.resize((size[0], size[1]), how)
            left, top = (round((length - side) / 2) for length in size)
            image = image.crop((left, top, left + side, top + side))
        x = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
        inputs.append((x - torch.tensor(transform.mean)[:, None, None]) / torch.tensor(transform.std)[:, None, None])
    with torch.no_grad():
        return module(torch.stack(inputs)).numpy()  # type: ignore[no-any-return]  # what a module returns has no type


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("side", "fit"), [(288, "whole"), (192, "crop"), (288, "crop"), (None, "whole")])
def test_the_vectors_are_those_of_pil_and_torch_at_that_size(name: str, side: int | None, fit: str) -> None:
    make, resize, published = NETWORKS[name]
    module = make(side or published)  # puts the weights where they are found
    network = get(name, runtime="torch").with_input(side, fit)
    transform = network.recipe.pixels.transform
    assert isinstance(transform, StandardTransform)
    paths = textile(3)
    expected = reference(module, paths, transform, side or published, resize / published if fit == "crop" else 0)
    for one, within in ((network.reference(), 1e-4), (network, 2e-2)):
        vectors = np.stack([found.vector for found in embed(paths, one, ["pooled"]) if found.vector is not None])
        assert relative(vectors, expected) <= within


@pytest.mark.parametrize("name", NETWORKS)
def test_openvino_agrees_at_another_size(name: str) -> None:
    NETWORKS[name][0](192)
    network = get(name, runtime="openvino").with_input(192)
    layers = network.resolve_layers(["pooled"])
    passes, images = passes_for(network, batch_size=2), batch(network)
    passes.ready(images, layers)
    assert passes.runtime == "openvino"
    assert relative(passes.forward(images, layers)["pooled"], network.forward(images, layers)["pooled"]) <= 1e-4


def test_published_recipes_are_what_they_were() -> None:
    network = get(LITE0)
    assert network.recipe.fingerprint == PUBLISHED
    assert network.with_input() is network
    assert network.with_input(fit="crop") is network
    assert network.with_input(224, "crop") is network
    assert network.with_input(288).with_input(224, "crop").recipe == network.recipe


def test_a_size_is_a_recipe_of_its_own_and_is_found_by_it() -> None:
    network = get(LITE0)
    sizes = [network.with_input(288), network.with_input(288, "crop"), network.with_input(fit="whole")]
    assert [one.recipe.pixels.transform.size_words for one in sizes] == [  # type: ignore[union-attr]  # no callable
        "whole 288 × 288", "crop 288 × 288", "whole 224 × 224",
    ]  # fmt: skip
    assert sizes[1].recipe.pixels.transform.resize == (329,)  # type: ignore[union-attr]  # 288/0.875, as in timm
    assert len({network.recipe.fingerprint, *(one.recipe.fingerprint for one in sizes)}) == 4
    for one in sizes:
        assert for_recipe(one.recipe).recipe == one.recipe
        assert {one.recipe.weights, one.recipe.backbone} == {network.recipe.weights, LITE0}
        assert [name for name, _, _ in one.recipe.differences(network.recipe) if "transform" not in name] == []
        assert one.with_runtime(runtime="torch").recipe == one.recipe


def test_the_network_in_memory_is_shared() -> None:
    network = tiny_backbone()
    sized = network.with_input(48)
    assert sized.module is network.module
    assert sized.resolve_layers(["body.0:none"])[0].shape == (12, 12, 12)
    assert network.resolve_layers(["body.0:none"])[0].shape == (12, 8, 8)
    assert split_network(sized.network, "body.1").shape == (12, 12, 12)


def test_the_cache_knows_a_size_without_the_network() -> None:
    first = get(LITE0).with_input(320)
    layers = first.resolve_layers(["pooled", "blocks.5:none"])
    later = get(LITE0).with_input(320)
    assert later.resolve_layers(["pooled", "blocks.5:none"]) == layers
    assert later.recipe == first.recipe
    assert later._network is None
    assert get(LITE0).resolve_layers(["blocks.5:none"])[0].shape == (192, 7, 7)


def test_scaled_photographs_are_decoded_for_the_larger_input(tmp_path: Path) -> None:
    Image.new("RGB", (400, 400)).save(tmp_path / "a.jpg")
    data = (tmp_path / "a.jpg").read_bytes()
    network = tiny_backbone().scaled()
    assert network.decode(data).image.size == (100, 100)
    assert network.with_input(64).decode(data).image.size == (200, 200)
    assert network.with_input(64).recipe.pixels.scaled == SCALED
    assert network.with_input(64).recipe == tiny_backbone().with_input(64).scaled().recipe


def test_pickled_to_another_process() -> None:
    made = get(LITE0).with_input(288).scaled()
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        assert pool.submit(attrgetter("recipe.fingerprint"), made).result() == made.recipe.fingerprint


def test_a_given_backbone_follows_the_size_of_a_recipe_but_not_its_mean() -> None:
    network = tiny_backbone()
    recipe = network.with_input(48).recipe
    assert backbone_for(recipe, network).recipe == recipe
    other = replace(recipe.pixels.transform, mean=(0.1, 0.1, 0.1))
    with pytest.raises(RecipeMismatchError, match=r"pixels\.transform\.mean"):
        backbone_for(replace(recipe, pixels=PixelPath(other)), network)


def test_tables_of_positions_are_interpolated_once_and_the_weights_stay_those_given() -> None:
    at_hand("test_vit")
    network = get("timm:test_vit")
    sized = network.with_input(224)
    assert sized.recipe.weights == network.recipe.weights
    assert run(sized, batch(sized), "blocks.0:none")["blocks.0:none"].shape[1] == 14 * 14 + 1
    assert run(network, batch(network), "blocks.0:none")["blocks.0:none"].shape[1] == 10 * 10 + 1


def test_weights_trained_at_a_size_are_those_of_that_size() -> None:
    at_hand("test_vit")
    sized = get("timm:test_vit").with_input(224)
    state = {name: tensor.numpy() for name, tensor in sized.module.state_dict().items()}
    trained = with_weights(get("timm:test_vit"), state, sized.recipe.pixels)
    images = batch(sized)
    np.testing.assert_array_equal(run(trained, images, "pooled")["pooled"], run(sized, images, "pooled")["pooled"])
    assert trained.recipe.pixels == sized.recipe.pixels
    assert trained.recipe.weights == trained.network.digest_now() != sized.recipe.weights


def test_a_module_that_is_trained_on_after_its_tables_were_interpolated_keeps_what_it_was() -> None:
    """Its vectors must be those that its recipe says."""
    module = randomised(timm.create_model("test_vit", num_classes=0))
    transform = StandardTransform((160,), (160, 160), "bicubic", (0.5,) * 3, (0.5,) * 3)
    network = Backbone.from_module(module, transform=transform, name="mine", axes="NLC", prefix_tokens=1)
    sized = network.with_input(224)
    before, images = sized.recipe, batch(sized)
    vectors = run(sized, images, "pooled")["pooled"]
    with torch.no_grad():
        module.patch_embed.proj.weight.mul_(1.5)
    assert network.recipe.weights != before.weights
    assert sized.recipe == before
    np.testing.assert_array_equal(run(sized, images, "pooled")["pooled"], vectors)
    with torch.no_grad():
        sized.module.patch_embed.proj.weight.mul_(1.5)
    assert sized.recipe != before


@pytest.mark.parametrize(
    ("make", "side", "words"),
    [
        (lambda: timm.create_model("test_vit", num_classes=0), 170, "patches of 16 pixels. What works: 160 ×"),
        (lambda: torchvision.models.VisionTransformer(32, 8, 1, 1, 8, 8), 40, "What works: 32 × 32"),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(1), nn.Linear(3600, 4)), 40, "What works: 32 × 32"),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 9), nn.Flatten(1)), 7, "What works: 16 × 16"),
    ],
)  # fmt: skip
def test_a_size_that_the_network_cannot_run_is_refused_with_those_that_work(
    make: Callable[[], nn.Module], side: int, words: str
) -> None:
    transform = StandardTransform((32,), (32, 32), "bilinear", (0.5,) * 3, (0.5,) * 3)
    network = Backbone.from_module(make(), transform=transform, name="mine")
    with pytest.raises(UsageError, match="cannot run on images of") as caught:
        network.with_input(side).resolve_layers(["pooled"])
    assert words in str(caught.value)


def test_odd_requests_are_refused() -> None:
    network = tiny_backbone()
    for given in ({"input_size": 0}, {"input_size": -3}, {"input_size": 10**6}, {"input_size": 2.5}):
        with pytest.raises(UsageError, match="input_size"):
            network.with_input(**given)  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match="crop, whole"):
        network.with_input(fit="letterbox")
    free = Backbone.from_module(nn.Flatten(), transform=lambda image: torch.zeros(3, 8, 8), name="mine", version="1")
    with pytest.raises(UsageError, match="is a callable"):
        free.with_input(16)
    assert free.with_input() is free
