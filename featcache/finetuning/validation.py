"""Which of the items that are learned from decide when a training ends.

Which items a training is of, and the numbers of their classes.
"""

from __future__ import annotations

import hashlib

import numpy as np

from featcache.core.errors import UsageError
from featcache.core.progress import Progress
from featcache.metrics.splits import draw_holdout
from featcache.training.dataset import FeatureDataset

SHARE = 0.15


def validation_rows(
    dataset: FeatureDataset, train_rows: np.ndarray, scored: np.ndarray, seed: int, shown: Progress
) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on, and rows to validate on.

    The source's own split ``val`` validates where it is neither learned from nor scored on, but for its items of
    classes that nobody learns; else a part of the rows to learn from is set aside, in each class the same share and
    whole units. A unit that is trained on is not validated on.

    Args:
        dataset: labelled items.
        train_rows: (m,) rows to learn from.
        scored: rows that the result is scored on.
        seed: of the draw.
        shown: is told of classes that no item validates.

    Raises:
        UsageError: no item is left to validate on.
    """
    own = np.array([i for i, item in enumerate(dataset.items) if item.split == "val"], dtype=np.int64)
    own = np.setdiff1d(own[~np.isin(dataset.groups[own], dataset.groups[scored])], train_rows)
    own = own[np.isin(dataset.y[own], dataset.y[train_rows])]
    if len(own):
        fit, validation = train_rows[~np.isin(dataset.groups[train_rows], dataset.groups[own])], own
    else:
        keys = [str(unit) for unit in dataset.groups[train_rows]]
        parts = draw_holdout(dataset.y[train_rows], keys, fraction=SHARE, seed=seed)
        aside = np.array([parts[key] == "test" for key in keys])
        # A unit of several classes may hold all items of one of them; then it is trained on.
        alone = ~np.isin(dataset.y[train_rows], dataset.y[train_rows[~aside]])
        aside &= ~np.isin(dataset.groups[train_rows], dataset.groups[train_rows[alone]])
        fit, validation = train_rows[~aside], train_rows[aside]
    if not len(validation) or not len(fit):
        raise UsageError(
            f"Of the {len(train_rows)} items to learn from none can be set aside to tell when the training should end: "
            "every class needs two independent images or more."
        )
    known = set(dataset.y[fit].tolist())
    unlearned = sorted(set(dataset.y[train_rows].tolist()) - known)
    if unlearned:
        raise UsageError(
            f"All items of class {unlearned[0]!r} that are learned from belong together with some of the split 'val', "
            "so none is left to train on. Put each group on one side."
        )
    missing = sorted(known - set(dataset.y[validation].tolist()))
    if missing:
        listed = ", ".join(repr(name) for name in missing[:3]) + (" …" if len(missing) > 3 else "")
        shown.note(
            f"{len(missing)} of {len(known)} classes ({listed}) have no item that validates, so the training ends "
            "without regard to them."
        )
    return fit, validation


def class_numbers(y: np.ndarray, train_rows: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
    """The classes that are learned, and the number of each item's.

    Args:
        y: (n,) labels.
        train_rows: (m,) rows to learn from; a class that none of them has is not known.

    Returns:
        k labels in sorted order, and (n,) int64 from 0 on, -1 where the class is not known.
    """
    names = np.unique(y[train_rows])
    numbers = np.where(np.isin(y, names), np.searchsorted(names, y), -1)
    return tuple(str(name) for name in names), numbers.astype(np.int64)


def contents(dataset: FeatureDataset, rows: np.ndarray) -> np.ndarray:
    """(c, 32) uint8: the sorted SHA-256s of the items of these rows, each once."""
    found = sorted({dataset.items[row].sha256 for row in rows.tolist()})
    return np.frombuffer(b"".join(found), dtype=np.uint8).reshape(-1, 32)


def items_digest(dataset: FeatureDataset, fit: np.ndarray, validation: np.ndarray) -> str:
    """SHA-256 of the items trained and validated on, in order, with their labels: 64 hexadecimal digits."""
    total = hashlib.sha256()
    for rows in (fit, validation):
        for row in rows.tolist():
            total.update(dataset.items[row].sha256 + str(dataset.y[row]).encode("utf-8", "surrogatepass") + b"\0")
        total.update(b"\1")
    return total.hexdigest()
