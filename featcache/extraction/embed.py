"""Images that are in no store into vectors: what `predict`, `similar` and a bundle need."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, Union

import numpy as np

from featcache.backbones.runtimes import passes_for
from featcache.core.errors import RecipeMismatchError, SourceError, UnusableImageError, UsageError
from featcache.core.recipe import Recipe
from featcache.images.entry import Entry

if TYPE_CHECKING:
    from PIL.Image import Image

    from featcache.backbones import Backbone, Extractor
    from featcache.images.decode import Decoded

ImageLike: TypeAlias = Union[str, Path, "Image", np.ndarray]
"""A path, a PIL image, or an array (h, w), (h, w, 1), (h, w, 3) or (h, w, 4) of uint8 or uint16."""

BATCH = 16
WORTH_CONVERTING = 200
"""Images from which on it is quicker to convert a network first than to compute all in eager torch."""


@dataclass(frozen=True, slots=True)
class Embedded:
    """One image's vector, or why there is none.

    Attributes:
        name: the path as it was given, or the image's place in the list; of an image in a tar file
            ``NAME.tar/MEMBER``.
        vector: (d,) float32, the layers one after another; None where the image cannot be used.
        reason: why the image cannot be used.
    """

    name: str
    vector: np.ndarray | None
    reason: str | None = None


def backbone_for(recipe: Recipe, backbone: Backbone | None = None) -> Backbone:
    """The backbone that follows this recipe.

    Args:
        recipe: as kept in a bundle or a store.
        backbone: one given by the caller; by default it is found by its name, with the weights that
            were last used for this recipe on this machine.

    Raises:
        RecipeMismatchError: the backbone found follows another recipe; the message names the fields. Or the vectors
            are those of aligned faces.
    """
    from featcache import backbones

    if recipe.detection is not None:
        raise RecipeMismatchError(
            f"The vectors of {recipe.backbone} were made of aligned faces, which are not looked for here. "
            "`featcache faces verify` works with them; in Python, featcache.faces.embed_faces gives the vectors "
            "of new images, for the bundle's predict_vectors or a store's."
        )
    found = backbones.for_recipe(recipe) if backbone is None else backbone.with_pixels(recipe.pixels)
    differing = recipe.differences(found.recipe)
    if differing:
        listed = "; ".join(f"{name} is {theirs!r}, needed is {mine!r}" for name, mine, theirs in differing)
        raise RecipeMismatchError(
            f"The backbone {found.name} does not follow the recipe that made the vectors: {listed}. "
            "Give the backbone with the same weights and transform, or extract and train again."
        )
    return found


def embed(
    images: Sequence[ImageLike | Entry | Callable[[], Decoded]],
    backbone: Backbone,
    layers: Sequence[str],
    batch_size: int = BATCH,
) -> Iterator[Embedded]:
    """Vectors of images, in order.

    Args:
        images: paths, PIL images, arrays, what `listed` gives, or what makes an image when its turn has come.
        backbone: the frozen network.
        layers: names of layers, in network order.
        batch_size: images in one pass.

    Raises:
        SourceError: a path does not exist.
        UsageError: something that is no image was given.
    """
    chosen = backbone.resolve_layers(layers)
    # A graph that was proven before starts sooner than torch; for a few images a new one would not pay.
    batch_size = min(batch_size, len(images)) or 1
    passes = passes_for(backbone, batch_size=batch_size, convert=len(images) >= WORTH_CONVERTING)
    for start in range(0, len(images), batch_size):
        names, pixels, reasons = [], [], {}
        for place, image in enumerate(images[start : start + batch_size], start):
            names.append(_name(image, place))
            try:
                pixels.append(backbone.prepare(upright_image(image, backbone)))
            except UnusableImageError as error:
                reasons[len(names) - 1] = str(error)
        rows = iter(())  # type: Iterator[np.ndarray]
        if pixels:
            batch = np.stack(pixels)
            passes.ready(batch, chosen)
            found = passes.forward(batch, chosen)
            flat = np.concatenate([found[layer.name].reshape(len(pixels), -1) for layer in chosen], axis=1)
            rows = iter(flat)
        for place, name in enumerate(names):
            if place in reasons:
                yield Embedded(name, None, reasons[place])
                continue
            vector = next(rows)
            if np.isfinite(vector).all():
                yield Embedded(name, vector)
            else:
                yield Embedded(name, None, f"the backbone {backbone.name} gives values that are not finite")


def _name(image: ImageLike | Entry | Callable[[], Decoded], place: int) -> str:
    if isinstance(image, Entry):
        return image.uri
    return str(image) if isinstance(image, (str, Path)) else f"image {place}"


def listed(images: ImageLike | Sequence[ImageLike]) -> list[ImageLike | Entry]:
    """The images that are meant: a folder stands for all images below it, a tar file for all images in it.

    Args:
        images: one or several paths of files or folders, tar files and patterns of them (``shard-*.tar``), PIL
            images or arrays.

    Raises:
        SourceError: a folder or tar file holds no image, or there is no such tar file.
    """
    from PIL import Image as pil

    from featcache.images.sources import images_below

    several = [images] if isinstance(images, (str, Path, np.ndarray, pil.Image)) else list(images)
    found: list[ImageLike | Entry] = []
    for image in several:
        entries = images_below(image) if isinstance(image, (str, Path)) else None
        if entries is None:
            found.append(image)
        else:
            found += [entry.path if entry.content is None else entry for entry in entries]
    return found


def upright_image(image: ImageLike | Entry | Callable[[], Decoded], backbone: Extractor) -> Image | Decoded:
    """The upright image of an image, a file decoded as the backbone wants it.

    Raises:
        SourceError: the path does not exist.
        UnusableImageError: it cannot be read, or its pixels have no reading as RGB.
        UsageError: it is no image.
    """
    from PIL import Image as pil

    from featcache.images.decode import rgb_from, rgb_from_array
    from featcache.images.entry import read_image_file

    if isinstance(image, Entry):
        return backbone.decode(image.read()[0])
    if isinstance(image, (str, Path)):
        if not Path(image).exists():
            raise SourceError(f"There is no image {image}.")
        return backbone.decode(read_image_file(Path(image))[0])
    if isinstance(image, pil.Image):
        return rgb_from(image)
    if isinstance(image, np.ndarray):
        return rgb_from_array(image)
    if callable(image):
        return image()
    raise UsageError(f"An image is a path, a PIL image or a NumPy array, not {type(image).__name__}.")
