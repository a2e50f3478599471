"""Which images of a store a head is scored on, and two heads against each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from featcache.core.errors import MissingVectorsError, RecipeMismatchError, UsageError
from featcache.core.progress import counted
from featcache.training import multilabel
from featcache.training.dataset import FeatureDataset
from featcache.training.holdout import held_out, holds_out, learned_from
from featcache.training.image_dataset import image_vectors
from featcache.training.label_notes import left_out
from featcache.training.own_splits import split_rows, without_splits
from featcache.training.partial_model import PartialModel

if TYPE_CHECKING:
    from featcache.backbones import Backbone
    from featcache.store import FeatureStore
    from featcache.training.bundle import Bundle
    from featcache.training.selection import Selection

_LISTED = 10


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
            default ``test``, if one of the sources has it. Of sources without splits, if the head or *others* were
            trained on some of the images, those that the store holds out (all, before its first hold-out) and that
            none was trained on, nor on others of their groups; else all images.
        others: further heads.
        backbone: for a network that was trained and whose architecture is a module in Python.

    Raises:
        RecipeMismatchError: the vectors have another recipe; the message names the fields.
        MissingVectorsError: no image is left to score.
        UnknownNameError: no such split, or the head's layers are not stored.
        UsageError: a head compares two images and predicts no labels, or none of the images has a class that it knows.
    """
    heads = (bundle, *others)
    _ = [head.classifier for head in heads]  # raises for a head that predicts no labels
    dataset = dataset_for(bundle, store, select, backbone)
    found = _choose(heads, dataset, store, select.split)
    for head in heads:
        _check_common_classes(head, dataset, found.rows)
    return replace(found, protocol="; ".join(filter(None, (found.protocol, left_out(dataset)))))


def _choose(heads: Sequence[Bundle], dataset: FeatureDataset, store: FeatureStore, split: str | None) -> TestRows:
    """The rows of `choose_test_rows` for the first of the heads."""
    seen, taken = (
        np.array([any(head.overlap([item.sha256]) for head in some) for item in dataset.items], dtype=bool)
        for some in (heads[:1], heads)
    )
    others = len(heads) > 1
    told = learned_from(dataset, np.flatnonzero(seen), store)
    if split is not None:
        return TestRows(dataset, split_rows(dataset, split), seen, f"the split {split!r}{told}")
    loose = without_splits(dataset)
    if any(item.split == "test" for item in dataset.items):
        rows, protocol = split_rows(dataset, "test"), "the split 'test'"
        if loose.any():
            # As `train` scores several sources.
            aside = held_out(dataset, store) if taken.any() and holds_out(dataset, store) else loose
            free = np.flatnonzero(loose & aside & ~np.isin(dataset.groups, dataset.groups[taken]))
            rows = np.union1d(rows, free)
            which = "held-out items" if taken.any() else "items"
            protocol += f", and {counted(len(free), which)} of the sources without splits"
        return TestRows(dataset, rows, seen, protocol + told)
    if not taken.any():
        protocol = "all labeled items"
        if any(len(head.trained_on) for head in heads):
            protocol += f"; {'the heads were' if others else 'the head was'} trained on none of them"
        return TestRows(dataset, np.arange(len(taken)), seen, protocol)
    known = np.isin(dataset.groups, dataset.groups[taken])
    mates = int((known & ~taken).sum())
    aside = np.ones(len(taken), dtype=bool)
    if holds_out(dataset, store):
        aside = held_out(dataset, store) | ~loose
    rows, left = np.flatnonzero(aside & ~known), int((~aside & ~known).sum())
    if not len(rows):
        most = f"all {len(taken)}" if not left else f"{int(taken.sum())} of the {len(taken)}"
        told = f" The {counted(left, 'others')} are not held out." if left else ""
        raise MissingVectorsError(
            f"{'One of the heads' if others else 'The head'} was trained on {most} labeled items of this "
            f"source{', or on others of their groups' if mates else ''}, so none is left to score.{told} The score "
            "that `train` printed is in its report. For another, score on another source, or train without --refit-all "
            "and --cv."
        )
    kind = "items" if aside.all() else "held-out items"
    protocol = f"the {kind} that {'neither head was' if others else 'the head was not'} trained on"
    if mates:
        protocol += f", without {mates} whose group has items that {'one' if others else 'it'} was trained on"
    if left:
        protocol += f"; {counted(left, 'other items')} left out, because the store does not hold them out"
    return TestRows(dataset, rows, seen, protocol + told)


def _check_common_classes(head: Bundle, dataset: FeatureDataset, rows: np.ndarray) -> None:
    """Check that some of the rows to score have a class of the head: else every answer is wrong beforehand.

    Raises:
        UsageError: none has; the message names both sets of classes.
    """
    y = dataset.y[rows]
    found = set(y.tolist()) if dataset.labels is None else set(np.array(dataset.labels)[y.any(axis=0)].tolist())
    if found and found.isdisjoint(head.classes):
        raise UsageError(
            f"None of the {len(rows)} items to score has a class that the head {head.head} knows, so a score would say "
            f"nothing. The head knows {_listed(head.classes)}; the items have {_listed(sorted(found))}. Score on a "
            "source or split with classes of the head; if it was trained with other labels than those stored, give "
            "them here too (--labels, --labels-only)."
        )


def _listed(classes: Sequence[str]) -> str:
    return ", ".join(map(repr, classes[:_LISTED])) + (f" and {n} more" if (n := len(classes) - _LISTED) > 0 else "")


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
        return replace(dataset, narrow=bundle.predictor.frozen_vectors)
    return multilabel.several_labels(dataset, bundle.classes) if bundle.task == "multilabel" else dataset
