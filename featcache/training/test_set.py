"""Which items of a store a head can be scored on, and two heads against each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from featcache.core.errors import MissingVectorsError, RecipeMismatchError, UnknownNameError
from featcache.store import FeatureStore
from featcache.training import multilabel
from featcache.training.bundle import Bundle
from featcache.training.dataset import FeatureDataset
from featcache.training.image_dataset import image_vectors
from featcache.training.partial_model import PartialModel

if TYPE_CHECKING:
    from featcache.backbones import Backbone


@dataclass(frozen=True, slots=True)
class Scorable:
    """Labelled items with the vectors that a head needs.

    Attributes:
        dataset: n labelled items of a source.
        rows: (m,) row numbers of those to score on.
        seen: (n,) bool, whether the head was trained on the image.
        protocol: which items these are, in words.
    """

    dataset: FeatureDataset
    rows: np.ndarray
    seen: np.ndarray
    protocol: str


def scorable(
    bundle: Bundle,
    store: FeatureStore,
    *,
    split: str | None = None,
    source: str | None = None,
    space: str | None = None,
    labels: str | Path | None = None,
    others: Sequence[Bundle] = (),
    backbone: Backbone | None = None,
) -> Scorable:
    """The items of a store to score a head on.

    Args:
        bundle: the head.
        store: the store.
        split: these; by default ``test`` where the source has it, else the items that the head was not
            trained on, nor on others of their group.
        source: which source.
        space: which space; by default the one whose recipe the head needs.
        labels: a CSV file (``path,label``) whose labels take the place of the stored ones.
        others: heads that must not have been trained on the items either.
        backbone: needed only for a network that was trained and that a module given in Python made.

    Raises:
        RecipeMismatchError: the store's vectors were made by another recipe; the fields are named.
        MissingVectorsError: there is no item to score on.
        UnknownNameError: no such split, or the head's layers are not stored.
        UsageError: a head compares two images and names no labels.
    """
    _ = [head.classifier for head in (bundle, *others)]
    dataset = vectors_for(bundle, store, source=source, space=space, labels=labels, backbone=backbone)
    seen, taken = (
        np.array([any(head.overlap([item.sha256]) for head in heads) for item in dataset.items], dtype=bool)
        for heads in ([bundle], [bundle, *others])
    )
    splits = {item.split for item in dataset.items} - {None}
    if split is None and "test" in splits:
        split = "test"
    if split is not None:
        rows = np.array([i for i, item in enumerate(dataset.items) if item.split == split], dtype=np.int64)
        if not len(rows):
            raise UnknownNameError.among("split", split, sorted(str(s) for s in splits))
        return Scorable(dataset, rows, seen, f"the split {split!r}")
    known = np.isin(dataset.units, dataset.units[taken])
    rows, mates = np.flatnonzero(~known), int((known & ~taken).sum())
    if not len(rows):
        raise MissingVectorsError(
            f"{'One of the heads' if others else 'The head'} was trained on all {len(taken)} labelled items of this "
            f"source{', or on others of their groups' if mates else ''}, so none is left to score on. Score on another "
            "source, or train without --refit-all and --cv."
        )
    protocol = "the items that neither head was trained on" if others else "the items that the head was not trained on"
    if mates:
        protocol += f", without {mates} whose group has items that {'one' if others else 'it'} was trained on"
    trained = any(len(head.trained_on) for head in (bundle, *others))
    return Scorable(dataset, rows, seen, protocol if trained else "all labelled items")


def vectors_for(
    bundle: Bundle,
    store: FeatureStore,
    *,
    source: str | None = None,
    space: str | None = None,
    labels: str | Path | None = None,
    backbone: Backbone | None = None,
) -> FeatureDataset:
    """All labelled items of a source with the vectors that a head needs; arguments and errors as in `scorable`."""
    if bundle.recipe is None:
        raise RecipeMismatchError(
            "This head was trained on vectors of unknown origin, so none in a store are known to be of their kind. "
            "Use predict_vectors with vectors of the same kind."
        )
    if bundle.weights is not None and space is None:
        return image_vectors(bundle, store, source=source, labels=labels, backbone=backbone)
    if space is None:
        matching = [s for s in store.spaces if s.recipe == bundle.recipe]
        space = matching[0].fingerprint if matching else None
    bundle.require(store.space(space).recipe)
    names = [use.name for use in bundle.layers]
    dataset = FeatureDataset.from_store(store, names, labels=labels, source=source, space=space)
    if isinstance(bundle.predictor, PartialModel):
        return replace(dataset, narrow=bundle.predictor.frozen_vectors(dataset.read))
    return multilabel.several_labels(dataset, bundle.classes) if bundle.task == "multilabel" else dataset
