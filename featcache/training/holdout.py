"""Which images a head is trained on, and which it is scored on.

The source's own splits count. Without splits the store's hold-out is scored (`featcache.metrics.holdout`): by content,
the same for all heads and sources. Images that share content or a group with a training image are not scored.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from featcache.core.errors import DamagedStoreError, MissingVectorsError, StoreError, UnknownNameError, UsageError
from featcache.core.progress import Progress, counted
from featcache.metrics import holdout
from featcache.store import FeatureStore, sources
from featcache.training import multilabel

if TYPE_CHECKING:
    from featcache.training.dataset import FeatureDataset

NOTHING = "nothing to score on"
"""The protocol of a head without a score begins so."""
_NAMED = 3


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

    There may be nothing to score on; the protocol then begins with `NOTHING` and says why.

    Args:
        dataset: labeled vectors.
        split: the split to train on; ``train`` by default, if the source has splits.
        seed: of the store's hold-out, if none was drawn yet.
        store: keeps the hold-out in its catalogue; None to draw it each time.
        progress: gets notes: classes that are held out whole, or a hold-out that cannot be kept.

    Raises:
        UnknownNameError: no such split.
        UsageError: a group on both sides, or fewer than two classes to train on.
    """
    if has_splits(dataset):
        train_rows, test_rows, protocol = _own_splits(dataset, split or "train")
        if store is not None and (before := recorded_test(dataset, store)[train_rows].sum()):
            protocol += f"; {learned_from(int(before))}"
    elif split is not None:
        raise UnknownNameError(
            f"There is no split {split!r}: the source has no splits. Omit --split, or add splits with "
            "`featcache extract --split FILE`."
        )
    else:
        train_rows, test_rows, protocol = _held_out(dataset, seed, store, progress)
    names = sorted(set(dataset.y[train_rows].tolist())) if dataset.labels is None else dataset.labels
    if len(names) < 2:
        raise UsageError(
            f"All training images have the class {names[0]!r}: the other classes are only in the part that is scored. "
            "Change the split, or score with --cv 5."
            if names else
            "All labeled images are held out or belong together with held-out ones, so none is left to train on. Add "
            "images, or score with --cv 5."
        )  # fmt: skip
    return train_rows, test_rows, protocol


def has_splits(dataset: FeatureDataset) -> bool:
    """Whether the source has splits of its own."""
    return any(item.split is not None for item in dataset.items)


def recorded_test(dataset: FeatureDataset, store: FeatureStore) -> np.ndarray:
    """(n,) bool, which images some head of the store was scored on as its hold-out."""
    sides = store.sides()
    return np.array([sides.get(item.sha256, ("", ""))[0] == holdout.TEST for item in dataset.items], dtype=bool)


def held_out(dataset: FeatureDataset, store: FeatureStore | None, seed: int = 0) -> np.ndarray:
    """(n,) bool, which images the store holds out: by record and, without splits of the source, by the rule."""
    if store is None or has_splits(dataset):
        return np.zeros(len(dataset.items), bool) if store is None else recorded_test(dataset, store)
    known, drawn_seed = _known(store)
    return holdout.held_out(dataset.items, known, seed if drawn_seed is None else drawn_seed)


def learned_from(count: int) -> str:
    """In words, that a head has learned from held-out images."""
    return f"the head has learned from {counted(count, 'items')} that the store holds out"


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


def _own_splits(dataset: FeatureDataset, split: str) -> tuple[np.ndarray, np.ndarray, str]:
    """The source's own split to train on, and ``test`` or ``val`` without what belongs together with it."""
    train_rows, named = split_rows(dataset, split), {item.split for item in dataset.items} - {None}
    other = next((name for name in ("test", "val") if name in named and name != split), None)
    if other is None:
        names = ", ".join(sorted(map(str, named)))
        return (
            train_rows,
            train_rows[:0],
            (
                f"{NOTHING}: the source has the splits {names}, but no 'test' or 'val' besides {split!r}. Add one with "
                "`featcache extract --split FILE`, or score with --cv 5"
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
    if shared.all():
        return train_rows, test_rows[:0], f"{NOTHING}: the split {other!r} has only {copies} of training images"
    without = f", without {int(shared.sum())} {copies} of training images" if shared.any() else ""
    count = counted(len(test_rows), "items")
    return train_rows, test_rows[~shared], f"the source's own split {other!r}, {count}{without}"


def _held_out(
    dataset: FeatureDataset, seed: int, store: FeatureStore | None, progress: Progress
) -> tuple[np.ndarray, np.ndarray, str]:
    """The sides by the store's hold-out, which is recorded in the catalogue."""
    drawn, seed = _drawn(dataset, seed, store, progress)
    train_rows, test_rows = np.flatnonzero(drawn.train), np.flatnonzero(drawn.test)
    if len(test_rows):
        words = f"a hold-out of {len(test_rows):,} of {counted(len(dataset.items), 'items')} (by content, seed {seed})"
    else:
        words = f"{NOTHING}: each class has one image, or copies of one"
    if drawn.topped_up:
        words += f"; {drawn.topped_up:,} of them taken because their class had none"
    if neither := len(dataset.items) - len(train_rows) - len(test_rows):
        words += f"; {counted(neither, 'items')} left out, because they belong together with held-out ones"
    if drawn.unlearned:
        names = [name if dataset.labels is None else dataset.labels[int(name)] for name in drawn.unlearned]
        listed = ", ".join(map(repr, names[:_NAMED])) + (" …" if len(names) > _NAMED else "")
        words += f"; not learned, because all their items are held out: {listed}"
        progress.note(
            f"Not learned, because all their items are held out: {listed}. Add images of them, or train with "
            "--refit-all or --cv."
        )
    return train_rows, test_rows, words


def _drawn(
    dataset: FeatureDataset, seed: int, store: FeatureStore | None, progress: Progress
) -> tuple[holdout.Holdout, int]:
    """The sides of all rows and the seed of the hold-out, both settled in the catalogue."""
    if store is None:
        return holdout.draw(dataset.items, dataset.y, dataset.groups, {}, seed), seed
    known, settled = _known(store)
    while True:
        seed = seed if settled is None else settled
        drawn = holdout.draw(dataset.items, dataset.y, dataset.groups, known, seed)
        if settled is not None and not drawn.records:
            return drawn, seed
        try:
            for note in sources.save_holdout(store.path, seed, drawn.records):
                progress.note(note)
        except StoreError as error:
            progress.note(f"The hold-out could not be kept in the store, so it may differ next time: {error}")
            return drawn, seed
        # Another process may have been first: then what it recorded counts.
        known, settled = _known(store)
        if settled == seed and all(known.get(sha256) == part for sha256, (part, _) in drawn.records.items()):
            return drawn, seed


def _known(store: FeatureStore) -> tuple[dict[bytes, str], int | None]:
    """The recorded sides, and the seed, or None before the first hold-out."""
    seed = store.settings().get(holdout.SEED)
    try:
        settled = None if seed is None else int(seed)
    except ValueError:
        raise DamagedStoreError(
            f"The setting {holdout.SEED} of {store.path} is {seed!r}, not a number. Run `featcache verify`."
        ) from None
    return {sha256: part for sha256, (part, _) in store.sides().items()}, settled
