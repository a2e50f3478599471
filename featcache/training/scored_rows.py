"""Which images of a store a head is scored on, and two heads against each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from featcache.core.errors import MissingVectorsError, RecipeMismatchError
from featcache.training import multilabel
from featcache.training.dataset import FeatureDataset
from featcache.training.holdout import held_out, learned_from, split_rows
from featcache.training.image_dataset import image_vectors
from featcache.training.partial_model import PartialModel

if TYPE_CHECKING:
    from featcache.backbones import Backbone
    from featcache.store import FeatureStore
    from featcache.training.bundle import Bundle
    from featcache.training.selection import Selection


@dataclass(frozen=True, slots=True)
class TestRows:
    """Labeled images with the vectors that a head needs.

    Attributes:
        dataset: n labeled images of a source.
        rows: (m,) row numbers to score.
        seen: (n,) bool, whether the head was trained on the image.
        protocol: which images these are, in words.
    """

    dataset: FeatureDataset
    rows: np.ndarray
    seen: np.ndarray
    protocol: str


def choose_test_rows(
    bundle: Bundle,
    store: FeatureStore,
    select: Selection,
    *,
    others: Sequence[Bundle] = (),
    backbone: Backbone | None = None,
) -> TestRows:
    """The images of a store to score a head on.

    Args:
        bundle: the head.
        store: the store.
        select: source, labels, and the space, by default the one with the head's recipe. The split is scored; by
            default ``test``, if the source has it, else the images that neither the head nor *others* were trained
            on, nor on others of their groups.
        others: further heads.
        backbone: for a network that was trained and whose architecture is a module in Python.

    Raises:
        RecipeMismatchError: the vectors have another recipe; the message names the fields.
        MissingVectorsError: no image is left to score.
        UnknownNameError: no such split, or the head's layers are not stored.
        UsageError: a head compares two images and predicts no labels.
    """
    _ = [head.classifier for head in (bundle, *others)]  # raises for a head that predicts no labels
    dataset = dataset_for(bundle, store, select, backbone)
    seen, taken = (
        np.array([any(head.overlap([item.sha256]) for head in heads) for item in dataset.items], dtype=bool)
        for heads in ([bundle], [bundle, *others])
    )
    aside = held_out(dataset, store)
    told = f"; {learned_from(count)}" if (count := int((aside & seen).sum())) else ""
    split = select.split
    if split is None and any(item.split == "test" for item in dataset.items):
        split = "test"
    if split is not None:
        return TestRows(dataset, split_rows(dataset, split), seen, f"the split {split!r}{told}")
    known = np.isin(dataset.groups, dataset.groups[taken])
    rows, mates = np.flatnonzero(~known), int((known & ~taken).sum())
    if not len(rows):
        raise MissingVectorsError(
            f"{'One of the heads' if others else 'The head'} was trained on all {len(taken)} labeled items of this "
            f"source{', or on others of their groups' if mates else ''}, so none is left to score. Score on another "
            "source, or train without --refit-all and --cv."
        )
    protocol = "the items that neither head was trained on" if others else "the items that the head was not trained on"
    if mates:
        protocol += f", without {mates} whose group has items that {'one' if others else 'it'} was trained on"
    trained = any(len(head.trained_on) for head in (bundle, *others))
    return TestRows(dataset, rows, seen, protocol + told if trained else "all labeled items")


def dataset_for(
    bundle: Bundle, store: FeatureStore, select: Selection, backbone: Backbone | None = None
) -> FeatureDataset:
    """All labeled images of a source with a head's vectors; arguments and errors as in `choose_test_rows`."""
    if bundle.recipe is None:
        raise RecipeMismatchError(
            "This head was trained on vectors of unknown origin, so it cannot be scored on a store. "
            "Use predict_vectors with vectors of the same kind."
        )
    select = select.all_splits()
    if bundle.weights is not None and select.space is None:
        return image_vectors(bundle, store, select, backbone=backbone)
    if select.space is None:
        matching = [s for s in store.spaces if s.recipe == bundle.recipe]
        select = replace(select, space=matching[0].fingerprint if matching else None)
    bundle.require(store.space(select.space).recipe)
    dataset = FeatureDataset.from_store(store, [use.name for use in bundle.layers], select)
    if isinstance(bundle.predictor, PartialModel):
        return replace(dataset, narrow=bundle.predictor.frozen_vectors(dataset.read))
    return multilabel.several_labels(dataset, bundle.classes) if bundle.task == "multilabel" else dataset
