"""What the scores of a projection mean, learned from people whom the projection was not fitted on.

Verification on folds of pairs, after the protocol of Labeled Faces in the Wild (Huang et al. 2007).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from featcache.core.errors import UsageError
from featcache.metrics.likelihood_ratio import Calibration, check_negatives, fewest_negatives, fit_calibration
from featcache.metrics.verification import OperatingPoint, best_threshold, cosine_scores, pairs_within, roc

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


@dataclass(frozen=True, slots=True)
class VerificationReport:
    """How well pairs are told apart, each fold with a threshold that was chosen without it.

    Attributes:
        pairs: all of them.
        failed: pairs that could not be scored.
        accuracy: mean over the folds of the share of their pairs that are decided rightly; failed ones are errors.
        standard_error: of that mean: the standard deviation between the folds by the root of their number.
        fold_accuracies: one for each fold, in the order of their numbers.
        thresholds: chosen for each fold on the others.
        auc, eer: over all pairs, see `featcache.metrics.verification.Roc`.
        tar_at_far: over all pairs, by FAR, where there are pairs enough for it.
    """

    pairs: int
    failed: int
    accuracy: float
    standard_error: float
    fold_accuracies: tuple[float, ...]
    thresholds: tuple[float, ...]
    auc: float
    eer: float
    tar_at_far: dict[float, OperatingPoint]

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values that JSON has; a threshold that nothing reaches is None."""
        points = [
            {
                "far": far,
                "tar": point.tar.value,
                "low": point.tar.low,
                "high": point.tar.high,
                "threshold": point.threshold if math.isfinite(point.threshold) else None,
            }
            for far, point in self.tar_at_far.items()
        ]
        return {
            "pairs": self.pairs,
            "failed": self.failed,
            "accuracy": self.accuracy,
            "standard_error": self.standard_error,
            "fold_accuracies": list(self.fold_accuracies),
            "thresholds": list(self.thresholds),
            "auc": self.auc,
            "eer": self.eer,
            "tar_at_far": points,
        }


def verify_on_folds(
    scores: np.ndarray, same: np.ndarray, fold: np.ndarray, failed: np.ndarray | None = None
) -> VerificationReport:
    """Decide the pairs of each fold by the threshold that is best on all others.

    Args:
        scores: (n,) larger = more alike; those of failed pairs are not looked at.
        same: (n,) bool, whether the pair shows one person.
        fold: (n,) whole numbers; folds should share no person.
        failed: (n,) bool, whether the pair could not be scored; none by default.

    Raises:
        UsageError: there are fewer than two folds, a score that counts is not finite, or outside a fold no pair of
            one of the kinds could be scored.
    """
    scores, same, fold = np.asarray(scores, dtype=np.float64), np.asarray(same), np.asarray(fold)
    failed = np.zeros(len(scores), dtype=np.bool_) if failed is None else np.asarray(failed)
    curve = roc(scores, same, failed)
    names = np.unique(fold)
    if fold.shape != scores.shape or len(names) < 2:
        raise UsageError(
            f"The threshold of each fold is chosen on the others, so there must be two folds or more; {len(fold)} fold "
            f"numbers for {len(scores)} pairs name {len(names)}."
        )
    thresholds, accuracies = [], []
    for name in names:
        inside = fold == name
        others = ~inside & ~failed
        thresholds.append(best_threshold(scores[others], same[others]))
        right = ((scores >= thresholds[-1]) == same) & ~failed
        accuracies.append(float(right[inside].mean()))
    return VerificationReport(
        pairs=len(scores),
        failed=int(failed.sum()),
        accuracy=float(np.mean(accuracies)),
        standard_error=float(np.std(accuracies, ddof=1) / math.sqrt(len(names))),
        fold_accuracies=tuple(accuracies),
        thresholds=tuple(thresholds),
        auc=curve.auc(),
        eer=curve.eer(),
        tar_at_far=curve.tar_at_far(),
    )
