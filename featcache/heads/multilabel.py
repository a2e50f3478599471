"""The head ``softmax`` for several labels per item: one logistic regression per label, one C for all.

Probabilities are sigmoid(z), each label on its own. For each C of the grid the log-loss on held-out folds is averaged
over items and labels; the C with the lowest mean is chosen, the smaller one of equals. Folds keep groups together and
are stratified by every label.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.utils.validation import check_is_fitted, validate_data

from featcache.core.errors import UsageError
from featcache.heads.validation import check_finite, to_answer
from featcache.metrics import multilabel
from featcache.metrics.calibration import sigmoid
from featcache.metrics.multilabel import binary_losses


@dataclass(frozen=True)
class SigmoidFit:
    """Logistic regressions of k labels at one C.

    Attributes:
        coef: (k, d) float64.
        intercept: (k,) float64.
        shift: (d,) what is taken off vectors before they are multiplied, in their precision.
        converged: whether all did.
    """

    coef: np.ndarray
    intercept: np.ndarray
    shift: np.ndarray
    converged: bool

    def scores(self, X: np.ndarray) -> np.ndarray:
        """(n, k) log-odds."""
        middle = self.intercept + self.coef @ self.shift
        return np.asarray((X - self.shift) @ self.coef.T.astype(X.dtype) + middle)


def sigmoid_path(X: np.ndarray, Y: np.ndarray, Cs: Iterable[float], max_iter: int) -> Iterator[SigmoidFit]:
    """Fits for each C, each label on its own: ½‖w‖² + C Σ log(1 + exp(∓z)), with a free intercept.

    Args:
        X: (n, d) vectors.
        Y: (n, k) bool, which labels each row has. Where all rows have a label or none has, the weights are 0
            and the intercept is the log-odds with half a row added to either side.
        Cs: ascending; each fit starts from that of the one before.
        max_iter: of the solver, for each fit.
    """
    n, k = Y.shape
    shift = X.mean(axis=0, dtype=np.float64).astype(X.dtype)
    # A free intercept makes centring change nothing but the speed, if what was taken off is put back to the digit.
    centred = X - shift
    counts = Y.sum(axis=0)
    models: list[LogisticRegression | None] = [None] * k
    for C in Cs:
        coef, intercept, converged = np.zeros((k, X.shape[1])), np.log((counts + 0.5) / (n - counts + 0.5)), True
        for label in np.flatnonzero((counts > 0) & (counts < n)):
            models[label] = model = _fitted(centred, Y[:, label], C, max_iter, models[label])
            coef[label], intercept[label] = model.coef_[0], model.intercept_[0]
            converged &= bool(model.n_iter_.max() < max_iter)
        yield SigmoidFit(coef, intercept - coef @ shift.astype(np.float64), shift, converged)


def _fitted(
    X: np.ndarray, y: np.ndarray, C: float, max_iter: int, start: LogisticRegression | None
) -> LogisticRegression:
    model = LogisticRegression(C=C, max_iter=max_iter, tol=1e-5, warm_start=True)
    if start is not None:
        model.coef_, model.intercept_, model.classes_ = start.coef_, start.intercept_, start.classes_
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # told by `converged`
        return model.fit(X, y)


CS = tuple(10.0**exponent for exponent in range(-6, 3))
_CLEARLY_WORSE = 1.03


class SigmoidPathClassifier(BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Logistic regression for several labels per item.

    Args:
        Cs: inverse strengths of the penalty to choose from, as in scikit-learn's LogisticRegression.
        cv: folds for the choice; fewer where there are fewer groups.
        max_iter: of the solver, for each fit.
        random_state: of the folds.

    Attributes:
        classes_: (k,) the columns of Y, 0 … k - 1.
        coef_: (k, d) float64.
        intercept_: (k,) float64.
        C_: the C chosen.
        Cs_: (c,) ascending.
        scores_: (c,) mean held-out log-loss of each C; NaN for those skipped because the loss had clearly
            passed its minimum at a smaller one.
        chosen_: ``{"C": …}``.
        chosen_by_: how it was chosen, in words.
        converged_: whether the last fit converged.
        on_progress: as of `SoftmaxPathClassifier`.
    """

    on_progress: Callable[[int, int], None] | None = None

    link = "sigmoid"

    def __init__(self, Cs: Sequence[float] = CS, cv: int = 5, max_iter: int = 1000, random_state: int = 0) -> None:
        self.Cs = Cs
        self.cv = cv
        self.max_iter = max_iter
        self.random_state = random_state

    def fit(self, X: Any, Y: Any, groups: Any = None) -> SigmoidPathClassifier:
        """Fit.

        Args:
            X: (n, d) vectors.
            Y: (n, k) bool or 0 and 1: which labels each row has.
            groups: (n,) rows with the same one stay in one fold.

        Raises:
            UsageError: a value is not finite (the row is named), Y holds something else, *groups* has another
                length, there are no Cs or some that are not above 0, or fewer than two folds.
        """
        X = np.asarray(validate_data(self, X, dtype=[np.float64, np.float32], ensure_all_finite=False))
        check_finite(X)
        Y = np.asarray(Y)
        if Y.ndim != 2 or len(Y) != len(X) or not np.isin(Y, (0, 1)).all():
            raise UsageError(f"Y has the shape ({len(X)}, labels) and holds 0 and 1, or False and True.")
        Y = Y.astype(bool)
        groups = np.arange(len(X)) if groups is None else np.asarray(groups)
        if groups.shape != (len(X),):
            raise UsageError(f"groups must have the shape ({len(X)},), not {groups.shape}.")
        groups = np.unique(groups, return_inverse=True)[1]
        if self.cv < 2:
            raise UsageError(f"cv must be at least 2, not {self.cv}.")
        self.classes_ = np.arange(Y.shape[1])
        self.Cs_ = np.sort(np.atleast_1d(np.asarray(self.Cs, dtype=np.float64)))
        if not len(self.Cs_) or not (np.isfinite(self.Cs_) & (self.Cs_ > 0)).all():
            raise UsageError(f"Cs must be one or more positive numbers, not {self.Cs!r}.")
        k = min(self.cv, len(np.unique(groups)))
        self.scores_ = np.full(len(self.Cs_), np.nan)
        self.chosen_by_ = "given"
        if len(self.Cs_) > 1:
            self.chosen_by_ = "given, not compared: all items are of one group"
            if k > 1:
                self.scores_ = self._held_out_losses(X, Y, groups, k)
                self.chosen_by_ = f"{k}-fold cross-validation"
        best = len(self.Cs_) // 2 if np.isnan(self.scores_).all() else int(np.nanargmin(self.scores_))
        self.C_ = float(self.Cs_[best])
        (final,) = sigmoid_path(X, Y, [self.C_], self.max_iter)
        self.coef_, self.intercept_, self.converged_ = final.coef, final.intercept, final.converged
        self.chosen_ = {"C": self.C_}
        return self

    def _held_out_losses(self, X: np.ndarray, Y: np.ndarray, groups: np.ndarray, k: int) -> np.ndarray:
        """Mean held-out log-loss of each C from small to large, NaN behind the clear end of the descent."""
        parts = multilabel.folds(Y, groups, k, self.random_state)
        paths = [sigmoid_path(X[train_rows], Y[train_rows], self.Cs_, self.max_iter) for train_rows, _ in parts]
        scores = np.full(len(self.Cs_), np.nan)
        tell = self.on_progress or (lambda done, of: None)
        for place in range(len(self.Cs_)):
            tell(place, len(self.Cs_))
            total = 0.0
            for path, (_, test) in zip(paths, parts, strict=True):
                total += binary_losses(Y[test], sigmoid(next(path).scores(X[test]))).sum()
            scores[place] = total / Y.size
            if scores[place] > _CLEARLY_WORSE * np.nanmin(scores):
                break
        tell(len(self.Cs_), len(self.Cs_))
        return scores

    def decision_function(self, X: Any) -> np.ndarray:
        """(n, k) log-odds."""
        check_is_fitted(self)
        return np.asarray(to_answer(self, X) @ self.coef_.T + self.intercept_)

    def predict_proba(self, X: Any) -> np.ndarray:
        """(n, k) probabilities, each label's for itself."""
        return sigmoid(self.decision_function(X))

    def predict(self, X: Any) -> np.ndarray:
        """(n, k) bool: which labels are more likely than not."""
        return np.asarray(self.decision_function(X) > 0)
