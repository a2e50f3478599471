"""Calibration of cosine scores: the threshold for a false accept rate (FAR), and likelihood ratios.

It is fitted on people whom the projection was not fitted on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from featcache.metrics.far_threshold import check_negatives, fewest_negatives
from featcache.metrics.likelihood_ratio import Calibration, fit_calibration
from featcache.metrics.verification import cosine_scores, pairs_within

PAIRS = 500_000
"""The most pairs that are scored. More of the same people would not make the threshold more certain."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """How much data a threshold is based on.

    Attributes:
        people: number of people.
        pairs: impostor pairs (of images of different people) that are scored.
        couples: pairs of people. All impostor pairs of the same two people say much the same.
        couples_needed: 3 / far, the impostor pairs needed if each is of another two people.
    """

    people: int
    pairs: int
    couples: int
    couples_needed: int

    @property
    def warning(self) -> str | None:
        """Why the threshold is uncertain, if there are fewer couples than needed; else None."""
        if self.couples >= self.couples_needed:
            return None
        return (
            f"The threshold is based on {self.couples:,} couples of different people, but a false accept rate this "
            f"small needs {self.couples_needed:,}. The rate on other people may differ a lot. Add people, or choose a "
            "larger rate."
        )


def evidence(people: np.ndarray, far: float, fold: np.ndarray | None = None) -> Evidence:
    """What `calibrate` would base the threshold on.

    Args:
        people, far, fold: as for `calibrate`.

    Raises:
        UsageError: there are too few pairs for the rate; the message says how many are needed.
    """
    fold = np.zeros(len(people), dtype=np.int64) if fold is None else fold
    folds = np.unique(fold)
    limit, pairs, couples = PAIRS // len(folds), 0, 0
    for one in folds:
        counts = np.unique(people[fold == one], return_counts=True)[1]
        genuine = int((counts * (counts - 1) // 2).sum())
        impostor = math.comb(int(counts.sum()), 2) - genuine
        pairs += min(impostor, limit - min(genuine, limit // 2))
        couples += math.comb(len(counts), 2)
    check_negatives(pairs, far)
    return Evidence(len(np.unique(people)), pairs, couples, fewest_negatives(far))


def calibrate(
    vectors: np.ndarray, people: np.ndarray, far: float, *, fold: np.ndarray | None = None, seed: int = 0
) -> Calibration:
    """Fit a calibration to the scores of all pairs of these images, or of a sample.

    With folds, pairs are formed within each fold and pooled over the folds (cross-fitting), so that everybody serves
    to calibrate although the projection of each fold was fitted on all the others.

    Args:
        vectors: (n, p), projected by a projection that was fitted without the person; one per fold.
        people: (n,) who is on each image.
        far: the false accept rate of the threshold, between 0 and 1.
        fold: (n,) fold numbers; only rows of the same fold are compared. One fold by default.
        seed: of the sample.

    Raises:
        UsageError: there are too few pairs for the rate; the message says how many are needed.
    """
    fold = np.zeros(len(vectors), dtype=np.int64) if fold is None else fold
    folds = np.unique(fold)
    scores, genuine, both = [], [], []
    for one in folds:
        rows = np.flatnonzero(fold == one)
        pairs, same = pairs_within(people[rows], PAIRS // len(folds), seed)
        scores.append(cosine_scores(vectors[rows], pairs))
        genuine.append(same)
        both.append(people[rows][pairs])
    return fit_calibration(np.concatenate(scores), np.concatenate(genuine), far, people=np.concatenate(both))
