"""Which images of which people a projection is learned from, and which it is scored on.

No person stands on both sides. The source's own split counts; where it has none, a fifth of the people is set
aside.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from featcache.errors import UnknownNameError, UsageError
from featcache.evaluation import identity_splits
from featcache.labelled_vectors import LabelledVectors
from featcache.parts import of_split

HOLDOUT = 0.2
FEWEST_LEARNED, FEWEST_SCORED = 8, 2


@dataclass(frozen=True, slots=True)
class Sides:
    """Rows of labelled vectors.

    Attributes:
        learn: (m,) row numbers to learn from.
        score: (q,) row numbers to score on, of other people.
        protocol: who these are, in words.
        left_out: how many images take no part, by the reason: ``no_face``, where no face was found in the image;
            ``copies`` of others; ``contradicting``, of which there are copies with another label.
    """

    learn: np.ndarray
    score: np.ndarray
    protocol: str
    left_out: dict[str, int]


def sides(examples: LabelledVectors, has_face: np.ndarray, split: str | None, seed: int) -> Sides:
    """Part people into those to learn from and those to score on.

    Args:
        examples: n labelled vectors; a label is who is on the image.
        has_face: (n,) bool, whether a face was found.
        split: learn from this split; ``train`` by default where the source has splits.
        seed: of the draw where it has none.

    Raises:
        UnknownNameError: no such split.
        UsageError: a person or a group stands on both sides, there is no split to score on, or there are too few
            people.
    """
    rows, left_out = _usable(examples, has_face)
    splits = {item.split for item in examples.items} - {None}
    if splits:
        learn, score, protocol = _given(examples, split or "train", sorted(map(str, splits)))
        learn, score = np.intersect1d(learn, rows), np.intersect1d(score, rows)
        _check_apart(examples, learn, score)
    else:
        if split is not None:
            raise UnknownNameError(
                f"No split is called {split!r}: the source has none. Leave --split away, or give the source a split "
                "of people with `featcache extract --split FILE`."
            )
        aside = identity_splits.holdout(examples.y[rows], HOLDOUT, seed, examples.units[rows])
        learn, score = rows[~aside], rows[aside]
        protocol = f"a hold-out of {len(np.unique(examples.y[score]))} people (one in five, seed {seed})"
    for what, side, fewest in (("learn from", learn, FEWEST_LEARNED), ("score on", score, FEWEST_SCORED)):
        counts = np.unique(examples.y[side], return_counts=True)[1]
        several = int((counts > 1).sum())
        if several < fewest:
            raise UsageError(
                f"There are {len(counts)} people to {what}, {several} of them with two usable images or more; it takes "
                f"{fewest} such people. Add people, or images of those there are."
            )
    return Sides(learn, score, protocol, left_out)


def _usable(examples: LabelledVectors, has_face: np.ndarray) -> tuple[np.ndarray, dict[str, int]]:
    """One row for each content that shows one person's face, and how many others there are."""
    names: dict[bytes, set[str]] = {}
    for item, label in zip(examples.items, examples.y.tolist(), strict=True):
        names.setdefault(item.sha256, set()).add(label)
    left_out = {"no_face": int((~has_face).sum()), "copies": 0, "contradicting": 0}
    rows, taken = [], set()
    for row in np.flatnonzero(has_face).tolist():
        sha256 = examples.items[row].sha256
        if len(names[sha256]) > 1:
            left_out["contradicting"] += 1
        elif sha256 in taken:
            left_out["copies"] += 1
        else:
            taken.add(sha256)
            rows.append(row)
    return np.array(rows, dtype=np.int64), left_out


def _given(examples: LabelledVectors, split: str, names: list[str]) -> tuple[np.ndarray, np.ndarray, str]:
    """The rows of the source's own splits."""
    learn = of_split(examples, split)
    for other in ("test", "val"):
        if other in names and other != split:
            score = of_split(examples, other)
            return learn, score, f"the source's own split {other!r}, {len(np.unique(examples.y[score]))} people"
    raise UsageError(
        f"The source has the splits {', '.join(names)}, but besides {split!r}, which is learned from, no 'test' or "
        "'val' to score on. Give one with `featcache extract --split FILE`."
    )


def _check_apart(examples: LabelledVectors, learn: np.ndarray, score: np.ndarray) -> None:
    shared = np.intersect1d(examples.y[learn], examples.y[score])
    if len(shared):
        raise UsageError(
            f"{len(shared)} people stand on both sides of the split (first: {str(shared[0])!r}), so the score would be "
            "one of people that are known. Give a split of people, not of images, with "
            "`featcache extract --split FILE`."
        )
    if np.isin(examples.units[score], examples.units[learn]).any():
        raise UsageError(
            "Images of one group stand on both sides of the split, so the score would be one of images that are half "
            "known. Put each group on one side."
        )
