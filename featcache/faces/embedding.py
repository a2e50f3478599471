"""`embed_faces`: the faces of images that are in no store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from featcache.core.errors import RecipeMismatchError, UnusableImageError
from featcache.core.recipe import Recipe
from featcache.extraction.embed import BATCH, ImageLike, backbone_for, picture_of
from featcache.faces.aligned import MIRRORED, AlignedBackbone
from featcache.faces.chips import CHIP
from featcache.faces.detection import Detection, Detector, picture_in

if TYPE_CHECKING:
    from featcache.backbones import Backbone


def aligned_for(recipe: Recipe, backbone: Backbone | None = None, *, centre_box: bool = False) -> AlignedBackbone:
    """The backbone on aligned faces that follows this recipe.

    Args:
        recipe: as kept in a store or a bundle.
        backbone: what turns an aligned face into a vector; by default it is found by its name, with the weights that
            were last used for it on this machine.
        centre_box: use the middle of the picture where no face is found.

    Raises:
        RecipeMismatchError: the recipe is not one of aligned faces, or of another detection, chip or backbone.
        MissingExtraError: dlib or its files are not installed.
    """
    if recipe.detection is None or recipe.pixels.chip is None:
        raise RecipeMismatchError(
            f"The vectors of {recipe.backbone} were made of whole pictures, not of faces. "
            "`featcache faces extract` makes those of faces."
        )
    detector = Detector()
    whole = replace(recipe, detection=None, pixels=replace(recipe.pixels, chip=None))
    aligned = AlignedBackbone(backbone_for(whole, backbone), detector, centre_box=centre_box)
    if aligned.recipe != recipe:
        raise RecipeMismatchError(
            f"The vectors were made of faces that were found by the detection {recipe.detection[:12]} and cut out as "
            f"{recipe.pixels.chip!r}. This featcache, with the dlib that is installed, finds them by "
            f"{detector.recipe.fingerprint[:12]} and cuts out {CHIP!r}. "
            "Install the dlib of that time, or extract and train again."
        )
    return aligned


def embed_faces(
    images: Sequence[ImageLike],
    recipe: Recipe,
    layers: Sequence[str] = (MIRRORED,),
    *,
    backbone: Backbone | None = None,
    centre_box: bool = False,
) -> tuple[np.ndarray, list[Detection]]:
    """Find the faces of images, align them, and compute their vectors.

    Args:
        images: n paths, PIL images or arrays; at least one.
        recipe: of the vectors, as kept in a store or a bundle.
        layers: names of layers, which are put one after another.
        backbone: as for `aligned_for`.
        centre_box: use the middle of the picture where no face is found.

    Returns:
        Vectors (n, d) float32 and the n detections, in the order given.

    Raises:
        UnusableImageError: an image cannot be used, or shows no face; it is named.
        RecipeMismatchError: as for `aligned_for`.
        SourceError: a path does not exist.
    """
    aligned = aligned_for(recipe, backbone, centre_box=centre_box)
    chosen = aligned.resolve_layers(layers)
    found, parts = [], []
    for start in range(0, len(images), BATCH):
        inputs = []
        for place, image in enumerate(images[start : start + BATCH], start):
            try:
                picture = picture_in(picture_of(image, aligned))
                found.append(aligned.detector.detect(picture))
                inputs.append(aligned.prepare_face(picture, found[-1]))
            except UnusableImageError as error:
                name = str(image) if isinstance(image, (str, Path)) else f"image {place}"
                raise UnusableImageError(f"{name}: {error}.") from error
        arrays = aligned.forward(np.stack(inputs), chosen)
        parts.append(np.concatenate([arrays[layer.name].reshape(len(inputs), -1) for layer in chosen], axis=1))
    return np.concatenate(parts), found
