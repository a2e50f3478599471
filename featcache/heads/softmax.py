"""The head ``softmax``: multinomial logistic regression, with C chosen by cross-validation over its whole path.

The objective is scikit-learn's: ½‖W‖² + C Σ_i s_i loss_i with an unpenalized intercept (for two classes
½‖w‖² + C Σ_i s_i log(1 + exp(∓z_i)) with one row of weights), so C means the same and the optimum is the same.
`softmax_solver` solves all folds and all rows together, `softmax_certificate` bounds the distance to the optimum.

C scales with the square of the vectors: for vectors a thousand times as large the best C is a million times smaller, so
it can lie outside a fixed grid. That the best C is the first or last of the grid says little by itself: where classes
are far apart all large C are equally good, and where vectors carry no information all small ones are. The slope of the
held-out loss at the edge decides (`edge_of_grid`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from featcache.core.errors import GridEdgeWarning, UsageError
from featcache.core.threads import row_threads
from featcache.heads.regularization_path import FINAL_GAP, PATH_GAP, RegularizationPath, draw_folds
from featcache.heads.softmax_certificate import LOGITS_BYTES, Certificate
from featcache.heads.softmax_solver import NO_FOLD
from featcache.heads.validation import LinearHead, checked

_STEEP = 0.01
"""A last step of the loss by more than this share of all its change: not flat."""
_FLAT = 1e-4
"""A loss that changes less over the whole grid, as a share of itself, is that of weights near 0, or of no penalty."""
_CONSTANT = 1e-6
"""Vectors that vary less than that, as a share of their largest number, are equal."""


def edge_of_grid(Cs: np.ndarray, losses: np.ndarray, best: int, X: np.ndarray) -> str | None:
    """What is wrong with a grid that probably does not hold the best C, and what to do; None if nothing is.

    Args:
        Cs: (c,) the grid, ascending, of two or more.
        losses: (c,) mean held-out log-loss of each, infinite where it was not tried.
        best: the place of the C that was chosen.
        X: (n, d) the vectors.
    """
    advice = "or bring the vectors nearer to the scale of 1 (all multiplied by one number)."
    known = losses[np.isfinite(losses)]
    span = float(np.ptp(known))
    if span <= _FLAT * float(known.min()):
        if len(known) < len(Cs) or (np.ptp(X, axis=0) <= _CONSTANT * np.abs(X).max()).all():
            return None
        return (
            f"No C of the {len(Cs)} from {Cs[0]:g} to {Cs[-1]:g} changes the held-out loss, so the vectors are "
            f"probably far too small for them, or too large. Give other Cs, {advice}"
        )
    for place, neighbour, name, better in ((0, 1, "first", "smaller"), (len(Cs) - 1, len(Cs) - 2, "last", "larger")):
        if best == place and losses[neighbour] - losses[place] > _STEEP * span:
            return (
                f"The best C = {Cs[place]:g} is the {name} of the {len(Cs)} tried, and a {better} one would probably "
                f"be better. Give {better} Cs, {advice}"
            )
    return None


_CLEARLY_WORSE, _STEPS_BEYOND = 1.03, 3
"""The path ends when the held-out loss is so much above its least value, so many values of C behind it."""

_SCORINGS = ("neg_log_loss", "accuracy")


class SoftmaxPathClassifier(LinearHead):
    """Multinomial logistic regression with its C chosen by cross-validation.

    Args:
        Cs: inverse strengths of the penalty, in any order; a number n for n values from 1e-4 to 1e4, spaced
            by a common factor, as in `LogisticRegressionCV`; by default 45 from 1e-6 to 1e5. Of
            the latter a `GridEdgeWarning` says when they probably do not hold the best C, as for vectors far from the
            scale of 1.
        cv: folds for the choice: a number, stratified and with whole groups, fewer where a class has fewer
            independent rows (a class with a single one is always learned from); or a scikit-learn splitter or
            an iterable of (learn, test) row numbers, where each row is tested at most once and a fold learns from
            all rows that it does not test.
        scoring: what the choice goes by: ``neg_log_loss`` or ``accuracy``. On a tie the smallest C wins.
        class_weight: ``balanced``, a mapping from labels to weights, or None, as in `LogisticRegression`.
        early_stopping: whether to leave the larger values of C out once the held-out log-loss has clearly
            passed its minimum; does not apply to ``accuracy``.
        max_iter: passes over the rows for one problem at one C, at most.
        random_state: seed of the folds.

    Attributes:
        classes_: (k,) labels.
        coef_: (k, d) float64; for two classes (1, d).
        intercept_: (k,) float64, or (1,).
        C_: the C chosen.
        Cs_: (c,) the values, ascending.
        scores_: (folds, c) mean scores of the held-out rows, larger is better; NaN where the path had ended.
        held_out_weights_: (folds,) the weight of each fold's held-out rows, by which C is chosen.
        gap_: bound of (F - min F) / F of the solution, computed in float64; at most 1e-8 unless a warning says
            otherwise.
        gaps_: (folds + 1, c) the same along the path, the last row for all rows; at most 1e-4 likewise.
        n_iter_: passes over the rows, the mean over the problems.
        converged_: whether all gaps are as small as they should be.
        chosen_: ``{"C": …}``.
        chosen_by_: how C was chosen, in words.
        grid_note_: what `GridEdgeWarning` says, or None.
        held_out_logits_: (n, k) float32, for each row the logits at the chosen C by the fold that did not
            learn from it; -inf for a class that this fold never saw, NaN for rows that were always learned from
            or have no weight. None without folds.
        on_progress: called during `fit` with how many values of C are done and how many there are; the last call has
            all of them, even if some were skipped. None by default; not a parameter, so it is not cloned.
    """

    on_progress: Callable[[int, int], None] | None = None

    def __init__(
        self,
        Cs: int | Sequence[float] | None = None,
        cv: Any = 5,
        scoring: str = "neg_log_loss",
        class_weight: str | Mapping[Any, float] | None = None,
        early_stopping: bool = True,
        max_iter: int = 500,
        random_state: int | None = 0,
    ) -> None:
        self.Cs = Cs
        self.cv = cv
        self.scoring = scoring
        self.class_weight = class_weight
        self.early_stopping = early_stopping
        self.max_iter = max_iter
        self.random_state = random_state

    def fit(self, X: Any, y: Any, groups: Any = None, sample_weight: Any = None) -> SoftmaxPathClassifier:
        """Fit.

        Args:
            X: (n, d) vectors; computed with as float32.
            y: (n,) labels.
            groups: (n,) numbers or texts; rows with the same one stay in one fold.
            sample_weight: (n,) weights, not negative; a row of weight 0 is as good as absent.

        Raises:
            UsageError: vectors that are not finite, weights or values of C that are negative, fewer than
                two classes; the message names the row or the class.
        """
        self.Cs_ = self._c_values()
        if self.scoring not in _SCORINGS:
            raise UsageError(f"scoring must be one of {', '.join(_SCORINGS)}, not {self.scoring!r}.")
        rows = checked(self, X, y, groups, sample_weight, self.class_weight)
        self.classes_ = rows.classes
        fold, self.chosen_by_ = np.full(len(rows.y), NO_FOLD), "given"
        if len(self.Cs_) > 1:
            fold, self.chosen_by_ = draw_folds(self.cv, rows, self.random_state or 0)
        with row_threads() as threads:
            path = RegularizationPath(rows, fold, threads, self.max_iter)
            best, losses = self._follow(path)
            self.held_out_weights_ = np.array(path.held_out_weights)
            self._score(best, path.refined(), path)
            coef, intercept, certificate = path.final()
            self.held_out_logits_ = None
            if path.folds:
                self.held_out_logits_ = np.full((rows.given, len(rows.classes)), np.nan, np.float32)
                self.held_out_logits_[rows.kept] = path.held_out_logits()
        if len(self.classes_) == 2:
            coef, intercept = coef[1:] - coef[:1], intercept[1:] - intercept[:1]
        self.coef_, self.intercept_ = coef, intercept - coef @ rows.shift
        self.C_ = float(self.Cs_[best])
        self.chosen_ = {"C": self.C_}
        self.n_iter_ = max(1, round(path.passes / (len(path.folds) + 1)))
        self.grid_note_ = None
        if path.folds and self.Cs is None:
            self.grid_note_ = edge_of_grid(self.Cs_, losses, best, rows.X)
        if self.grid_note_ is not None:
            warnings.warn(self.grid_note_, GridEdgeWarning, stacklevel=2)
        self._tell_of_gaps(certificate.gap)
        return self

    def memory_needed(self, n: int, d: int, k: int) -> int:
        """Bytes that `fit` takes at its peak for n float32 vectors of d numbers in k classes, these included."""
        folds = int(self.cv) if isinstance(self.cv, (int, np.integer)) else 5
        folds = folds if len(self._c_values()) > 1 else 0
        # The vectors as given, sorted, and rotated with room to work; for each fold and all rows some
        # eighteen arrays of the weights' size.
        vectors_and_weights = 4 * (4 * n * d + 18 * (1 + folds) * k * d)
        # Float64 logits of the certificates, which for many classes are more than the vectors; beside them float32
        # probabilities twice, or held-out logits twice.
        logits = max(8 * n * k, min(LOGITS_BYTES, 8 * n * k * (1 + folds)))
        return vectors_and_weights + logits + 8 * n * k

    def seconds_needed(self, n: int, d: int, k: int) -> float:
        """About how many seconds of processor time `fit` takes, see `featcache.heads.duration`."""
        # Measured with all values of C and five folds, which are six problems of about 200 passes together.
        return 0.3 + 1.5e-7 * n * k * min(n, d)

    def _c_values(self) -> np.ndarray:
        if self.Cs is None:
            return np.geomspace(1e-6, 1e5, 45)
        if isinstance(self.Cs, (int, np.integer)):
            Cs = np.geomspace(1e-4, 1e4, max(0, int(self.Cs)))
        else:
            Cs = np.array([float(C) for C in np.atleast_1d(np.asarray(self.Cs))])
        if not len(Cs) or not (np.isfinite(Cs) & (Cs > 0)).all():
            raise UsageError(f"Cs must be one or more positive numbers, not {self.Cs!r}.")
        return np.unique(Cs)

    def _follow(self, path: RegularizationPath) -> tuple[int, np.ndarray]:
        """Go along the path from the smallest C on.

        Returns:
            The place of the C that is best on held-out rows, and (c,) mean held-out log-losses, infinite where the
            path had ended.
        """
        folds, c = len(path.folds), len(self.Cs_)
        self.scores_, self.gaps_ = np.full((folds, c), np.nan), np.full((folds + 1, c), np.nan)
        losses, best, middle = np.full(c, np.inf), 0, (c - 1) // 2
        tell = self.on_progress or (lambda done, of: None)
        for place, C in enumerate(self.Cs_):
            tell(place, c)
            losses[place] = self._score(place, path.solve(float(C)), path)
            if not folds:
                if place == middle:
                    path.keep()
                    best = place
                    break
                continue
            weights = np.array(path.held_out_weights)
            means = weights @ self.scores_[:, : place + 1] / weights.sum()
            best = int(np.argmax(means))
            if best == place:
                path.keep()
            least = int(np.argmin(losses))
            passed = place - least >= _STEPS_BEYOND and losses[place] > _CLEARLY_WORSE * losses[least]
            if passed and self.early_stopping and self.scoring == "neg_log_loss":
                break
        tell(c, c)
        return best, losses

    def _score(self, place: int, found: Sequence[Certificate], path: RegularizationPath) -> float:
        """Note what was found for one C; the mean held-out log-loss."""
        self.gaps_[:, place] = [certificate.gap for certificate in found]
        weights = np.array(path.held_out_weights)
        missed, hits = np.array([(c.held_out_loss, c.held_out_hits) for c in found[:-1]]).reshape(-1, 2).T
        self.scores_[:, place] = (hits if self.scoring == "accuracy" else -missed) / weights
        return float(missed.sum() / max(weights.sum(), 1e-300))

    def _tell_of_gaps(self, gap: float) -> None:
        worst = float(np.nanmax(self.gaps_))
        self.gap_, self.converged_ = gap, bool(gap <= FINAL_GAP and worst <= PATH_GAP)
        if not self.converged_:
            warnings.warn(
                f"The optimum was not reached: the relative gap is {gap:.1e} at the chosen C = {self.C_:g}, and at "
                f"most {worst:.1e} on the path. Vectors nearer to the scale of 1, or a smaller largest C, may help.",
                ConvergenceWarning,
                stacklevel=3,
            )
