"""The activations at a cut: how much room they need, and putting them into the store."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from featcache.backbones import Backbone
from featcache.core.errors import DiskFullError, MissingVectorsError
from featcache.core.names import VIEW_0
from featcache.core.progress import Progress
from featcache.extraction.extract import extract
from featcache.extraction.stored_source import KnownSource, known_images
from featcache.images.augmentation import views_beside
from featcache.store import FeatureStore, Item
from featcache.training.dataset import labels_of

_BYTES = {"float16": 2, "float32": 4}
LEFT_FREE = 0.05
"""Share of the free room that is left to others."""


@dataclass(frozen=True, slots=True)
class Activations:
    """Activations of one layer of a source's images.

    Attributes:
        layer: name of the stored layer, such as ``blocks.4:none``.
        shape: of one image's activations.
        dtype: as which they are stored.
        images: labelled images of the source.
        views: of each image.
        stored: (image, view) rows that are in the store.
        bytes: what the others will take.
        free: bytes free where the store lies.
    """

    layer: str
    shape: tuple[int, ...]
    dtype: str
    images: int
    views: int
    stored: int
    bytes: int
    free: int

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values."""
        return asdict(self)


def view_names(views: int, seed: int) -> list[str]:
    """The names of so many views of a seed, view 0 first."""
    return [VIEW_0, *(view.name for view in views_beside(views, seed))]


def needed(
    store: FeatureStore,
    backbone: Backbone,
    layer: str,
    *,
    views: int = 1,
    seed: int = 0,
    labels: str | Path | None = None,
    source: str | None = None,
    space: str | None = None,
) -> Activations:
    """What has to be stored before a layer's activations can be trained on.

    Args:
        store: the store.
        backbone: of the space.
        layer: name of the layer to be stored.
        views: of each image, view 0 among them.
        seed: of the views.
        labels: a CSV file whose labels take the place of the stored ones.
        source: which source.
        space: which space.

    Raises:
        UnknownNameError: no such layer, source or space.
        UsageError: the layer cannot be pooled so.
    """
    (found,) = backbone.resolve_layers([layer])
    labelled = {item.sha256 for item in _labelled(store, source, store.space(space).fingerprint, labels)}
    names = view_names(views, seed)
    stored = sum(int(store.has(sorted(labelled), layer, name, space).sum()) for name in set(names))
    row = math.prod(found.shape) * _BYTES[found.default_dtype]
    return Activations(
        layer, found.shape, found.default_dtype, len(labelled), views, stored,
        (len(labelled) * views - stored) * row, shutil.disk_usage(store.path).free,
    )  # fmt: skip


def store_activations(
    store: FeatureStore,
    backbone: Backbone,
    wanted: Activations,
    *,
    seed: int,
    labels: str | Path | None = None,
    source: str | None,
    progress: Progress,
) -> None:
    """Compute the activations that are not in the store yet.

    Args:
        store: the store.
        backbone: of the space.
        wanted: as `needed` gives it.
        seed: of the views.
        labels: as for `needed`.
        source: which source.
        progress: is told of the extraction.

    Raises:
        DiskFullError: they would not fit on the disk; nothing was written.
        MissingVectorsError: none of the images is where the store knows it.
        UsageError: the images can be given by a Python program alone.
    """
    if wanted.bytes > (1 - LEFT_FREE) * wanted.free:
        raise DiskFullError(
            f"The activations {wanted.layer} of {wanted.images:,} images in {wanted.views} views need "
            f"{_size(wanted.bytes)}, but {_size(wanted.free)} are free at {store.path}. Train fewer "
            "layers (a later one makes smaller activations), take fewer --views, or make room."
        )
    if wanted.bytes:
        extract_known(
            store, backbone, [wanted.layer], views=wanted.views, seed=seed, labels=labels, source=source,
            progress=progress,
        )  # fmt: skip


def extract_known(
    store: FeatureStore,
    backbone: Backbone,
    layers: Sequence[str],
    *,
    views: int = 1,
    seed: int = 0,
    labels: str | Path | None = None,
    source: str | None,
    progress: Progress,
) -> None:
    """Extract more layers or views of the labelled images of a source, whose labels and splits stay as they are.

    Args:
        store: the store.
        backbone: of the space.
        layers: names of layers.
        views, seed: as for `featcache.extract`.
        labels: a CSV file (``path,label``) that tells which images are labelled in place of the stored labels; these
            stay as they are.
        source: which source.
        progress: is told of the extraction.

    Raises:
        MissingVectorsError: none of the images is where the store knows it.
        UsageError: the images can be given by a Python program alone.
    """
    name = store.source(source)
    notes: list[str] = []
    items = _labelled(store, name, backbone.recipe.fingerprint, labels)
    known = KnownSource(name, store.sources()[name], items, known_images(store, name, items, notes))
    for note in notes:
        progress.note(note)
    if not known.entries():
        raise MissingVectorsError(
            f"None of the images of source {name!r} is at {known.root} any more, so their activations cannot be "
            "computed. If they were moved: featcache extract NEW-PLACE -o STORE --moved."
        )
    extract(known, store.path, backbone=backbone, layers=layers, views=views, seed=seed, progress=progress)


def _size(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


def _labelled(store: FeatureStore, source: str | None, space: str, labels: str | Path | None) -> list[Item]:
    """The labelled images of a source, as the store describes them, without those that the space cannot use."""
    unusable = {uri for uri, _ in store.quarantine(source, space)}
    items = [item for item in store.items(source=source) if item.uri not in unusable]
    given = None if labels is None else labels_of(store, store.source(source), labels)
    return [item for item in items if (item.label if given is None else given.get(item.uri)) is not None]
