"""Verification on folds of pairs, after the protocol of Labeled Faces in the Wild (Huang et al. 2007)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from featcache.core.errors import UsageError
from featcache.metrics.verification import OperatingPoint, best_threshold, roc


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
