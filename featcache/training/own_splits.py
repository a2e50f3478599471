"""The splits that sources have of their own."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from featcache.core.errors import UnknownNameError, UsageError
from featcache.core.progress import counted

if TYPE_CHECKING:
    from featcache.training.dataset import FeatureDataset

NOTHING = "nothing to score on"
"""The protocol of a head without a score begins so."""


def without_splits(dataset: FeatureDataset) -> np.ndarray:
    """(n,) bool, the images of sources of which no image has a split: the store's hold-out is theirs."""
    split = {item.source for item in dataset.items if item.split is not None}
    return np.array([item.source not in split for item in dataset.items], dtype=bool)


def split_rows(dataset: FeatureDataset, split: str) -> np.ndarray:
    """Row numbers of a split of the source.

    Raises:
        UnknownNameError: no image is in that split.
    """
    rows = np.array([i for i, item in enumerate(dataset.items) if item.split == split], dtype=np.int64)
    if not len(rows):
        names = sorted({item.split for item in dataset.items if item.split is not None})
        raise UnknownNameError.among("split", split, names)
    return rows


def own_splits(dataset: FeatureDataset, split: str) -> tuple[np.ndarray, np.ndarray, str]:
    """The split to train on of the sources that have splits, and ``test`` or ``val`` without what belongs to it.

    Args:
        dataset: n images, of which some have a split.
        split: the split to train on.

    Returns:
        The rows (m,) to train on, the rows (q,) to score, and which these are, in words.

    Raises:
        UnknownNameError: no image is in that split.
        UsageError: a group is on both sides.
    """
    train_rows, named = split_rows(dataset, split), {item.split for item in dataset.items} - {None}
    other = next((name for name in ("test", "val") if name in named and name != split), None)
    if other is None:
        names = ", ".join(sorted(map(str, named)))
        return (
            train_rows,
            train_rows[:0],
            (
                f"{NOTHING}: the source has the splits {names}, but no 'test' or 'val' besides {split!r}. Add one with "
                "`featcache extract --split FILE`, or score with --cv 5" + _aside(dataset, {split})
            ),
        )
    test_rows = split_rows(dataset, other)
    shared = np.isin(dataset.groups[test_rows], dataset.groups[train_rows])
    groups = {dataset.items[row].group for row in test_rows[shared]} - {None}
    if len(dataset.links):
        # A link alone does not make it the user's mistake.
        groups &= {dataset.items[row].group for row in train_rows}
    if groups:
        raise UsageError(
            f"{len(groups)} groups are on both sides of the split (first: {min(map(str, groups))!r}), so the score "
            "would be too high. Put each group on one side, or score with --cv 5."
        )
    copies = "copies and near-duplicates" if len(dataset.links) else "copies"
    aside = _aside(dataset, {split, other})
    if shared.all():
        return train_rows, test_rows[:0], f"{NOTHING}: the split {other!r} has only {copies} of training images" + aside
    without = f", without {int(shared.sum())} {copies} of training images" if shared.any() else ""
    count = counted(len(test_rows), "items")
    return train_rows, test_rows[~shared], f"the source's own split {other!r}, {count}{without}{aside}"


def _aside(dataset: FeatureDataset, taken: set[str]) -> str:
    """How many images of sources with splits are in none of the splits *taken*, in words for a protocol."""
    loose = without_splits(dataset)
    names = [item.split for item, apart in zip(dataset.items, loose, strict=True) if not apart]
    others = Counter(f"of the split {name!r}" for name in names if name is not None and name not in taken)
    told = [f"{counted(count, 'items')} {name}" for name, count in sorted(others.items())]
    told += [f"{counted(names.count(None), 'items')} without a split"] if None in names else []
    return f"; left out: {' and '.join(told)}" if told else ""
