"""The predictor of a head for matching: a projection, under which a cosine compares two images.

Both images go through the same linear map, as in a siamese network (Bromley et al. 1993); the score is the cosine of
the two projected vectors. A calibration, if any, turns it into a log-likelihood ratio, a probability and a decision.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from featcache.core.errors import UsageError
from featcache.heads.predictors import normalized

if TYPE_CHECKING:
    from featcache.metrics.likelihood_ratio import Calibration

_ROWS_AT_ONCE = 8192


@dataclass(frozen=True)
class MatchingPredictor:
    """A linear projection with a cosine behind it.

    Attributes:
        mean: (d,) float32, taken from every vector first.
        projection: (p, d) float32; None to compare the vectors, less the mean, as they are.
        calibration: what a score means; None where it is not known.
        classes: the identities that it was fitted on; those it compares are others as a rule.
        link: ``match``.
    """

    mean: np.ndarray
    projection: np.ndarray | None
    calibration: Calibration | None
    classes: tuple[str, ...]
    link: str = "match"

    @property
    def width(self) -> int:
        """p, numbers in an embedded vector; d without a projection."""
        return len(self.mean) if self.projection is None else len(self.projection)

    def embed(self, X: np.ndarray) -> np.ndarray:
        """Project vectors.

        Args:
            X: (n, d) vectors.

        Returns:
            (n, p) float32 of length 1; one that the projection sends to 0 stays 0.

        Raises:
            UsageError: X has another shape.
        """
        X = np.asarray(X, dtype=np.float32)
        if X.ndim != 2 or X.shape[1] != len(self.mean):
            raise UsageError(f"The projection takes vectors (n, {len(self.mean)}), not {X.shape}.")
        embedded = np.empty((len(X), self.width), dtype=np.float32)
        for start in range(0, len(X), _ROWS_AT_ONCE):
            rows = X[start : start + _ROWS_AT_ONCE] - self.mean
            embedded[start : start + _ROWS_AT_ONCE] = normalized(
                rows if self.projection is None else rows @ self.projection.T
            )
        return embedded

    def scores(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Compare matching rows.

        Args:
            a: (n, d) vectors.
            b: (n, d) vectors.

        Returns:
            (n,) float64, cosines of the projected rows, from -1 to 1; 0 where one of them is projected to 0.

        Raises:
            UsageError: the shapes do not fit.
        """
        left, right = self.embed(a), self.embed(b)
        if left.shape != right.shape:
            raise UsageError(f"Rows are compared one by one, so {len(left)} do not go with {len(right)}.")
        return np.asarray(np.clip(np.einsum("np,np->n", left, right, dtype=np.float64), -1, 1))
