"""Layers that training needs and the store lacks: how much room they take, and their extraction."""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featcache.core.errors import DiskFullError, MissingVectorsError, UnknownNameError
from featcache.core.names import VIEW_0
from featcache.extraction.extract import extract
from featcache.extraction.stored_source import KnownSource, known_images, present_images
from featcache.images.augmentation import views_beside
from featcache.store import FeatureStore, Item
from featcache.training.dataset import FeatureDataset
from featcache.training.selection import ALL, LabelSource, Selection

if TYPE_CHECKING:
    from featcache.backbones import Backbone
    from featcache.core.progress import Progress

_BYTES = {"float16": 2, "float32": 4}
SAFETY = 1.2
"""Estimates of seconds are so many times what was measured."""
LEFT_FREE = 0.05
"""Share of the free disk space that is not used."""


@dataclass(frozen=True, slots=True)
class Activations:
    """Activations of one layer of a source's images.

    Attributes:
        layer: name of the stored layer, such as ``blocks.4:none``.
        shape: of one image's activations.
        dtype: of the stored activations.
        images: labeled images of the source.
        views: of each image.
        stored: (image, view) rows in the store.
        bytes: of the rows that are missing.
        free: bytes free on the store's disk.
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
    """The names of *views* views of a seed, view 0 first."""
    return [VIEW_0, *(view.name for view in views_beside(views, seed))]


def needed(
    store: FeatureStore,
    backbone: Backbone,
    layer: str,
    select: Selection = ALL,
    *,
    views: int = 1,
    seed: int = 0,
) -> Activations:
    """The activations of a layer that training needs: how many are stored, and the size of the others.

    Args:
        store: the store.
        backbone: of the space.
        layer: name of the layer to be stored.
        select: source, space and labels; of all splits.
        views: of each image, view 0 among them.
        seed: of the views.

    Raises:
        UnknownNameError: no such layer, source or space.
        UsageError: the layer cannot be pooled so.
    """
    (found,) = backbone.resolve_layers([layer])
    labeled = {item.sha256 for item in _labeled(store, select)}
    names = view_names(views, seed)
    stored = sum(int(store.has(sorted(labeled), layer, name, select.space).sum()) for name in set(names))
    row = math.prod(found.shape) * _BYTES[found.default_dtype]
    return Activations(
        layer, found.shape, found.default_dtype, len(labeled), views, stored,
        (len(labeled) * views - stored) * row, shutil.disk_usage(store.path).free,
    )  # fmt: skip


@dataclass(frozen=True)
class StoredItems:
    """The stored vectors of some labeled items of a source, and what it takes to store more.

    Attributes:
        path: of the store.
        items: the items, with some layer.
        where: their source, space and labels.
        seed: of the views.
        backbone, why_not: of the space; None where it cannot be loaded, and then why.
        rate: measures once the seconds before the first image and per image of an extraction; None where it cannot.
    """

    path: Path
    items: FeatureDataset
    where: Selection
    seed: int
    backbone: Backbone | None
    why_not: str
    rate: Callable[[], tuple[float, float] | None]

    def select(self, layers: Sequence[str], views: bool | Sequence[str] = False) -> FeatureDataset:
        """The items with other layers, not yet read; MissingVectorsError where not all have them."""
        found = FeatureDataset.from_store(FeatureStore.open(self.path), list(layers), self.where, views=views)
        place = {(item.source, item.uri): row for row, item in enumerate(found.items)}
        rows = np.array([place.get((item.source, item.uri), -1) for item in self.items.items])
        if (rows < 0).any():
            raise MissingVectorsError(f"Not all items have vectors of {', '.join(layers)}.")
        return replace(found.subset(rows), groups=self.items.groups)

    def has(self, layers: Sequence[str]) -> bool:
        """Whether view 0 of these layers is stored for all items."""
        try:
            return bool(self.select(layers).items)
        except (MissingVectorsError, UnknownNameError):
            return False

    def missing(self, layers: Sequence[str], views: int = 1) -> tuple[int, int]:
        """Forward passes, one per image and view, until these layers are stored, and the bytes they will take."""
        if self.backbone is None or (views == 1 and self.has(layers)):
            return 0, 0
        store = FeatureStore.open(self.path)
        wanted = [needed(store, self.backbone, name, self.where, views=views, seed=self.seed) for name in layers]
        return max(one.images * one.views - one.stored for one in wanted), sum(one.bytes for one in wanted)

    def seconds(self, layers: Sequence[str], views: int = 1) -> float | None:
        """About how long it takes until these layers are stored; None where the speed of extraction is not known."""
        passes, _ = self.missing(layers, views)
        rate = self.rate() if passes else (0.0, 0.0)
        return None if rate is None else SAFETY * (rate[0] + passes * rate[1])

    def extract(self, layers: Sequence[str], views: int, progress: Progress) -> int:
        """Store these layers; gives the number of items.

        Raises:
            MissingVectorsError: some images are gone or in quarantine.
        """
        assert self.backbone is not None
        store = FeatureStore.open(self.path)
        extract_known(store, self.backbone, layers, self.where, views=views, seed=self.seed, progress=progress)
        if not self.has(layers):
            raise MissingVectorsError("Not all items have these layers, as some images are gone or in quarantine.")
        return len(self.items.items)


def store_activations(
    store: FeatureStore,
    backbone: Backbone,
    wanted: Activations,
    select: Selection,
    *,
    seed: int,
    progress: Progress,
) -> None:
    """Compute the activations that are missing in the store.

    Args:
        store: the store.
        backbone: of the space.
        wanted: from `needed`.
        select: as for `needed`.
        seed: of the views.
        progress: reports the extraction.

    Raises:
        DiskFullError: they would not fit on the disk; nothing was written.
        MissingVectorsError: none of the images is where the store knows it, or all have changed.
        UsageError: the images can be given in Python only.
    """
    if wanted.bytes > (1 - LEFT_FREE) * wanted.free:
        raise DiskFullError(
            f"The activations {wanted.layer} of {wanted.images:,} images in {wanted.views} views need "
            f"{_size(wanted.bytes)}, but {_size(wanted.free)} are free at {store.path}. Train fewer "
            "layers (later ones have smaller activations), take fewer --views, or make room."
        )
    if wanted.bytes:
        extract_known(store, backbone, [wanted.layer], select, views=wanted.views, seed=seed, progress=progress)


def extract_known(
    store: FeatureStore,
    backbone: Backbone,
    layers: Sequence[str],
    select: Selection = ALL,
    *,
    views: int = 1,
    seed: int = 0,
    progress: Progress,
) -> None:
    """Extract more layers or views of the labeled images of the sources, whose labels and splits stay as they are.

    Args:
        store: the store.
        backbone: of the space.
        layers: names of layers.
        select: sources, and the labels that say which images are labeled; the stored ones stay as they are.
        views, seed: as for `featcache.extract`.
        progress: reports the extraction.

    Raises:
        MissingVectorsError: none of the images is where the store knows it.
        UsageError: the images can be given in Python only.
    """
    labeled = _labeled(store, replace(select, space=backbone.recipe.fingerprint))
    there = present_images(store, labeled, progress)
    for name in dict.fromkeys(source for source, _ in there):
        items = [item for item in labeled if item.source == name]
        images = {uri: entry for (source, uri), entry in there.items() if source == name}
        known = KnownSource(name, store.sources()[name], items, images)
        extract(known, store.path, backbone=backbone, layers=layers, views=views, seed=seed, progress=progress)


def extraction_rate(
    store: FeatureStore,
    backbone: Backbone,
    layers: Sequence[str],
    source: str | Sequence[str] | None,
    progress: Progress,
) -> tuple[float, float]:
    """Seconds before the first image, and per image and view, of an extraction; measured in a temporary store.

    Args:
        store: the store.
        backbone: of the space.
        layers: names of layers.
        source: which source; of several the first is measured.
        progress: is told of each image.

    Raises:
        MissingVectorsError: none of the images is where the store knows it.
        UsageError: the images can be given in Python only.
    """
    notes: list[str] = []
    name = store.source_names(source)[0]
    items = store.items(source=name)
    there = known_images(store, name, items, notes)
    found = [item for item in items if item.uri in there]
    if not found:
        where = " ".join(["", *notes])
        raise MissingVectorsError(f"None of the images of source {name!r} is where the store knows it.{where}")
    few = KnownSource(name, store.sources()[name], found[:: max(1, len(found) // 40)][:40], there)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="featcache-") as folder:
        report = extract(few, Path(folder, "s.fcache"), backbone=backbone, layers=layers, progress=progress)
        seconds = time.monotonic() - began
    image = 1 / max(report.images_per_second, 1e-9)
    return max(0.0, seconds - report.computed * image), image


def _size(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


def _labeled(store: FeatureStore, select: Selection) -> list[Item]:
    """The labeled images of the sources, as the store describes them, without those that the space cannot use."""
    names, space = store.source_names(select.source), store.space(select.space).fingerprint
    unusable = {(name, uri) for name in names for uri, _ in store.quarantine(name, space)}
    items = [item for item in store.items(source=names) if (item.source, item.uri) not in unusable]
    given = LabelSource.of(store, select)
    return [item for item in items if given.label_of(item) is not None]
