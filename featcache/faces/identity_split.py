"""Which images of which people a projection is learned from, and which it is scored on.

No person stands on both sides. The source's own split counts; where it has none, a fifth of the people is set
aside, or as many as it takes to score on: of fewer than `FEWEST_SCORED` people with several images a rate says nothing
of others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from featcache.core.errors import UnknownNameError, UsageError
from featcache.metrics import splits as identity_splits
from featcache.training.dataset import FeatureDataset
from featcache.training.holdout import split_rows

HOLDOUT = 0.2
FEWEST_LEARNED, FEWEST_SCORED = 8, 8


@dataclass(frozen=True, slots=True)
class Sides:
    """Rows of labelled vectors.

    Attributes:
        train_rows: (m,) row numbers to learn from.
        score: (q,) row numbers to score on, of other people.
        protocol: who these are, in words.
        left_out: how many images take no part, by the reason: ``other_splits``, which are neither learned from nor
            scored on; of the rest ``no_face``, where no face was found in the image; ``contradicting``, of which there
            are copies with another label, wherever those stand; ``copies`` of others that take part.
    """

    train_rows: np.ndarray
    score: np.ndarray
    protocol: str
    left_out: dict[str, int]


def sides(dataset: FeatureDataset, has_face: np.ndarray, split: str | None, seed: int) -> Sides:
    """Part people into those to learn from and those to score on.

    Args:
        dataset: n labelled vectors; a label is who is on the image.
        has_face: (n,) bool, whether a face was found.
        split: learn from this split; ``train`` by default where the source has splits.
        seed: of the draw where it has none.

    Raises:
        UnknownNameError: no such split.
        UsageError: a person or a group stands on both sides, there is no split to score on, or there are too few
            people.
    """
    splits = {item.split for item in dataset.items} - {None}
    if splits:
        train_rows, score, other = _given(dataset, split or "train", sorted(map(str, splits)))
        rows, left_out = _usable(dataset, has_face, np.union1d(train_rows, score))
        train_rows, score = np.intersect1d(train_rows, rows), np.intersect1d(score, rows)
        _check_apart(dataset, train_rows, score)
        protocol = f"the source's own split {other!r}, {len(np.unique(dataset.y[score]))} people"
    else:
        if split is not None:
            raise UnknownNameError(
                f"No split is called {split!r}: the source has none. Leave --split away, or give the source a split "
                "of people with `featcache extract --split FILE`."
            )
        rows, left_out = _usable(dataset, has_face, np.arange(len(dataset.items)))
        _check_enough(dataset.y[rows])
        aside = _aside(dataset.y[rows], dataset.groups[rows], seed)
        train_rows, score = rows[~aside], rows[aside]
        of = len(np.unique(dataset.y[rows]))
        protocol = f"a hold-out of {len(np.unique(dataset.y[score]))} of {of} people (seed {seed})"
    _check_enough(dataset.y[train_rows], "learn from", FEWEST_LEARNED)
    _check_enough(dataset.y[score], "score on", FEWEST_SCORED)
    return Sides(train_rows, score, protocol, left_out)


def _check_enough(
    people: np.ndarray, purpose: str = "learn from and to score on", fewest: int = FEWEST_LEARNED + FEWEST_SCORED
) -> None:
    counts = np.unique(people, return_counts=True)[1]
    several = int((counts > 1).sum())
    if several < fewest:
        raise UsageError(
            f"There are {len(counts)} people to {purpose}, {several} of them with two usable images or more; it takes "
            f"{fewest} such people. Add people, or images of those there are."
        )


def _aside(people: np.ndarray, groups: np.ndarray, seed: int) -> np.ndarray:
    """(n,) bool, the images of a fifth of the people, or of more, until enough of them have several images."""
    names, number = np.unique(people, return_inverse=True)
    fraction = HOLDOUT
    while True:
        aside = identity_splits.holdout(people, fraction, seed, groups)
        if fraction >= 1 or (np.bincount(number[aside], minlength=1) > 1).sum() >= FEWEST_SCORED:
            return aside
        fraction = min(1.0, max(fraction * 1.1, fraction + 1 / len(names)))


def _usable(dataset: FeatureDataset, has_face: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, dict[str, int]]:
    """Of the *wanted* rows one for each content that shows one person's face, and how many others there are."""
    names: dict[bytes, set[str]] = {}
    for item, label in zip(dataset.items, dataset.y.tolist(), strict=True):
        names.setdefault(item.sha256, set()).add(label)
    left_out = {
        "other_splits": len(dataset.items) - len(wanted),
        "no_face": int((~has_face[wanted]).sum()),
        "copies": 0,
        "contradicting": 0,
    }
    rows, taken = [], set()
    for row in wanted[has_face[wanted]].tolist():
        sha256 = dataset.items[row].sha256
        if len(names[sha256]) > 1:
            left_out["contradicting"] += 1
        elif sha256 in taken:
            left_out["copies"] += 1
        else:
            taken.add(sha256)
            rows.append(row)
    return np.array(rows, dtype=np.int64), left_out


def _given(dataset: FeatureDataset, split: str, names: list[str]) -> tuple[np.ndarray, np.ndarray, str]:
    """The rows of the source's own splits, and the name of the one to score on."""
    train_rows = split_rows(dataset, split)
    for other in ("test", "val"):
        if other in names and other != split:
            return train_rows, split_rows(dataset, other), other
    raise UsageError(
        f"The source has the splits {', '.join(names)}, but besides {split!r}, which is learned from, no 'test' or "
        "'val' to score on. Give one with `featcache extract --split FILE`."
    )


def _check_apart(dataset: FeatureDataset, train_rows: np.ndarray, score: np.ndarray) -> None:
    shared = np.intersect1d(dataset.y[train_rows], dataset.y[score])
    if len(shared):
        raise UsageError(
            f"{len(shared)} people stand on both sides of the split (first: {str(shared[0])!r}), so the score would be "
            "one of people that are known. Give a split of people, not of images, with "
            "`featcache extract --split FILE`."
        )
    if np.isin(dataset.groups[score], dataset.groups[train_rows]).any():
        raise UsageError(
            "Images of one group stand on both sides of the split, so the score would be one of images that are half "
            "known. Put each group on one side."
        )
