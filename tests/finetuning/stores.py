"""Small stores to tune and fine-tune on, and a problem that the frozen network cannot solve."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import featcache as fc
from featcache.backbones import Backbone, tiny_backbone
from featcache.core.recipe import StandardTransform
from featcache.store import FeatureStore, Item

TRANSFORM = StandardTransform((32,), (32, 32), "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def colour_blind(seed: int = 0) -> Backbone:
    """The tiny network, which sees the sum of red, green and blue alone until its first layer is trained."""
    module = copy.deepcopy(tiny_backbone(seed).module)
    weight = module.get_parameter("stem.0.weight")
    with torch.no_grad():
        weight.copy_(weight.mean(dim=1, keepdim=True).expand_as(weight))
    return Backbone.from_module(module, transform=TRANSFORM, name=f"blind{seed}", axes="NCHW")


def blind_behind_stem() -> Backbone:
    """The tiny network, whose first layer gives the colors and whose later ones see their sum until they train."""
    module = copy.deepcopy(tiny_backbone().module)
    weight = module.get_parameter("body.0.0.weight")
    with torch.no_grad():
        module.get_parameter("stem.0.weight").zero_()
        for channel in range(3):
            module.get_parameter("stem.0.weight")[channel, channel, 1, 1] = 1.0
        module.get_buffer("stem.1.running_mean").fill_(-1.0)
        for name, value in (("stem.1.weight", 1.0), ("stem.1.bias", 0.0)):
            module.get_parameter(name).fill_(value)
        weight.copy_(weight.mean(dim=1, keepdim=True).expand_as(weight))
    return Backbone.from_module(module, transform=TRANSFORM, name="sums", axes="NCHW")


def draw_hues(folder: Path, each: int = 30, names: tuple[str, str] = ("red", "green")) -> Path:
    """Images of two classes that differ in hue, while the sum of red, green and blue tells nothing."""
    rng = np.random.default_rng(0)
    for channel, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for i in range(each):
            grey = rng.integers(60, 120, (40, 40, 1))
            pixels = np.repeat(grey, 3, axis=2)
            pixels[..., channel] += 60
            pixels[..., 1 - channel] -= 60
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{i:02}.png")
    return folder


def contents(store: Path, layers: str = "pooled") -> dict[str, Any]:
    """All that a store knows of its only source and of some layers."""
    opened = FeatureStore.open(store)
    X, _, items = opened.arrays(layers=layers)
    (name,) = opened.sources()
    return {
        "sources": opened.sources(),
        "items": [(i.uri, i.sha256, i.label, i.split, i.group) for i in opened.items(source=name)],
        "vectors": dict(zip([item.uri for item in items], [row.tobytes() for row in X], strict=True)),
        "quarantine": opened.quarantine(name),
    }


def labeled(store: Path) -> dict[str, Item]:
    """The items of a store by URI."""
    return {item.uri: item for item in FeatureStore.open(store).items()}


def extracted(root: Path, store: Path, backbone: Backbone, **options: Any) -> Path:
    """The store that *root* was extracted into."""
    fc.extract(root, store, backbone=backbone, progress=False, **options)
    return store
