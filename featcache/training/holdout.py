"""Which labelled items a head learns from, and which it is scored on.

The source's own split counts; where it has none, a hold-out is drawn once and kept in the catalogue, so all
heads of a source are scored on the same items. A head that keeps near-duplicates together cannot always use that
hold-out; then it gets one of its own, and the one that is kept stays. What shares its content or its group with a
learned item is not scored on.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from featcache.core.errors import MissingVectorsError, StoreError, UnknownNameError, UsageError
from featcache.core.progress import Progress, counted
from featcache.metrics import multilabel as multilabel_splits
from featcache.metrics import splits
from featcache.store import FeatureStore, sources
from featcache.training import multilabel
from featcache.training.dataset import FeatureDataset

HOLDOUT = 0.2


def check_classes(dataset: FeatureDataset) -> None:
    """Refuse labels that leave nothing to learn.

    Raises:
        UsageError: there is one class alone.
        MissingVectorsError: likewise, but other labelled images have no vectors.
    """
    if dataset.labels is not None:
        multilabel.check_labels(dataset)
        return
    names = sorted(set(dataset.y.tolist()))
    if len(names) < 2:
        one = f"All {len(dataset.y)} labelled items are of one class, {names[0]!r}; a head needs two or more. "
        if len(dataset.y) == 1:
            one = (
                f"There is one labelled item alone, of class {names[0]!r}; a head needs items of two classes or more. "
            )
        if dataset.without_vectors:
            raise MissingVectorsError(
                re.sub("labelled items?", r"\g<0> with vectors", one)
                + f"{dataset.without_vectors} more have no vectors: run `featcache extract` to compute them."
            )
        raise UsageError(one + "Put the images into one folder a class, or give --labels FILE.")


def train_test_split(
    dataset: FeatureDataset, split: str | None, seed: int, store: Path | None, shown: Progress
) -> tuple[np.ndarray, np.ndarray, str]:
    """Rows to learn from, rows to score on, and the protocol in words.

    Args:
        dataset: labelled vectors of one source.
        split: learn from this split; ``train`` by default where the source has splits.
        seed: of the hold-out.
        store: whose catalogue keeps the hold-out; None to keep it nowhere.
        shown: is told where the hold-out could not be kept.

    Raises:
        UnknownNameError: no such split.
        UsageError: no other split to score on, a group stands on both sides, all learned items are of one class,
            or nothing is left to score on.
    """
    named = {item.split for item in dataset.items} - {None}
    if named:
        train_rows = of_split(dataset, split or "train")
        for other in ("test", "val"):
            if other in named and other != (split or "train"):
                test = of_split(dataset, other)
                return _never_learned(
                    dataset, train_rows, test, f"the source's own split {other!r}, {counted(len(test), 'items')}"
                )
        raise UsageError(
            f"The source has the splits {', '.join(sorted(str(n) for n in named))}, but besides {split or 'train'!r}, "
            "which is learned from, no 'test' or 'val' to score on. Give one with `featcache extract --split FILE`, "
            "or score with --cv 5."
        )
    if split is not None:
        raise UnknownNameError(
            f"No split is called {split!r}: the source has none. Leave --split away, or give the source a split "
            "with `featcache extract --split`."
        )
    drawn, words = _holdout(dataset, seed, store, shown)
    train_rows, test = np.flatnonzero(drawn == "train"), np.flatnonzero(drawn == "test")
    return _never_learned(
        dataset, train_rows, test, f"a hold-out of {counted(len(test), 'items')} (one in five, {words})"
    )


def of_split(dataset: FeatureDataset, split: str) -> np.ndarray:
    """The rows of a split of the source.

    Raises:
        UnknownNameError: no item is of it; those there are are named.
    """
    rows = np.array([i for i, item in enumerate(dataset.items) if item.split == split], dtype=np.int64)
    if not len(rows):
        names = sorted({item.split for item in dataset.items if item.split is not None})
        raise UnknownNameError.among("split", split, names)
    return rows


def _never_learned(
    dataset: FeatureDataset, train_rows: np.ndarray, test: np.ndarray, protocol: str
) -> tuple[np.ndarray, np.ndarray, str]:
    """The same without the rows to score on that share content or a link with a learned one."""
    names = sorted(set(dataset.y[train_rows].tolist())) if dataset.labels is None else dataset.labels
    if len(names) < 2:
        raise UsageError(
            f"All items to learn from are of one class, {names[0]!r}, as the others belong to the part that is scored. "
            "Split the items otherwise, or score with --cv 5."
        )
    shared = np.isin(dataset.units[test], dataset.units[train_rows])
    if not shared.any():
        return train_rows, test, protocol
    groups = {dataset.items[row].group for row in test[shared]} - {None}
    if len(dataset.links):
        # A near-duplicate of a learned image is no reason to refuse the group that it is in.
        groups &= {dataset.items[row].group for row in train_rows}
    if groups:
        raise UsageError(
            f"{len(groups)} groups stand on both sides of the split (first: {min(map(str, groups))!r}), so the score "
            "would be one of items that are half known. Put each group on one side, or score with --cv 5."
        )
    if shared.all():
        raise UsageError("Every item to score on is a copy of one that is learned from. Split the items otherwise.")
    copies = "copies and near-duplicates" if len(dataset.links) else "copies"
    return train_rows, test[~shared], f"{protocol}, without {int(shared.sum())} {copies} of learned ones"


def _holdout(dataset: FeatureDataset, seed: int, store: Path | None, shown: Progress) -> tuple[np.ndarray, str]:
    """``train`` or ``test`` for each row, and how that was decided; kept in the catalogue."""
    keys = splits.unit_keys(dataset.items, dataset.links)
    kept: dict[bytes, str] = {}
    if store is not None:
        kept = FeatureStore.open(store).holdout(dataset.items[0].source)
    # With links there are other units, which the hold-out of the other heads must not depend on.
    shared = not (kept and len(dataset.links))
    decided, torn = splits.decided_units(keys, [kept.get(item.sha256) for item in dataset.items])
    words = "the same as for earlier heads" if decided else f"seed {seed}"
    draw = splits.draw_holdout if dataset.labels is None else multilabel_splits.draw_holdout
    parts = draw(dataset.y, keys, fraction=HOLDOUT, seed=seed, decided=decided)
    if torn and list(parts.values()).count("test") < HOLDOUT / 2 * len(parts):
        decided, words = {}, f"drawn anew, as too many had near-duplicates on the other side; seed {seed}"
        parts = draw(dataset.y, keys, fraction=HOLDOUT, seed=seed)
    elif torn:
        without = sum(
            kept.get(item.sha256) == "test" and key in torn for item, key in zip(dataset.items, keys, strict=True)
        )
        words += f", without {without} that belong together with learned ones"
    if dataset.labels is None:
        learned = {str(label) for label, key in zip(dataset.y, keys, strict=True) if parts[key] == "train"}
        relabelled = {key for label, key in zip(dataset.y, keys, strict=True) if str(label) not in learned}
    else:
        relabelled = multilabel_splits.held_out_alone(dataset.y, keys, parts)
    if relabelled:
        # Labels were changed after the draw, and a class lies in the hold-out altogether: drawn anew.
        decided = {key: part for key, part in decided.items() if key not in relabelled}
        parts = draw(dataset.y, keys, fraction=HOLDOUT, seed=seed, decided=decided)
    if not shared:
        if any(kept.get(item.sha256, parts[key]) != parts[key] for key, item in zip(keys, dataset.items, strict=True)):
            words = f"this head's own, as near-duplicates stay together: {words}"
        return np.array([parts[key] for key in keys]), words
    new = {item.sha256: parts[key] for key, item in zip(keys, dataset.items, strict=True)}
    if store is not None and any(kept.get(sha256) != part for sha256, part in new.items()):
        try:
            sources.save_holdout(store, dataset.items[0].source, new)
        except StoreError as error:
            shown.note(f"The hold-out could not be kept in the store, so it may differ next time: {error}")
    return np.array([parts[key] for key in keys]), words
