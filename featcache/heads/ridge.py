"""The head ``ridge``: ridge regression on the classes, its penalty chosen by exact leave-one-out.

Targets are 1 for an item's class and -1 for the others, the intercept is free. One eigendecomposition
serves all penalties, and what the fit without an item, or without its group, says of it follows without
fitting again (see `featcache.heads.ridge_axes`). On those scores a temperature is fitted for each
penalty, and the penalty of the least log-loss is taken, the larger one of equals.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from featcache.core.errors import UsageError
from featcache.evaluation.temperature import fit_temperature
from featcache.heads.linear_classifier import TemperedLinearClassifier, class_scores
from featcache.heads.ridge_axes import RidgeAxes, left_out_scores, ridge_axes, signs
from featcache.heads.streaming import VectorStream
from featcache.heads.validation import to_fit

RELATIVE_ALPHAS = tuple(10 ** (exponent / 2) for exponent in range(-6, 7))
SCORED_ROWS = 65_536


class RidgeHead(TemperedLinearClassifier):
    """Ridge classifier with calibrated probabilities.

    Args:
        alphas: penalties to choose from, as in scikit-learn's Ridge; by default 13 from 1/1000 to 1000
            times the mean over the features of their sum of squares about the mean.
        random_state: draws the rows whose leave-one-out answers are compared, where there are more than
            65,536; whole groups of them.

    Attributes:
        classes_: (k,) labels.
        coef_: (k, d) float64, those of scikit-learn's RidgeClassifier; for two classes (1, d).
        intercept_: (k,) or (1,).
        alpha_: the penalty that was chosen.
        temperature_: probabilities are softmax(scores / temperature_), fitted on leave-one-out scores.
        alphas_: (p,) the penalties from small to large.
        scores_: (p,) leave-one-out log-loss of each.
        chosen_: ``{"alpha": …}``.
        chosen_by_: how, in words.
    """

    def __init__(self, alphas: Sequence[float] | None = None, random_state: int = 0) -> None:
        self.alphas = alphas
        self.random_state = random_state

    def fit(self, X: Any, y: Any, groups: Any = None) -> RidgeHead:
        """Fit.

        Args:
            X: (n, d) vectors.
            y: (n,) labels.
            groups: (n,) rows with the same one are left out together.

        Raises:
            UsageError: a value is not finite (the row is named), there is one class only, or a penalty is
                not positive.
        """
        X, classes, numbers, groups = to_fit(self, X, y, groups)
        return self.fit_stream(VectorStream(lambda rows: X[rows], numbers, groups, classes, X.shape[1]))

    def fit_stream(self, stream: VectorStream) -> RidgeHead:
        """Fit on vectors that need not fit in memory: one pass over all, and one over those compared."""
        self.classes_, self.n_features_in_ = stream.classes, stream.width
        fitted = ridge_axes(stream)
        if self.alphas is None:
            alphas = np.array(RELATIVE_ALPHAS) * (fitted.sizes.sum() / stream.width or 1.0)
        else:
            alphas = np.sort(np.asarray(self.alphas, dtype=np.float64))
            if not len(alphas) or not (alphas > 0).all():
                raise UsageError(f"Penalties are positive numbers, not {self.alphas!r}.")
        rows, groups, leaves_out = self._left_out(stream.groups)
        self._choose(fitted, stream, rows, groups, alphas)
        self.chosen_by_ = f"leaving out one {leaves_out}" if len(alphas) > 1 else "given"
        self.coef_, self.intercept_ = fitted.coefficients(self.alpha_)
        return self

    def memory_needed(self, n: int, d: int, k: int) -> int:
        """Bytes that a fit holds at least, of n float32 vectors of d numbers in k classes, read piece by piece."""
        r, compared = min(n, d), min(n, SCORED_ROWS)
        # A Gram matrix, its eigenvectors and as much again to find them; the axes of the vectors; the vectors that are
        # compared in these axes, while they are put together twice, and their scores.
        return 8 * (4 * r * r + r * d) + 4 * compared * (2 * r + k)

    def _left_out(self, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray, str]:
        """Rows to leave out in turn, whole groups of them; their groups; and what is left out in words."""
        _, numbers, sizes = np.unique(groups, return_inverse=True, return_counts=True)
        if len(sizes) == 1:
            return np.arange(len(groups)), np.arange(len(groups)), "item, as all are of one group"
        what = "group" if sizes.max() > 1 else "item"
        if len(groups) <= SCORED_ROWS:
            return np.arange(len(groups)), numbers, what
        order = np.random.default_rng(self.random_state).permutation(len(sizes))
        order = order[sizes[order] <= max(SCORED_ROWS, sizes.min())]
        taken = np.zeros(len(sizes), dtype=bool)
        taken[order] = np.cumsum(sizes[order]) <= SCORED_ROWS
        taken[order[0]] = True
        rows = np.flatnonzero(taken[numbers])
        return rows, numbers[rows], f"{what}, for {len(rows):,} items"

    def _choose(
        self, fitted: RidgeAxes, stream: VectorStream, rows: np.ndarray, groups: np.ndarray, alphas: np.ndarray
    ) -> None:
        """Set the penalty and its temperature, by the answers for *rows* of fits without their groups."""
        Z = np.concatenate([fitted.rotated(X) for _, X in stream.blocks(rows)])
        numbers = stream.numbers[rows]
        found: list[tuple[float, float]] = []
        for scores in left_out_scores(fitted, Z, signs(numbers, len(self.classes_)), groups, alphas):
            start = found[-1][0] if found else None
            found.append(fit_temperature(class_scores(scores), numbers, start=start))
        self.alphas_, self.scores_ = alphas, np.array([loss for _, loss in found])
        # The last of the least: the larger penalty of equals.
        best = len(alphas) - 1 - int(np.argmin(self.scores_[::-1]))
        self.alpha_, self.temperature_ = float(alphas[best]), found[best][0]
        self.chosen_ = {"alpha": self.alpha_}
