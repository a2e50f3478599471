"""Values that are not finite cost the layer and the view they stand in, and nothing else, in any order."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from PIL import Image

import featcache as fc
from featcache.backbones import Backbone
from featcache.core.errors import DamagedStoreError, MissingVectorsError, UnusableImageError
from featcache.core.recipe import StandardTransform
from featcache.store.sources import judged
from tests.store.making import lose

if TYPE_CHECKING:
    from featcache.extraction import ExtractReport

ORDERS = ("pooled|a:mean", "a:mean|pooled", "pooled a:mean", "pooled|a:mean pooled")
TRANSFORM = StandardTransform((32,), (32, 32), "bilinear", (0.5,) * 3, (0.5,) * 3)


class NaNPooledForDark(torch.nn.Module):
    """Of black images the layer ``a`` is finite and the pooled vector is not."""

    def __init__(self) -> None:
        super().__init__()
        self.a = torch.nn.Conv2d(3, 3, 1, bias=False)
        torch.nn.init.dirac_(self.a.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = self.a(x).mean((2, 3))
        return torch.where(mean < -0.9, torch.nan, mean)


@pytest.fixture
def dark(photos: Path) -> Path:
    """24 images, and a black one that is called ``cats/dark.png``."""
    Image.new("RGB", (40, 40)).save(photos / "cats" / "dark.png")
    return photos


def extract(photos: Path, store: Path, module: torch.nn.Module, **options: Any) -> ExtractReport:
    net = Backbone.from_module(module, transform=TRANSFORM, name="nan")
    return fc.extract(photos, store, backbone=net.with_runtime(runtime="torch"), progress=False, **options)


def test_layers_are_trained_on_together_though_one_image_lacks_one(dark: Path, tmp_path: Path) -> None:
    store = tmp_path / "s.fcache"
    extract(dark, store, NaNPooledForDark(), layers=["a:mean"])
    extract(dark, store, NaNPooledForDark(), layers=["a:mean", "pooled"])
    opened = fc.open(store)
    X, _, items = opened.arrays(layers="a:mean+pooled")
    assert X.shape == (24, 6)
    assert "cats/dark.png" not in {item.uri for item in items}
    assert len(opened.arrays(layers="a:mean")[0]) == 25
    assert fc.train(store, layers="a:mean+pooled", progress=False).classes == ("cats", "dogs")


@pytest.fixture(scope="module")
def old_photos(tmp_path_factory: pytest.TempPathFactory, draw_images: Callable[..., Path]) -> dict[str, Path]:
    """For each order of layers 24 images and two black ones, of which the files' times vouch for them."""
    folder = tmp_path_factory.mktemp("old")
    drawn = {order: draw_images(folder / str(number)) for number, order in enumerate(ORDERS)}
    for photos in drawn.values():
        Image.new("RGB", (40, 40)).save(photos / "cats" / "dark.png")
        shutil.copy(photos / "cats" / "dark.png", photos / "dogs" / "copy.png")
    time.sleep(2.1)  # the time from which on they do
    return drawn


@pytest.mark.parametrize("order", ORDERS)
def test_the_order_in_which_layers_are_asked_for_decides_nothing(
    old_photos: dict[str, Path], tmp_path: Path, order: str
) -> None:
    store, dark = tmp_path / "s.fcache", old_photos[order]
    asked = ""
    for layers in order.split("|"):
        asked += layers  # what was asked for before is served as well
        report = extract(dark, store, NaNPooledForDark(), layers=layers.split())
        assert report.quarantined == (2 if "pooled" in asked else 0)
        assert report.left == 0
    opened = fc.open(store)
    assert {layer: column.rows for layer, column in opened.space().layers.items()} == {"a:mean": 25, "pooled": 24}
    reason = "the backbone module:nan gives values that are not finite at pooled"
    assert opened.quarantine() == [("cats/dark.png", reason), ("dogs/copy.png", reason)]
    assert len(opened.arrays(layers="a:mean")[0]) == 26
    assert opened.incomplete() == []
    assert len(opened.arrays(layers="a:mean+pooled")[0]) == 24
    again = extract(dark, store, NaNPooledForDark(), layers=["pooled", "a:mean"])
    assert (again.computed, again.reused, again.quarantined) == (0, 24, 2)
    # Another image of that name has nothing to do with it.
    Image.new("RGB", (40, 40), (200, 200, 200)).save(dark / "cats" / "dark.png")
    mended = extract(dark, store, NaNPooledForDark(), layers=["a:mean"])
    assert (mended.computed, mended.quarantined) == (1, 1)
    assert fc.open(store).quarantine() == [("dogs/copy.png", reason)]


def test_what_was_only_never_extracted_is_not_excused(dark: Path, tmp_path: Path) -> None:
    store = tmp_path / "s.fcache"
    extract(dark, store, NaNPooledForDark(), layers=["a:mean", "pooled"])
    Image.new("RGB", (40, 40), (200, 200, 200)).save(dark / "cats" / "new.png")
    extract(dark, store, NaNPooledForDark())
    lose(store, "cats/new.png", "pooled")
    with pytest.raises(MissingVectorsError, match=r"1 of 25 images.*cats/new\.png"):
        fc.open(store).arrays(layers="a:mean+pooled")


def test_strict_tells_of_a_layer(dark: Path, tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(UnusableImageError, match=r"cats/dark\.png: .* not finite at pooled\. Without --strict"):
            extract(
                dark,
                tmp_path / "s.fcache",
                NaNPooledForDark(),
                layers=["a:mean", "pooled"],
                config=fc.ExtractionConfig(strict=True),
            )
    assert fc.open(tmp_path / "s.fcache").verify().ok


def test_columns_in_the_catalogue_that_are_none() -> None:
    for listed in ("[1]", "{}x", "[[1]]", "[" * 100_000):
        with pytest.raises(DamagedStoreError, match="names no layers and views"):
            judged(f"featcache 1; not finite: {listed}")
