"""`similar`: the images of a store that are most similar to one image."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from featcache.core.arguments import checked
from featcache.core.errors import UnusableImageError, UsageError
from featcache.extraction.embed import ImageLike, backbone_for, check_exists, embed
from featcache.images.entry import read_image_file
from featcache.images.image_list import one_image
from featcache.store import FeatureStore, Item

if TYPE_CHECKING:
    from featcache.backbones import Backbone


@checked
def similar(
    store: str | Path | FeatureStore,
    image: ImageLike,
    *,
    k: int = 10,
    source: str | Sequence[str] | None = None,
    space: str | None = None,
    layers: str | Sequence[str] | None = None,
    backbone: Backbone | None = None,
) -> list[tuple[Item, float]]:
    """The k nearest images by cosine similarity, nearest first.

    If the image is in the store, its vector is taken from there and no network runs. Only the image itself is then left
    out of the result, not copies of it.

    Args:
        store: a store or its path.
        image: a path, a PIL image or an array.
        k: how many.
        source: name of the source, or several; needed only where the store holds several.
        space: fingerprint of the space, or its start, or the name of its backbone; likewise.
        layers: names of stored layers, concatenated; ``pooled`` by default.
        backbone: needed only for a space whose backbone is a module in Python.

    Returns:
        Pairs of item and cosine (-1…1).

    Raises:
        UsageError: *image* is a folder.
        UnusableImageError: the image cannot be read.
        RecipeMismatchError: the backbone has another recipe than the space.

    Example:
        >>> nearest = fc.similar("pets.fcache", "photos/cats/cat-00.jpg", k=3)
        >>> [item.label for item, cosine in nearest]
        ['cats', 'cats', 'cats']
    """
    image = one_image(image, 0)
    if isinstance(image, (str, Path)) and Path(image).is_dir():
        raise UsageError(f"{image} is a folder. Give one image.")
    check_exists(image)
    opened = FeatureStore.open(store)
    names = opened.layer_names(layers, space)
    X, _, items = opened.arrays(None, names, source=source, space=space)
    query, own = None, None
    if isinstance(image, (str, Path)) and Path(image).is_file():
        sha256 = hashlib.sha256(read_image_file(Path(image))[0]).digest()
        rows = [row for row, item in enumerate(items) if item.sha256 == sha256]
        if rows:
            query = X[rows[0]]
            root = Path(opened.sources()[items[rows[0]].source])
            own = next((r for r in rows if (root / items[r].uri).resolve() == Path(image).resolve()), None)
    if query is None:
        network = backbone_for(opened.space(space).recipe, backbone)
        (embedded,) = embed([image], network, names)
        if embedded.vector is None:
            raise UnusableImageError(f"{embedded.name}: {embedded.reason}")
        query = embedded.vector
    lengths = np.linalg.norm(X, axis=1) * np.linalg.norm(query)
    cosines = (X @ query) / np.where(lengths > 0, lengths, 1)
    order = [int(row) for row in np.argsort(-cosines, kind="stable") if row != own]
    return [(items[row], float(cosines[row])) for row in order[:k]]
