"""What the scores of a projection mean, learned from people whom the projection has not seen."""

from __future__ import annotations

import numpy as np

from featcache.evaluation.identity_pairs import pairs_within
from featcache.evaluation.pair_metrics import cosine_scores
from featcache.evaluation.score_calibration import Calibration, fit_calibration

PAIRS = 500_000
"""At most so many pairs are looked at; more would tell the threshold no better, as the people are the same."""


def calibrate(
    vectors: np.ndarray, people: np.ndarray, far: float, *, fold: np.ndarray | None = None, seed: int = 0
) -> Calibration:
    """Learn from all pairs of some images, or a sample of them, what their scores say.

    With folds each is compared within itself, and the pairs of all folds are taken together (cross-fitting): thus
    everybody serves to calibrate, though all but one fold were learned from for each.

    Args:
        vectors: (n, p) projected by what was learned without the person, in whichever fold that is.
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
