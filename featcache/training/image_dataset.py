"""Labeled items of a source whose vectors are not stored but computed when they are asked for."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from featcache.core.errors import MissingVectorsError, UnusableImageError
from featcache.extraction.embed import embed
from featcache.extraction.stored_source import image_of_item, known_images
from featcache.metrics import splits
from featcache.training.dataset import FeatureDataset, labels_of

if TYPE_CHECKING:
    from featcache.backbones import Backbone
    from featcache.images.entry import Entry
    from featcache.store import FeatureStore, Item
    from featcache.training.bundle import Bundle


def image_vectors(
    bundle: Bundle,
    store: FeatureStore,
    *,
    source: str | None = None,
    labels: str | Path | None = None,
    backbone: Backbone | None = None,
) -> FeatureDataset:
    """All labeled items of a source that have an image, with what a network that was trained gives of it.

    Images in quarantine of all spaces are left out.

    Args:
        bundle: a head with the network it was trained with.
        store: knows the items and where they are.
        source: which source.
        labels: a CSV file (``path,label``) whose labels take the place of the stored ones.
        backbone: needed only where the network was made by a module given in Python.

    Raises:
        MissingVectorsError: no labeled item has an image where the store knows it.
        UsageError: the images can be given by a Python program alone, or *labels* names paths that are no images of
            the source.
    """
    name = store.source(source)
    # An image that one network alone cannot use may be seen by another.
    refused = [{uri for uri, _ in store.quarantine(name, known.fingerprint)} for known in store.spaces]
    unusable = set.intersection(*refused) if refused else set()
    items = [item for item in store.items(source=name) if item.uri not in unusable]
    if labels is not None:
        given = labels_of(store, name, labels)
        items = [replace(item, label=given.get(item.uri)) for item in items]
    labeled = [item for item in items if item.label is not None]
    notes: list[str] = []
    there = known_images(store, name, labeled, notes)
    kept = [item for item in labeled if item.uri in there]
    if not kept:
        raise MissingVectorsError(
            f"None of the {len(labeled)} labeled images of source {name!r} is where the store knows it "
            f"({store.sources()[name]}), and a network that was trained itself reads images. "
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
    )


def _reader(
    bundle: Bundle, network: Backbone, items: Sequence[Item], there: Mapping[str, Entry]
) -> Callable[[np.ndarray], np.ndarray]:
    """Computes vectors once; the same rows asked again are there."""
    known: dict[int, np.ndarray] = {}

    def read(rows: np.ndarray) -> np.ndarray:
        missing = [row for row in dict.fromkeys(rows.tolist()) if row not in known]
        images = [functools.partial(image_of_item, items[row], there[items[row].uri], network) for row in missing]
        names = [use.name for use in bundle.layers]
        for row, found in zip(missing, embed(images, network, names), strict=True):
            if found.vector is None:
                raise UnusableImageError(f"{items[row].uri} cannot be used: {found.reason}.")
            known[row] = found.vector
        return np.stack([known[row] for row in rows.tolist()]) if len(rows) else np.zeros((0, bundle.width), np.float32)

    return read
