"""What the scores of a projection mean, learned from people whom the projection was not fitted on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from featcache.metrics.likelihood_ratio import Calibration, check_negatives, fewest_negatives, fit_calibration
from featcache.metrics.verification import cosine_scores, pairs_within

PAIRS = 500_000
"""At most so many pairs are looked at; more would tell the threshold no better, as the people are the same."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a threshold is set on.

    Attributes:
        people: who serve.
        pairs: of different people, that are looked at.
        couples: of people; all pairs of one couple say much the same.
        couples_needed: 3 / far, the pairs that it would take if each were of a couple of its own.
    """

    people: int
    pairs: int
    couples: int
    couples_needed: int

    @property
    def warning(self) -> str | None:
        """What to know where there are fewer couples than it takes; else None."""
        if self.couples >= self.couples_needed:
            return None
        return (
            f"The threshold is set on {self.couples:,} couples of people, and a false accept rate this small takes "
            f"{self.couples_needed:,} to be known: what it keeps on others can be far from it. Add people, or ask for "
            "a larger rate."
        )


def evidence(people: np.ndarray, far: float, fold: np.ndarray | None = None) -> Evidence:
    """What `calibrate` would set the threshold on.

    Args:
        people, far, fold: as for `calibrate`.

    Raises:
        UsageError: the pairs are too few for that rate; the message says how many it takes.
    """
    fold = np.zeros(len(people), dtype=np.int64) if fold is None else fold
    names = np.unique(fold)
    room, pairs, couples = PAIRS // len(names), 0, 0
    for name in names:
        counts = np.unique(people[fold == name], return_counts=True)[1]
        same = int((counts * (counts - 1) // 2).sum())
        different = math.comb(int(counts.sum()), 2) - same
        pairs += min(different, room - min(same, room // 2))
        couples += math.comb(len(counts), 2)
    check_negatives(pairs, far)
    return Evidence(len(np.unique(people)), pairs, couples, fewest_negatives(far))


def calibrate(
    vectors: np.ndarray, people: np.ndarray, far: float, *, fold: np.ndarray | None = None, seed: int = 0
) -> Calibration:
    """Learn from all pairs of some images, or a sample of them, what their scores say.

    With folds each is compared within itself, and the pairs of all folds are taken together (cross-fitting): thus
    everybody serves to calibrate, though all but one fold were learned from for each.

    Args:
        vectors: (n, p) projected by what was fitted without the person, in whichever fold that is.
        people: (n,) who is on each image.
        far: the false accept rate that the threshold is for, between 0 and 1.
        fold: (n,) numbers; only rows of one fold are compared. All rows by default.
        seed: of the sample.

    Raises:
        UsageError: the pairs are too few for that rate; the message says how many it takes.
    """
    fold = np.zeros(len(vectors), dtype=np.int64) if fold is None else fold
    names = np.unique(fold)
    scores, same, both = [], [], []
    for name in names:
        rows = np.flatnonzero(fold == name)
        pairs, kind = pairs_within(people[rows], PAIRS // len(names), seed)
        scores.append(cosine_scores(vectors[rows], pairs))
        same.append(kind)
        both.append(people[rows][pairs])
    return fit_calibration(np.concatenate(scores), np.concatenate(same), far, people=np.concatenate(both))
