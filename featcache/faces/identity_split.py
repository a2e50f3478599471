"""Train and test rows for face verification: nobody is on both sides.

The source's own split is used; if it has none, about a fifth of the people is held out, or as many as are needed to
test on: with fewer than `FEWEST_TEST` people who have several images, error rates say nothing about other people.

A person is held out by the rule of the store's hold-out (`featcache.metrics.holdout`) with the key ``identity:`` and
the name, so neither other people nor their images change who is; people whose images share a group go by the first of
them in the order of names. The people and images that heads were tested on are recorded, and a record overrules the
rule: an image that was tested on under one name is not learned from under another. This hold-out is one of people. It
has records of its own beside those of images, as a head that names people has to know all of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from featcache.core.errors import UnknownNameError, UsageError
from featcache.core.progress import Progress, counted
from featcache.metrics import holdout, splits
from featcache.training.holdout import LEARNED_FROM, Records, settle
from featcache.training.own_splits import split_rows

if TYPE_CHECKING:
    from featcache.store import FeatureStore
    from featcache.training.dataset import FeatureDataset

FEWEST_TRAIN, FEWEST_TEST = 8, 8


@dataclass(frozen=True, slots=True)
class IdentitySplit:
    """Rows of a dataset.

    Attributes:
        train_rows: (m,) row numbers to train on.
        test_rows: (q,) row numbers to test on, of other people.
        protocol: how they were chosen, in words.
        left_out: number of images left out, by reason: ``other_splits``, which are neither trained nor tested on; of
            the rest ``no_face``, without a detected face; ``contradicting``, of which copies have another label,
            wherever those are; ``copies`` of images that are used; and ``held_out``, which were tested on as images
            of somebody else.
    """

    train_rows: np.ndarray
    test_rows: np.ndarray
    protocol: str
    left_out: dict[str, int]


def split_identities(
    dataset: FeatureDataset,
    has_face: np.ndarray,
    split: str | None,
    seed: int,
    store: FeatureStore,
    progress: Progress,
) -> IdentitySplit:
    """Divide people into those to train on and those to test on.

    Args:
        dataset: n labeled vectors; a label is who is on the image.
        has_face: (n,) bool, whether a face was found.
        split: the split to train on; ``train`` by default, if the source has splits.
        seed: of the store's hold-out, if none was drawn yet.
        store: keeps the hold-out in its catalogue.
        progress: gets a note if the hold-out cannot be kept.

    Raises:
        UnknownNameError: no such split.
        UsageError: a person or a group is on both sides, there is no split to test on, or there are too few people.
    """
    names = {item.split for item in dataset.items} - {None}
    if names:
        train_rows, test_rows, other = _by_split(dataset, split or "train", sorted(map(str, names)))
        rows, left_out = _usable(dataset, has_face, np.union1d(train_rows, test_rows))
        train_rows, test_rows = np.intersect1d(train_rows, rows), np.intersect1d(test_rows, rows)
        _check_disjoint(dataset, train_rows, test_rows)
        protocol = f"the source's own split {other!r}, {len(np.unique(dataset.y[test_rows]))} people"
        sides = {key: part for key, (part, _) in store.sides().items()}
        if held := sum(sides.get(_person(name)) == holdout.TEST for name in np.unique(dataset.y[train_rows])):
            protocol += f"{LEARNED_FROM}{counted(held, 'persons')} whom the store holds out"
    else:
        if split is not None:
            raise UnknownNameError(
                f"No split is called {split!r}: the source has none. Omit --split, or give the source a split of "
                "people with `featcache extract --split FILE`."
            )
        rows, left_out = _usable(dataset, has_face, np.arange(len(dataset.items)))
        _check_enough(dataset.y[rows])
        (train, test), seed = settle(lambda known, seed: _draw(dataset, rows, known, seed), seed, store, progress)
        train_rows, test_rows = rows[train], rows[test]
        left_out["held_out"] = len(rows) - len(train_rows) - len(test_rows)
        of = len(np.unique(dataset.y[rows]))
        protocol = f"a hold-out of {len(np.unique(dataset.y[test_rows]))} of {of} people (by name, seed {seed})"
    _check_enough(dataset.y[train_rows], "train on", FEWEST_TRAIN)
    _check_enough(dataset.y[test_rows], "test on", FEWEST_TEST)
    return IdentitySplit(train_rows, test_rows, protocol, left_out)


def _check_enough(
    people: np.ndarray, purpose: str = "train and test on", fewest: int = FEWEST_TRAIN + FEWEST_TEST
) -> None:
    counts = np.unique(people, return_counts=True)[1]
    several = int((counts > 1).sum())
    if several < fewest:
        raise UsageError(
            f"There are {len(counts)} people to {purpose}, {several} of them with two or more usable images; {fewest} "
            "such people are needed. Add people, or images of the people there are."
        )


def _person(name: str) -> bytes:
    """By what the catalogue knows a person."""
    return hashlib.sha256(f"identity:{name}".encode("utf-8", "surrogatepass")).digest()


def _image(sha256: bytes) -> bytes:
    """By what the catalogue knows that an image was tested on."""
    return hashlib.sha256(b"image of an identity:" + sha256).digest()


def _draw(
    dataset: FeatureDataset, rows: np.ndarray, known: Mapping[bytes, str], seed: int
) -> tuple[tuple[np.ndarray, np.ndarray], Records]:
    """(m,) bool, which of these rows to train on and which to test on; and what is to be recorded."""
    names, numbers = np.unique(dataset.y[rows], return_inverse=True)
    part_of = splits.together(dataset.y[rows], dataset.groups[rows])
    parts = [np.flatnonzero(part_of == number) for number in range(part_of.max() + 1)]
    several = [int((np.bincount(numbers, minlength=len(names))[part] > 1).sum()) for part in parts]
    sides = [{known.get(_person(str(name))) for name in names[part]} for part in parts]
    ranks = [holdout.rank_of(f"identity:{names[part[0]]}", seed) for part in parts]
    order = sorted(range(len(parts)), key=ranks.__getitem__)
    test = [
        holdout.TEST in side or (holdout.TRAIN not in side and holdout.is_below(rank))
        for side, rank in zip(sides, ranks, strict=True)
    ]
    reasons = dict.fromkeys(range(len(parts)), holdout.BY_CONTENT)
    free = [i for i in order if several[i] and not sides[i] & {holdout.TEST, holdout.TRAIN}]
    for candidates, now, fewest, reason in (
        (free[::-1], True, FEWEST_TRAIN, holdout.KEPT),
        (free, False, FEWEST_TEST, holdout.TOPPED_UP),
    ):
        for i in candidates:
            if sum(count for count, side in zip(several, test, strict=True) if side != now) >= fewest:
                break
            if test[i] == now and reasons[i] == holdout.BY_CONTENT:
                test[i], reasons[i] = not now, reason
    tested = np.array(test)[part_of][numbers]
    images = [_image(dataset.items[row].sha256) for row in rows.tolist()]
    learned = ~tested & np.array([known.get(image) != holdout.TEST for image in images])
    records: dict[bytes, tuple[str, str]] = {}
    for i, part in enumerate(parts):
        if test[i] or reasons[i] == holdout.KEPT:
            side = holdout.TEST if test[i] else holdout.TRAIN
            records |= {_person(str(name)): (side, reasons[i]) for name in names[part]}
    for at in np.flatnonzero(tested).tolist():
        records[images[at]] = (holdout.TEST, reasons[int(part_of[numbers[at]])])
    return (learned, tested), {key: value for key, value in records.items() if key not in known}


def _usable(dataset: FeatureDataset, has_face: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, dict[str, int]]:
    """Of the *wanted* rows one per content with a person's face, and the number of others by reason."""
    names: dict[bytes, set[str]] = {}
    for item, label in zip(dataset.items, dataset.y.tolist(), strict=True):
        names.setdefault(item.sha256, set()).add(label)
    left_out = {
        "other_splits": len(dataset.items) - len(wanted),
        "no_face": int((~has_face[wanted]).sum()),
        "copies": 0,
        "contradicting": 0,
        "held_out": 0,
    }
    rows, seen = [], set()
    for row in wanted[has_face[wanted]].tolist():
        sha256 = dataset.items[row].sha256
        if len(names[sha256]) > 1:
            left_out["contradicting"] += 1
        elif sha256 in seen:
            left_out["copies"] += 1
        else:
            seen.add(sha256)
            rows.append(row)
    return np.array(rows, dtype=np.int64), left_out


def _by_split(dataset: FeatureDataset, split: str, names: list[str]) -> tuple[np.ndarray, np.ndarray, str]:
    """The rows of the source's own splits, and the name of the one to test on."""
    train_rows = split_rows(dataset, split)
    for other in ("test", "val"):
        if other in names and other != split:
            return train_rows, split_rows(dataset, other), other
    raise UsageError(
        f"The source has the splits {', '.join(names)}, but besides {split!r}, which is trained on, no 'test' or 'val' "
        "to test on. Add one with `featcache extract --split FILE`."
    )


def _check_disjoint(dataset: FeatureDataset, train_rows: np.ndarray, test_rows: np.ndarray) -> None:
    shared = np.intersect1d(dataset.y[train_rows], dataset.y[test_rows])
    if len(shared):
        raise UsageError(
            f"{len(shared)} people are on both sides of the split (first: {str(shared[0])!r}), so the scores would not "
            "be those of new people. Give a split of people, not of images, with `featcache extract --split FILE`."
        )
    if np.isin(dataset.groups[test_rows], dataset.groups[train_rows]).any():
        raise UsageError(
            "Images of one group are on both sides of the split, so the scores would not be those of new images. Put "
            "each group on one side."
        )
