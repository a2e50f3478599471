"""The items of a training: which of them decide when it ends, their class ids and a digest of them."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from featcache.core.errors import UsageError
from featcache.metrics.splits import set_aside

if TYPE_CHECKING:
    from featcache.core.progress import Progress
    from featcache.training.dataset import FeatureDataset

SHARE = 0.15


def validation_rows(
    dataset: FeatureDataset, train_rows: np.ndarray, scored: np.ndarray, seed: int, progress: Progress
) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on, and rows to validate on.

    The source's own split ``val`` validates, unless it is trained or scored on; its items of classes that are not
    trained are left out. Otherwise part of the training rows is set aside, the same share of each class and whole
    groups. A group that is trained on is not validated on.

    Args:
        dataset: labeled items.
        train_rows: (m,) rows to train on, without validation.
        scored: rows that the result is scored on.
        seed: of the draw.
        progress: gets a note on classes without a validation item.

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
        chosen = set_aside(dataset.y[train_rows], keys, SHARE, seed)
        aside = np.array([chosen[key] for key in keys])
        # A unit of several classes may hold all items of one of them; then it is trained on.
        alone = ~np.isin(dataset.y[train_rows], dataset.y[train_rows[~aside]])
        aside &= ~np.isin(dataset.groups[train_rows], dataset.groups[train_rows[alone]])
        fit, validation = train_rows[~aside], train_rows[aside]
    if not len(validation) or not len(fit):
        raise UsageError(
            f"None of the {len(train_rows)} training items can be set aside for validation: every class needs two "
            "independent images or more."
        )
    known = set(dataset.y[fit].tolist())
    unlearned = sorted(set(dataset.y[train_rows].tolist()) - known)
    if unlearned:
        raise UsageError(
            f"All training items of class {unlearned[0]!r} are in groups with items of the split 'val', so none is "
            "left to train on. Put each group into one split."
        )
    missing = sorted(known - set(dataset.y[validation].tolist()))
    if missing:
        listed = ", ".join(repr(name) for name in missing[:3]) + (" …" if len(missing) > 3 else "")
        progress.note(
            f"{len(missing)} of {len(known)} classes ({listed}) have no item that validates, so the training ends "
            "without regard to them."
        )
    return fit, validation


def class_ids_of(y: np.ndarray, train_rows: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
    """The classes that are learned, and the class id of each item.

    Args:
        y: (n,) labels.
        train_rows: (m,) rows to learn from; a class that none of them has is not known.

    Returns:
        k labels in sorted order, and (n,) int64 from 0 on, -1 where the class is not known.
    """
    names = np.unique(y[train_rows])
    class_ids = np.where(np.isin(y, names), np.searchsorted(names, y), -1)
    return tuple(str(name) for name in names), class_ids.astype(np.int64)


def items_digest(dataset: FeatureDataset, fit: np.ndarray, validation: np.ndarray) -> str:
    """SHA-256 of the items trained and validated on, in order, with their labels: 64 hexadecimal digits."""
    total = hashlib.sha256()
    for rows in (fit, validation):
        for row in rows.tolist():
            total.update(dataset.items[row].sha256 + str(dataset.y[row]).encode("utf-8", "surrogatepass") + b"\0")
        total.update(b"\1")
    return total.hexdigest()
