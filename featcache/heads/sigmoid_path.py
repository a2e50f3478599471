"""The solver of `featcache.heads.multilabel`: one logistic regression a label along a path of penalties."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression


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
