"""Vectors of images that are in no store: for `predict`, `similar`, `faces.verify` and a bundle."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, Union

import numpy as np

from featcache.backbones.runtimes import passes_for
from featcache.core.errors import RecipeMismatchError, SourceError, UnusableImageError
from featcache.core.progress import Progress, Silent, tell
from featcache.images.decode import narrow_note
from featcache.images.entry import Entry, Unusable, as_text
from featcache.images.pixels import load_image

if TYPE_CHECKING:
    from PIL.Image import Image

    from featcache.backbones import Backbone, Extractor, Layer
    from featcache.backbones.runtimes import Passes
    from featcache.core.recipe import Recipe
    from featcache.extraction.known_vectors import KnownVectors
    from featcache.images.decode import Decoded

ImageLike: TypeAlias = Union[str, Path, "Image", np.ndarray]
"""A path, a PIL image, or an array (h, w), (h, w, 1), (h, w, 3) or (h, w, 4) of uint8 or uint16."""

BATCH = 16
WORTH_CONVERTING = 200
"""From this number of images on, converting the network first is faster than running all of them in eager torch."""


@dataclass(frozen=True, slots=True)
class Embedded:
    """One image's vector, or why there is none.

    Attributes:
        name: the path as given, of an image in a folder that of the folder with its place below; for an image in a tar
            file ``NAME.tar/MEMBER``; or the image's index in the list.
        vector: (d,) float32, the layers concatenated; None if the image cannot be used.
        reason: why the image cannot be used.
    """

    name: str
    vector: np.ndarray | None
    reason: str | None = None


def backbone_for(recipe: Recipe, backbone: Backbone | None = None) -> Backbone:
    """Find the backbone that follows a recipe.

    Args:
        recipe: as stored in a bundle or a store.
        backbone: one given by the caller; by default it is found by name, with the weights that were last used for
            this recipe on this machine.

    Raises:
        RecipeMismatchError: the backbone follows another recipe (the message names the fields), or the vectors are
            those of aligned faces.
    """
    from featcache import backbones
    from featcache.backbones.registry import check_weights

    if recipe.detection is not None:
        raise RecipeMismatchError(
            f"The vectors of {recipe.backbone} are those of aligned faces, which are not detected here. Use "
            "`featcache faces verify`; in Python, featcache.faces.embed_faces computes the vectors of new images, for "
            "the bundle's predict_vectors or for comparison with a store's."
        )
    found = backbones.for_recipe(recipe) if backbone is None else backbone.with_pixels(recipe.pixels)
    check_weights(recipe, found)
    differing = recipe.differences(found.recipe)
    if differing:
        listed = "; ".join(f"{name} is {actual!r}, needed is {required!r}" for name, required, actual in differing)
        raise RecipeMismatchError(
            f"The backbone {found.name} does not follow the recipe of the vectors: {listed}. "
            "Give the backbone with the same weights and transform, or extract and train again."
        )
    return found


def embed(
    images: Sequence[ImageLike | Entry | Callable[[], Decoded]],
    extractor: Extractor,
    layers: Sequence[str],
    batch_size: int = BATCH,
    progress: Progress | None = None,
    known: KnownVectors | None = None,
) -> Iterator[Embedded]:
    """Compute the vectors of images, in order.

    Args:
        images: paths, PIL images, arrays, what `listed` returns, or callables that load an image when it is needed.
        extractor: a backbone, or one that sees aligned faces (`featcache.faces.alignment.AlignedBackbone`).
        layers: names of layers; their activations are flattened and concatenated in network order.
        batch_size: images per forward pass.
        progress: is told at the end of images that are probably read too dark.
        known: where to look for vectors first; the network is not loaded before one is missing there.

    Yields:
        One `Embedded` per image. An image that is gone or cannot be used has a reason in place of a vector.

    Raises:
        UsageError: something that is no image was given.

    Example:
        >>> from featcache.backbones import tiny_backbone
        >>> (embedded,) = embed([np.zeros((40, 30, 3), np.uint8)], tiny_backbone(), ["pooled"])
        >>> embedded.name, embedded.vector.shape
        ('image 0', (16,))
    """
    batch_size = min(batch_size, len(images)) or 1
    passes: Passes | None = None
    narrow = told = 0
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        stored = {} if known is None else known.of(batch)
        inputs, reasons = [], dict[int, str]()
        for place, image in enumerate(batch):
            if place not in stored:
                try:
                    decoded = image() if callable(image) else load_image(image, extractor.decode, start + place)
                    narrow += decoded.is_narrow
                    inputs.append(extractor.prepare(decoded))
                except (SourceError, UnusableImageError) as error:
                    reasons[place] = str(error).removesuffix(".")
        if inputs and passes is None:
            chosen = extractor.resolve_layers(layers)
            # A graph that was proven before starts sooner than torch; for a few images a new one would not pay.
            passes = passes_for(extractor, batch_size=batch_size, convert=len(images) >= WORTH_CONVERTING)
        vectors = iter(() if passes is None or not inputs else _vectors(passes, np.stack(inputs), chosen))
        for note in () if passes is None else passes.notes[told:]:
            told += 1
            tell(note)
        for place, image in enumerate(batch):
            name, reason = name_of(image, start + place), reasons.get(place)
            vector = stored[place] if place in stored else next(vectors) if reason is None else None
            if vector is not None and not np.isfinite(vector).all():
                vector, reason = None, f"the backbone {extractor.name} gives values that are not finite"
            yield Embedded(name, vector, reason)
    if narrow:
        (progress or Silent()).note(narrow_note(narrow))


def _vectors(passes: Passes, batch: np.ndarray, layers: Sequence[Layer]) -> np.ndarray:
    """The (n, d) float32 vectors of a batch, the layers concatenated."""
    passes.ready(batch, layers)
    activations = passes.forward(batch, layers)
    return np.concatenate([activations[layer.name].reshape(len(batch), -1) for layer in layers], axis=1)


def name_of(image: ImageLike | Entry | Callable[[], Decoded], index: int) -> str:
    """What an image is called: the path of a file as text, ``NAME.tar/MEMBER``, or its place in the list."""
    if isinstance(image, Entry):
        return image.uri
    return as_text(str(image)) if isinstance(image, (str, Path)) else f"image {index}"


def listed(images: ImageLike | Sequence[ImageLike]) -> list[ImageLike | Entry]:
    """Expand stores, folders and tar files into their images.

    Args:
        images: one or several paths of files or folders, tar files and patterns of them (``shard-*.tar``), PIL
            images or arrays; stores, for the images that they list.

    Returns:
        What `embed` takes. A folder or tar file that holds no image, or cannot be listed, stands for itself and cannot
        be used.

    Raises:
        SourceError: there is nothing else, so nothing to ask about.
        UsageError: these are no images.
    """
    from featcache.extraction.stored_source import images_of
    from featcache.images.image_list import image_list

    found: list[ImageLike | Entry] = []
    unlisted: list[SourceError] = []
    for image in image_list(images):
        entries = None
        if isinstance(image, (str, Path)):
            try:
                entries = images_of(image)
            except SourceError as error:
                unlisted.append(error)
                name = as_text(str(image))
                entries = [Entry(name, name, None, None, None, content=Unusable(str(error)))]
        found += [image] if entries is None else entries
    if unlisted and len(unlisted) == len(found):
        raise unlisted[0]
    return found


def check_exists(image: ImageLike) -> None:
    """Raise SourceError where *image* is a path at which nothing is."""
    if isinstance(image, (str, Path)) and not os.path.lexists(image):
        raise SourceError(f"There is no image {image}.")
