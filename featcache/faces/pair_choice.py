"""Which pairs are scored: those of a list, or drawn ones; and that a head was trained on nobody in them.

That is looked at by name and by content, since the same pictures may be in a store twice, in two sources with other
names for people, or with none.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from featcache.core.errors import UsageError
from featcache.faces.pairs import Pairs, read_pairs
from featcache.faces.sample_pairs import draw_pairs, largest_draw
from featcache.store.spaces import Item
from featcache.training.bundle import Bundle

FOLDS, EACH = 10, 300


def pairs_of_list(path: str | Path, items: Sequence[Item], head: Bundle | None) -> tuple[Pairs, str]:
    """The pairs of a list as places in *items*, and where they come from in words.

    Raises:
        SourceError: the list cannot be read, or does not fit the images or their labels.
        UsageError: the head was trained on people or images of these pairs.
    """
    pairs = read_pairs(
        path,
        [item.uri for item in items],
        labels=[item.label for item in items],
        sha256=[item.sha256 for item in items],
    )
    if head is not None:
        _refuse_known(head, items, np.unique(pairs.images))
    return pairs, f"the pairs of {path}"


def drawn_pairs(items: Sequence[Item], usable: Collection[str], head: Bundle | None, seed: int) -> tuple[Pairs, str]:
    """Pairs drawn from the *items* that have vectors, as places in these, and how they were drawn in words.

    People whom the head was trained on, by name or by an image, take no part.

    Args:
        items: of one source.
        usable: URIs of those that have vectors.
        head: the head, if there is one.
        seed: of the draw.

    Raises:
        UsageError: there are too few people or images.
    """
    known = set() if head is None else _known_people(head, items)
    trained = set() if head is None else {item.sha256 for item in items if head.overlap([item.sha256])}
    free = [item.uri in usable and item.label not in known and item.sha256 not in trained for item in items]
    labels = [item.label if may else None for item, may in zip(items, free, strict=True)]
    contents = [item.sha256 for item in items]
    try:
        folds, each = largest_draw(labels, folds=FOLDS, each=EACH, seed=seed, sha256=contents)
    except UsageError as error:
        if not known:
            raise
        raise UsageError(f"{error} The head was trained on {len(known)} more people, who take no part.") from None
    drawn = draw_pairs(labels, folds=folds, each=each, seed=seed, sha256=contents)
    return drawn, f"{folds} folds of {each} + {each} pairs that share no person, drawn with seed {seed}"


def people_of(pairs: Pairs, items: Sequence[Item]) -> np.ndarray:
    """(n, 2) numbers of the people on the pairs; images without a label are of one person where pairs say so."""
    labels = sorted({item.label for item in items if item.label is not None})
    number = {label: len(items) + i for i, label in enumerate(labels)}
    named = [(i, number[item.label]) for i, item in enumerate(items) if item.label is not None]
    links = np.concatenate([np.array(named, dtype=np.int64).reshape(-1, 2), pairs.images[pairs.same]])
    size = len(items) + len(labels)
    _, person = connected_components(coo_array((np.ones(len(links)), tuple(links.T)), shape=(size, size)), False)
    return np.asarray(person[pairs.images], dtype=np.int64)


def _known_people(head: Bundle, items: Sequence[Item]) -> set[str]:
    """The labels of those whom the head knows by name, or of whom it was trained on an image."""
    names = set(head.classes)
    return {
        item.label for item in items if item.label is not None and (item.label in names or head.overlap([item.sha256]))
    }


def _refuse_known(head: Bundle, items: Sequence[Item], images: np.ndarray) -> None:
    people = {label for i in images if (label := items[i].label) is not None}
    advice = "so its score would be too good. Train on others (a split, another source), or score without --head."
    trained = sorted(items[i].uri for i in images if head.overlap([items[i].sha256]))
    if trained:
        raise UsageError(
            f"The head was trained on {len(trained)} of the {len(images)} images in these pairs (first: "
            f"{trained[0]!r}), {advice}"
        )
    known = sorted(people & _known_people(head, items))
    if known:
        raise UsageError(
            f"The head was trained on {len(known)} of the {len(people)} people in these pairs (first: {known[0]!r}), "
            f"{advice}"
        )
