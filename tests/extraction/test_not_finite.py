"""Values that are not finite cost the layer and the view they stand in, and nothing else, in any order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import featcache as fc
from featcache.backbones import Backbone
from featcache.extraction import ExtractReport
from featcache.recipe import StandardTransform

TRANSFORM = StandardTransform((32,), (32, 32), "bilinear", (0.5,) * 3, (0.5,) * 3)


class NaNPooledForDark(torch.nn.Module):
    """Of black pictures the layer ``a`` is finite and the pooled vector is not."""

    def __init__(self) -> None:
        super().__init__()
        self.a = torch.nn.Conv2d(3, 3, 1, bias=False)
        torch.nn.init.dirac_(self.a.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = self.a(x).mean((2, 3))
        return torch.where(mean < -0.9, torch.nan, mean)


@pytest.fixture
def dark(photos: Path) -> Path:
    """24 pictures, and a black one that is called ``cats/dark.png``."""
    Image.new("RGB", (40, 40)).save(photos / "cats" / "dark.png")
    return photos


def extract(photos: Path, store: Path, module: torch.nn.Module, **options: Any) -> ExtractReport:
    net = Backbone.from_module(module, transform=TRANSFORM, name="nan")
    return fc.extract(photos, store, backbone=net, runtime="torch", progress=False, **options)


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
