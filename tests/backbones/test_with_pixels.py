"""A recipe names the implementations that make its pixels; the backbone for it uses them, even if newer ones exist."""

from __future__ import annotations

import io
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from operator import attrgetter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import featcache as fc
from featcache.backbones import Backbone, for_recipe, get, tiny_backbone
from featcache.core.errors import RecipeMismatchError, UsageError
from featcache.core.recipe import PixelPath, Recipe, StandardTransform
from featcache.extraction.embed import backbone_for, embed
from featcache.images.decode import DECODERS, SCALED, decode_rgb
from featcache.images.transforms import IMPLEMENTATIONS, PixelTransform
from tests.backbones.making import textile


def before(recipe: Recipe) -> Recipe:
    """The recipe as it was when Pillow did everything."""
    assert isinstance(recipe.pixels.transform, StandardTransform)
    transform = replace(recipe.pixels.transform, implementation="pillow/1")
    return replace(recipe, pixels=replace(recipe.pixels, transform=transform, decoder="pillow/1"))


def jpeg_of(width: int, height: int, seed: int = 0) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).save(out, "JPEG", quality=90)
    return out.getvalue()


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("scaled", [None, SCALED])
def test_every_implementation_that_a_recipe_names(decoder: str, implementation: str, scaled: str | None) -> None:
    net = tiny_backbone()
    transform = net.recipe.pixels.transform
    assert isinstance(transform, StandardTransform)
    wanted = PixelPath(replace(transform, implementation=implementation), decoder, scaled=scaled)
    made = net.with_pixels(wanted)
    assert made.recipe == replace(net.recipe, pixels=wanted)
    assert net.recipe.pixels == PixelPath(transform)
    data = jpeg_of(150, 140)
    decoded = made.decode(data)
    small = scaled is not None and decoder == "simplejpeg/1"
    assert decoded.image.size == ((75, 70) if small else (150, 140))
    expected = PixelTransform(replace(transform, implementation=implementation))(decoded)
    np.testing.assert_array_equal(made.prepare(decoded), expected)
    assert made.module is net.module


def test_the_older_code_gives_what_it_gave() -> None:
    """The whole image resized by Pillow's own calls, then cut."""
    made = tiny_backbone().with_pixels(before(tiny_backbone().recipe).pixels)
    for width, height in ((100, 75), (75, 100), (33, 32), (20, 300)):
        data = jpeg_of(width, height)
        image = Image.open(io.BytesIO(data)).convert("RGB")
        size = (32, int(32 * height / width)) if width <= height else (int(32 * width / height), 32)
        image = image.resize(size, Image.Resampling.BILINEAR)
        left, top = round((size[0] - 32) / 2), round((size[1] - 32) / 2)
        expected = np.asarray(image.crop((left, top, left + 32, top + 32)))
        np.testing.assert_array_equal(made.prepare(made.decode(data)), expected)


def test_what_is_published_is_not_taken_over() -> None:
    net = tiny_backbone()
    other = PixelPath(StandardTransform((40,), (36, 36), "bicubic", (0.1,) * 3, (0.2,) * 3, "pillow/1"), "pillow/1")
    followed = net.with_pixels(other).recipe
    assert [name for name, _, _ in followed.differences(replace(net.recipe, pixels=other))] == [
        "pixels.transform.crop",
        "pixels.transform.interpolation",
        "pixels.transform.mean",
        "pixels.transform.resize",
        "pixels.transform.std",
    ]
    with pytest.raises(RecipeMismatchError, match=r"pixels\.transform\.crop is \(32, 32\)|pixels\.transform\.crop"):
        backbone_for(replace(net.recipe, pixels=other), net)


def test_an_unknown_implementation_raises() -> None:
    net = tiny_backbone()
    for later in (
        replace(net.recipe.pixels, decoder="simplejpeg/9"),
        replace(net.recipe.pixels, scaled="dct/9"),
        replace(net.recipe.pixels, transform=replace(net.recipe.pixels.transform, implementation="pillow/9")),
    ):
        assert net.with_pixels(later) is net
        with pytest.raises(RecipeMismatchError, match=r"needed is '(simplejpeg|dct|pillow)/9'"):
            backbone_for(replace(net.recipe, pixels=later), net)


def test_the_same_code_is_the_same_backbone() -> None:
    net = tiny_backbone()
    assert net.with_pixels(net.recipe.pixels) is net
    old = net.with_pixels(before(net.recipe).pixels)
    assert old.with_pixels(before(net.recipe).pixels) is old
    assert old.with_pixels(net.recipe.pixels).recipe == net.recipe


def test_for_recipe_of_an_older_implementation() -> None:
    recipe = get("bundled:efficientnet_lite0").recipe
    assert for_recipe(recipe).recipe == recipe
    assert for_recipe(before(recipe)).recipe == before(recipe)
    scaled = get("bundled:efficientnet_lite0").scaled()
    assert scaled.recipe.pixels.scaled == SCALED
    assert for_recipe(scaled.recipe).recipe == scaled.recipe
    assert len({recipe.fingerprint, before(recipe).fingerprint, scaled.recipe.fingerprint}) == 3


def test_pickled_to_another_process() -> None:
    made = get("bundled:efficientnet_lite0").scaled()
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        assert pool.submit(attrgetter("recipe.fingerprint"), made).result() == made.recipe.fingerprint


def test_vectors_of_real_photographs() -> None:
    """DESIGN: two gray levels, and a cosine of 0.9999."""
    net = get("bundled:efficientnet_lite0")
    old = for_recipe(before(net.recipe))
    files = [path.read_bytes() for path in textile(12)]
    layers = net.resolve_layers(["pooled"])
    new_pixels, old_pixels = (np.stack([n.prepare(n.decode(data)) for data in files]) for n in (net, old))
    assert np.abs(new_pixels.astype(int) - old_pixels).max() <= 2
    mine, theirs = (n.forward(pixels, layers)["pooled"] for n, pixels in ((net, new_pixels), (old, old_pixels)))
    cosine = (mine * theirs).sum(1) / np.linalg.norm(mine, axis=1) / np.linalg.norm(theirs, axis=1)
    assert cosine.min() >= 0.9999


def test_an_old_head_gets_the_pixels_it_was_trained_on(tmp_path: Path, draw_images: Callable[..., Path]) -> None:
    net = tiny_backbone()
    old = net.with_pixels(before(net.recipe).pixels)
    photos = draw_images(tmp_path / "photos", ("cats", "dogs"), 6)
    fc.extract(photos, tmp_path / "s.fcache", backbone=old, progress=False)
    fc.train(tmp_path / "s.fcache", progress=False).save(tmp_path / "head.fch")
    bundle = fc.Bundle.load(tmp_path / "head.fch")
    assert bundle.recipe == before(net.recipe)
    store = fc.open(tmp_path / "s.fcache")
    X, _, items = store.arrays()
    paths = [photos / item.uri for item in items]
    # The backbone that is given is today's, and the head brings its recipe with it.
    network = backbone_for(bundle.recipe, net)
    vectors = np.stack([one.vector for one in embed(paths, network, ["pooled"]) if one.vector is not None])
    np.testing.assert_allclose(vectors, X, rtol=1e-5, atol=1e-6)
    today = np.stack([one.vector for one in embed(paths, net, ["pooled"]) if one.vector is not None])
    assert np.abs(today - X).max() > np.abs(vectors - X).max()
    expected = bundle.predict_vectors(X)
    got = bundle.predict(paths, backbone=net)
    assert [one.labels[0][0] for one in got] == expected.tolist()


def test_scaled_is_a_space_of_its_own(tmp_path: Path) -> None:
    net = tiny_backbone()
    (tmp_path / "photos/a").mkdir(parents=True)
    for number in range(3):
        (tmp_path / f"photos/a/{number}.jpg").write_bytes(jpeg_of(200, 160, number))
    Image.fromarray(np.zeros((160, 200, 3), np.uint8)).save(tmp_path / "photos/a/z.png")
    whole = fc.extract(tmp_path / "photos", tmp_path / "s.fcache", backbone=net, progress=False)
    less = fc.extract(tmp_path / "photos", tmp_path / "s.fcache", backbone=net.scaled(), progress=False)
    again = fc.extract(tmp_path / "photos", tmp_path / "s.fcache", backbone=net.scaled(), progress=False)
    assert (whole.computed, less.computed, again.computed, again.reused) == (4, 4, 0, 4)
    assert less.space == again.space == net.scaled().recipe.fingerprint != whole.space
    store = fc.open(tmp_path / "s.fcache")
    (X, _, items), (Y, _, _) = (store.arrays(space=report.space) for report in (whole, less))
    png = [item.uri.endswith(".png") for item in items]
    np.testing.assert_allclose(X[png], Y[png], rtol=1e-5)
    differing = np.abs(X - Y).max(1)
    assert (differing[~np.array(png)] > 1e-4).all()


def test_scaled_needs_a_transform_whose_size_is_known() -> None:
    net = Backbone.from_module(
        nn.Flatten(), transform=lambda image: torch.zeros(3, 8, 8), name="mine", version="1", input_size=(8, 8)
    )
    assert net.decode(jpeg_of(300, 300)).image.size == (300, 300)
    with pytest.raises(UsageError, match="is a callable"):
        net.scaled()


def test_a_callable_takes_over_the_decoder_only() -> None:
    seen = []

    def transform(image: Image.Image) -> torch.Tensor:
        seen.append((image.mode, np.asarray(image)))
        return torch.zeros(3, 8, 8)

    net = Backbone.from_module(nn.Flatten(), transform=transform, name="mine", version="1", input_size=(8, 8))
    old = net.with_pixels(replace(net.recipe.pixels, decoder="pillow/1"))
    assert old.recipe.differences(net.recipe) == [("pixels.decoder", "pillow/1", "simplejpeg/1")]
    data = jpeg_of(30, 20)
    for one in (net, old):
        one.prepare(one.decode(data))
    assert [mode for mode, _ in seen] == ["RGB", "RGB"]
    np.testing.assert_array_equal(seen[1][1], np.asarray(decode_rgb(data, "pillow/1")))
