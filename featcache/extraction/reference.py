"""The reference of a space: its network in eager torch at float32, on pixels made by the published code."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from featcache.backbones import get
from featcache.core.errors import RecipeMismatchError, UsageError
from featcache.core.recipe import PixelPath, Recipe, StandardTransform
from featcache.extraction.embed import backbone_for
from featcache.store import FeatureStore

if TYPE_CHECKING:
    from featcache.backbones import Backbone, Extractor

PILLOW = "pillow/1"
"""The decoder and the resizing that are equal to those of timm and torchvision, to the last grey level."""


def reference_of(
    store: FeatureStore, recipe: Recipe, backbone: Backbone | None = None, weights: str | Path | None = None
) -> Extractor:
    """What the vectors of a recipe are compared with; its ``forward`` is eager torch.

    The recipe's sizes, mean and so on stay; decoding and resizing are done by `PILLOW`. Photographs decoded at a
    fraction of their size and aligned faces have no published transform, so their pixels are those of their recipe.

    Args:
        store: where the detections of aligned faces are.
        recipe: of a space of it.
        backbone: needed only where the vectors were made by a module given in Python.
        weights: a file of weights for the recipe's backbone; by default the one that was last given for it here, or
            the published ones.

    Raises:
        MissingVectorsError: the detections of aligned faces are not in the store.
        RecipeMismatchError: the backbone does not follow the recipe at float32; the message names the fields.
        UsageError: the recipe is that of a detection, which no network made; there is no such file; or there are
            both, a backbone and weights.
    """
    if backbone is not None and weights is not None:
        raise UsageError("A backbone brings its weights. Give one of the two, backbone or weights.")
    if weights is not None and not recipe.backbone.startswith("module:") and recipe.backbone != _detector():
        backbone = get(recipe.backbone, weights).with_pixels(recipe.pixels)
    exact = replace(recipe, precision="float32", runtime=None)
    if backbone is not None:
        backbone = backbone.with_runtime(runtime="torch", precision="float32")
    if recipe.detection is not None:
        return _aligned(store, exact, backbone)
    if recipe.backbone == _detector():
        raise UsageError("This space holds where faces were found, which no network computed. Choose another --space.")
    found = backbone_for(exact, backbone)
    pixels = exact.pixels
    return found.with_pixels(pixels if pixels.scaled is not None else published(pixels))


def published(pixels: PixelPath) -> PixelPath:
    """The same decoded and resized by `PILLOW`."""
    transform = pixels.transform
    if isinstance(transform, StandardTransform):
        transform = replace(transform, implementation=PILLOW)
    return replace(pixels, transform=transform, decoder=PILLOW)


def _detector() -> str:
    from featcache.faces.detection import Detector

    return Detector.name


def _aligned(store: FeatureStore, recipe: Recipe, backbone: Backbone | None) -> Extractor:
    from featcache.backbones import for_recipe
    from featcache.faces.aligned import AlignedBackbone
    from featcache.faces.detection import Detector, StoredDetections

    base = for_recipe(recipe) if backbone is None else backbone.with_pixels(recipe.pixels)
    stored = StoredDetections(store, str(recipe.detection))
    # Whose middle was taken where no face was found, the stored vectors tell: all that are there can be made again.
    made = AlignedBackbone(base, Detector(), centre_box=True, detections=stored)
    differing = recipe.differences(made.recipe)
    if differing:
        listed = "; ".join(f"{name} is {theirs!r}, needed is {mine!r}" for name, mine, theirs in differing)
        raise RecipeMismatchError(f"The faces of {recipe.backbone} cannot be made again here: {listed}.")
    return made
