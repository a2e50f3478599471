"""Train and test rows for face verification: nobody is on both sides.

The source's own split is used; if it has none, a fifth of the people is held out, or as many as are needed to test on:
with fewer than `FEWEST_TEST` people who have several images, error rates say nothing about other people.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from featcache.core.errors import UnknownNameError, UsageError
from featcache.metrics import splits
from featcache.training.holdout import split_rows

if TYPE_CHECKING:
    from featcache.training.dataset import FeatureDataset

HOLDOUT = 0.2
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
            wherever those are; and ``copies`` of images that are used.
    """

    train_rows: np.ndarray
    test_rows: np.ndarray
    protocol: str
    left_out: dict[str, int]


def split_identities(dataset: FeatureDataset, has_face: np.ndarray, split: str | None, seed: int) -> IdentitySplit:
    """Divide people into those to train on and those to test on.

    Args:
        dataset: n labeled vectors; a label is who is on the image.
        has_face: (n,) bool, whether a face was found.
        split: the split to train on; ``train`` by default, if the source has splits.
        seed: of the hold-out, if it has none.

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
    else:
        if split is not None:
            raise UnknownNameError(
                f"No split is called {split!r}: the source has none. Omit --split, or give the source a split of "
                "people with `featcache extract --split FILE`."
            )
        rows, left_out = _usable(dataset, has_face, np.arange(len(dataset.items)))
        _check_enough(dataset.y[rows])
        held_out = _holdout(dataset.y[rows], dataset.groups[rows], seed)
        train_rows, test_rows = rows[~held_out], rows[held_out]
        of = len(np.unique(dataset.y[rows]))
        protocol = f"a hold-out of {len(np.unique(dataset.y[test_rows]))} of {of} people (seed {seed})"
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


def _holdout(people: np.ndarray, groups: np.ndarray, seed: int) -> np.ndarray:
    """(n,) bool, the images of a fifth of the people, or of more, until enough of them have several images."""
    names, numbers = np.unique(people, return_inverse=True)
    fraction = HOLDOUT
    while True:
        held_out = splits.holdout(people, fraction, seed, groups)
        if fraction >= 1 or (np.bincount(numbers[held_out], minlength=1) > 1).sum() >= FEWEST_TEST:
            return held_out
        fraction = min(1.0, max(fraction * 1.1, fraction + 1 / len(names)))


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
