"""The head ``logreg``: scikit-learn's logistic regression behind a scaler, C chosen by cross-validation.

Multinomial, L2-penalised. For each C of the grid the log-loss on held-out folds is averaged over the
items; the C of the least mean wins, the smaller one of equals. Folds keep the groups together, and
scaler and regression are fitted anew in each fold.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.validation import check_is_fitted

from featcache.heads.validation import to_answer, to_fit
from featcache.metrics import splits
from featcache.metrics.calibration import softmax

CS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
_CLEARLY_WORSE = 1.02


class LogRegHead(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Logistic regression on standardised vectors.

    Args:
        Cs: inverse strengths of the penalty to choose from, on standardised vectors.
        cv: folds for the choice; fewer where a class has fewer independent items, and none (the middle C
            is taken) where a class has one.
        max_iter: of the solver, for each fit.
        random_state: of the folds.
        class_weight: ``"balanced"`` for n / (k · items of the class), a weight for each label, or None
            for 1. An item's loss is multiplied by the weight of its class, also for the choice of C.

    Attributes:
        classes_: (k,) the labels.
        coef_: (k, d) for the vectors as they are given, the scaler folded in; for two classes (1, d).
        intercept_: likewise.
        chosen_: ``{"C": …}``.
        chosen_by_: how C was chosen, in words.
        scores_: mean held-out log-loss of each C; NaN for those skipped because the loss had clearly
            passed its minimum at a smaller one.
        converged_: whether the last fit converged.
    """

    def __init__(
        self,
        Cs: Sequence[float] = CS,
        cv: int = 5,
        max_iter: int = 300,
        random_state: int = 0,
        class_weight: Any = None,
    ) -> None:
        self.Cs = Cs
        self.cv = cv
        self.max_iter = max_iter
        self.random_state = random_state
        self.class_weight = class_weight

    def fit(self, X: Any, y: Any, groups: Any = None) -> LogRegHead:
        """Fit.

        Args:
            X: (n, d) vectors.
            y: (n,) labels.
            groups: (n,) of any type; rows with the same one stay in one fold.

        Raises:
            UsageError: a value is not finite (the row is named), there is one class only, or *groups* has
                another length.
        """
        X, classes, numbers, groups = to_fit(self, X, y, groups)
        y = classes[numbers]
        Cs = sorted(float(C) for C in self.Cs)
        k = splits.usable_k(y, groups, self.cv)
        self.scores_ = self._held_out_losses(X, y, groups, Cs, k) if k and len(Cs) > 1 else np.full(len(Cs), np.nan)
        measured = not np.isnan(self.scores_).all()
        best = int(np.nanargmin(self.scores_)) if measured else len(Cs) // 2
        self.chosen_by_ = f"{k}-fold cross-validation" if measured else "given, not compared: too few items of a class"
        if len(Cs) == 1:
            self.chosen_by_ = "given"
        scaler = StandardScaler().fit(X)
        model = self._fitted(scaler.transform(X), y, Cs[best], None)
        self.chosen_ = {"C": Cs[best]}
        self.converged_ = bool(model.n_iter_.max() < self.max_iter)
        self.classes_ = model.classes_
        self.coef_ = model.coef_ / scaler.scale_
        self.intercept_ = model.intercept_ - self.coef_ @ scaler.mean_
        return self

    def _held_out_losses(
        self, X: np.ndarray, y: np.ndarray, groups: np.ndarray, Cs: Sequence[float], k: int
    ) -> np.ndarray:
        """Mean held-out log-loss of each C from small to large, NaN behind the clear end of the descent."""
        folds = []
        weights = compute_sample_weight(self.class_weight, y)
        for train_rows, test in splits.folds(y, groups, k, self.random_state):
            if len(np.unique(y[train_rows])) < len(np.unique(y)):
                continue  # groups of several classes can put all of one class into one fold
            scaler = StandardScaler().fit(X[train_rows])
            folds.append(
                (scaler.transform(X[train_rows]), y[train_rows], scaler.transform(X[test]), y[test], weights[test])
            )
        # Each fit starts from that of the smaller C on the same rows: nothing leaks between folds.
        models: list[Any] = [None] * len(folds)
        scores = np.full(len(Cs), np.nan)
        count = sum(weight.sum() for *_, weight in folds)
        for place, C in enumerate(Cs if folds else []):
            total = 0.0
            for i, (learned, labels, held_out, truth, weight) in enumerate(folds):
                models[i] = self._fitted(learned, labels, C, models[i])
                p = models[i].predict_proba(held_out)
                total += weight.sum() * log_loss(truth, p, labels=models[i].classes_, sample_weight=weight)
            scores[place] = total / count
            if scores[place] > _CLEARLY_WORSE * np.nanmin(scores):
                break
        return scores

    def _fitted(self, Z: np.ndarray, y: np.ndarray, C: float, start: Any) -> Any:
        model = LogisticRegression(C=C, max_iter=self.max_iter, warm_start=True, class_weight=self.class_weight)
        if start is not None:
            model.coef_, model.intercept_, model.classes_ = start.coef_, start.intercept_, start.classes_
        with warnings.catch_warnings():
            # Told by `converged_`; a warning a fold would bury what matters.
            warnings.simplefilter("ignore", ConvergenceWarning)
            return model.fit(Z, y)

    def decision_function(self, X: Any) -> np.ndarray:
        """(n, k) scores, or (n,) for two classes."""
        check_is_fitted(self)
        scores = to_answer(self, X) @ self.coef_.T + self.intercept_
        return np.asarray(scores[:, 0] if scores.shape[1] == 1 else scores)

    def predict_proba(self, X: Any) -> np.ndarray:
        """(n, k) probabilities in the order of ``classes_``."""
        scores = self.decision_function(X)
        if scores.ndim == 1:
            scores = np.column_stack([np.zeros(len(scores)), scores])
        return softmax(scores)

    def predict(self, X: Any) -> np.ndarray:
        """(n,) the likeliest label."""
        return np.asarray(self.classes_[self.predict_proba(X).argmax(1)])
