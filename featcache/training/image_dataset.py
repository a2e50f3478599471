"""Labeled items of a source whose vectors are not stored but computed when they are asked for."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from featcache.core.errors import MissingVectorsError, UnusableImageError
from featcache.extraction.embed import embed
from featcache.extraction.stored_source import image_of_item, images_of_items
from featcache.metrics import splits
from featcache.training.dataset import FeatureDataset
from featcache.training.selection import ALL, LabelSource, Selection

if TYPE_CHECKING:
    from featcache.backbones import Backbone
    from featcache.images.entry import Entry
    from featcache.store import FeatureStore, Item
    from featcache.training.bundle import Bundle


def image_vectors(
    bundle: Bundle,
    store: FeatureStore,
    select: Selection = ALL,
    *,
    backbone: Backbone | None = None,
) -> FeatureDataset:
    """All labeled items of the sources that have an image, with what a network that was trained gives of it.

    Images in quarantine of all spaces are left out.

    Args:
        bundle: a head with the network it was trained with.
        store: knows the items and where they are.
        select: sources and labels.
        backbone: needed only where the network was made by a module given in Python.

    Raises:
        MissingVectorsError: no labeled item has an image where the store knows it.
        UsageError: the images can be given by a Python program alone, or *labels* names paths that are no images of
            the source.
    """
    names = store.source_names(select.source)
    given, usable = LabelSource.of(store, select), _usable(store, names)
    items = given.applied(usable)
    labeled = [item for item in items if item.label is not None]
    notes: list[str] = []
    there = images_of_items(store, labeled, notes)
    kept = [item for item in labeled if (item.source, item.uri) in there]
    if not kept:
        places = ", ".join(f"{name!r} ({store.sources()[name]})" for name in names)
        raise MissingVectorsError(
            f"None of the {len(labeled)} labeled images of source {places} is where the store knows it, and a network "
            "that was trained itself reads images. "
            + (" ".join(notes) or "If they were moved: featcache extract NEW-PLACE -o STORE --moved.")
        )
    network = bundle.backbone(backbone)
    return FeatureDataset(
        items=kept,
        y=np.array([item.label for item in kept], dtype=str),
        groups=splits.units(kept),
        layers=[use.name for use in bundle.layers],
        shapes=[use.shape for use in bundle.layers],
        recipe=bundle.recipe,
        read=_reader(bundle, network, kept, there),
        without_vectors=len(labeled) - len(kept),
        without_labels=len(items) - len(labeled),
        label_counts=given.counts(usable),
    )


def _usable(store: FeatureStore, names: Sequence[str]) -> list[Item]:
    """The images of these sources, without those in quarantine of all spaces: networks differ in what they see."""
    found: list[Item] = []
    for name in names:
        refused = [{uri for uri, _ in store.quarantine(name, known.fingerprint)} for known in store.spaces]
        unusable = set.intersection(*refused) if refused else set()
        found += [item for item in store.items(source=name) if item.uri not in unusable]
    return found


def _reader(
    bundle: Bundle, network: Backbone, items: Sequence[Item], there: Mapping[tuple[str, str], Entry]
) -> Callable[[np.ndarray], np.ndarray]:
    """Computes vectors once; the same rows asked again are there."""
    known: dict[int, np.ndarray] = {}

    def read(rows: np.ndarray) -> np.ndarray:
        missing = [row for row in dict.fromkeys(rows.tolist()) if row not in known]
        images = [
            functools.partial(image_of_item, items[row], there[items[row].source, items[row].uri], network)
            for row in missing
        ]
        names = [use.name for use in bundle.layers]
        for row, found in zip(missing, embed(images, network, names), strict=True):
            if found.vector is None:
                raise UnusableImageError(f"{items[row].uri} cannot be used: {found.reason}.")
            known[row] = found.vector
        return np.stack([known[row] for row in rows.tolist()]) if len(rows) else np.zeros((0, bundle.width), np.float32)

    return read
