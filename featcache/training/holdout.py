"""Which images a head is trained on, and which it is scored on.

The source's own splits count. Without splits a hold-out is drawn once and kept in the catalogue, so that all heads of a
source are scored on the same images. A head that keeps near-duplicates together cannot always use that hold-out; then
it gets its own, and the one in the catalogue stays. Images that share content or a group with a training image are not
scored.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from featcache.core.errors import MissingVectorsError, StoreError, UnknownNameError, UsageError
from featcache.core.progress import Progress, counted
from featcache.metrics import multilabel as multilabel_splits
from featcache.metrics import splits
from featcache.store import FeatureStore, sources
from featcache.training import multilabel

if TYPE_CHECKING:
    from featcache.training.dataset import FeatureDataset

HOLDOUT = 0.2


def check_classes(dataset: FeatureDataset) -> None:
    """Check that there are classes to tell apart.

    Raises:
        UsageError: there is only one class.
        MissingVectorsError: likewise, but other labeled images have no vectors yet.
    """
    if dataset.labels is not None:
        multilabel.check_labels(dataset)
        return
    names = sorted(set(dataset.y.tolist()))
    if len(names) < 2:
        one = f"All {len(dataset.y)} labeled items are of one class, {names[0]!r}; a head needs two or more. "
        if len(dataset.y) == 1:
            one = f"There is only one labeled item, of class {names[0]!r}; a head needs items of two or more classes. "
        if dataset.without_vectors:
            raise MissingVectorsError(
                re.sub("labeled items?", r"\g<0> with vectors", one)
                + f"{dataset.without_vectors} more have no vectors: run `featcache extract` to compute them."
            )
        raise UsageError(one + "Put the images into one folder per class, or give --labels FILE.")


def train_test_split(
    dataset: FeatureDataset, split: str | None, seed: int, store: FeatureStore | None, progress: Progress
) -> tuple[np.ndarray, np.ndarray, str]:
    """Rows to train on, rows to score, and the protocol in words.

    Args:
        dataset: labeled vectors of one source.
        split: the split to train on; ``train`` by default, if the source has splits.
        seed: of the hold-out.
        store: keeps the hold-out in its catalogue; None to draw it each time.
        progress: gets a note if the hold-out cannot be kept.

    Raises:
        UnknownNameError: no such split.
        UsageError: no other split to score on, a group on both sides, only one class to train on, or nothing left to
            score.
    """
    named = {item.split for item in dataset.items} - {None}
    if named:
        train_rows = split_rows(dataset, split or "train")
        for other in ("test", "val"):
            if other in named and other != (split or "train"):
                test = split_rows(dataset, other)
                return _without_leaks(
                    dataset, train_rows, test, f"the source's own split {other!r}, {counted(len(test), 'items')}"
                )
        raise UsageError(
            f"The source has the splits {', '.join(sorted(str(n) for n in named))}, but no 'test' or 'val' to score on "
            f"besides {split or 'train'!r}. Add one with `featcache extract --split FILE`, or score with --cv 5."
        )
    if split is not None:
        raise UnknownNameError(
            f"There is no split {split!r}: the source has no splits. Omit --split, or add splits with "
            "`featcache extract --split FILE`."
        )
    parts, words = _holdout(dataset, seed, store, progress)
    train_rows, test = np.flatnonzero(parts == "train"), np.flatnonzero(parts == "test")
    if not len(test):
        raise UsageError(
            f"Nothing can be held out of {counted(len(train_rows), 'labeled items')} to score a head on. Add images: "
            "each class needs several that are not copies of one another."
        )
    return _without_leaks(
        dataset, train_rows, test, f"a hold-out of {counted(len(test), 'items')} (one in five, {words})"
    )


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


def _without_leaks(
    dataset: FeatureDataset, train_rows: np.ndarray, test: np.ndarray, protocol: str
) -> tuple[np.ndarray, np.ndarray, str]:
    """The same without the rows to score that share content or a link with a training row."""
    names = sorted(set(dataset.y[train_rows].tolist())) if dataset.labels is None else dataset.labels
    if len(names) < 2:
        raise UsageError(
            f"All training images have the class {names[0]!r}: the other classes are only in the part that is scored. "
            "Change the split, or score with --cv 5."
        )
    shared = np.isin(dataset.groups[test], dataset.groups[train_rows])
    if not shared.any():
        return train_rows, test, protocol
    groups = {dataset.items[row].group for row in test[shared]} - {None}
    if len(dataset.links):
        # A link alone does not make it the user's mistake.
        groups &= {dataset.items[row].group for row in train_rows}
    if groups:
        raise UsageError(
            f"{len(groups)} groups are on both sides of the split (first: {min(map(str, groups))!r}), so the score "
            "would be too high. Put each group on one side, or score with --cv 5."
        )
    if shared.all():
        raise UsageError("Every image to score is a copy of a training image. Change the split.")
    copies = "copies and near-duplicates" if len(dataset.links) else "copies"
    return train_rows, test[~shared], f"{protocol}, without {int(shared.sum())} {copies} of training images"


def _holdout(
    dataset: FeatureDataset, seed: int, store: FeatureStore | None, progress: Progress
) -> tuple[np.ndarray, str]:
    """``train`` or ``test`` for each row, and how that was decided; kept in the catalogue."""
    keys = splits.unit_keys(dataset.items, dataset.links)
    kept: dict[bytes, str] = {}
    if store is not None:
        kept = store.holdout(dataset.items[0].source)
    # Links make other groups, on which the hold-out of other heads must not depend.
    shared = not (kept and len(dataset.links))
    decided, torn = splits.decided_units(keys, [kept.get(item.sha256) for item in dataset.items])
    words = "the same as for earlier heads" if decided else f"seed {seed}"
    draw = splits.draw_holdout if dataset.labels is None else multilabel_splits.draw_holdout
    parts = draw(dataset.y, keys, fraction=HOLDOUT, seed=seed, decided=decided)
    if torn and list(parts.values()).count("test") < HOLDOUT / 2 * len(parts):
        decided, words = {}, f"drawn again, because too many had near-duplicates on the other side; seed {seed}"
        parts = draw(dataset.y, keys, fraction=HOLDOUT, seed=seed)
    elif torn:
        without = sum(
            kept.get(item.sha256) == "test" and key in torn for item, key in zip(dataset.items, keys, strict=True)
        )
        words += f", without {without} that belong together with training images"
    if dataset.labels is None:
        learned = {str(label) for label, key in zip(dataset.y, keys, strict=True) if parts[key] == "train"}
        relabeled = {key for label, key in zip(dataset.y, keys, strict=True) if str(label) not in learned}
    else:
        relabeled = multilabel_splits.held_out_alone(dataset.y, keys, parts)
    if relabeled:
        # Labels changed after the draw, and all of a class is in the hold-out: draw that class again.
        decided = {key: part for key, part in decided.items() if key not in relabeled}
        parts = draw(dataset.y, keys, fraction=HOLDOUT, seed=seed, decided=decided)
    if not shared:
        if any(kept.get(item.sha256, parts[key]) != parts[key] for key, item in zip(keys, dataset.items, strict=True)):
            words = f"this head's own, because near-duplicates are kept together: {words}"
        return np.array([parts[key] for key in keys]), words
    new = {item.sha256: parts[key] for key, item in zip(keys, dataset.items, strict=True)}
    if store is not None and any(kept.get(sha256) != part for sha256, part in new.items()):
        try:
            sources.save_holdout(store.path, dataset.items[0].source, new)
        except StoreError as error:
            progress.note(f"The hold-out could not be kept in the store, so it may differ next time: {error}")
    return np.array([parts[key] for key in keys]), words
