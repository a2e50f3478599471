"""What heads share whose scores are linear and whose probabilities are softmax(scores / T)."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from featcache.evaluation.temperature import softmax
from featcache.heads.validation import to_answer


class TemperedLinearClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Answers from ``coef_``, ``intercept_``, ``temperature_`` and ``classes_``.

    For two classes ``coef_`` is (1, d), and the scores of the classes are 0 and what it gives.
    """

    coef_: np.ndarray
    intercept_: np.ndarray
    temperature_: float
    classes_: np.ndarray

    def decision_function(self, X: Any) -> np.ndarray:
        """(n, k) scores, or (n,) for two classes."""
        check_is_fitted(self)
        scores = to_answer(self, X) @ self.coef_.T + self.intercept_
        return np.asarray(scores[:, 0] if scores.shape[1] == 1 else scores)

    def predict_proba(self, X: Any) -> np.ndarray:
        """(n, k) probabilities in the order of ``classes_``."""
        return softmax(class_scores(self.decision_function(X)) / self.temperature_)

    def predict(self, X: Any) -> np.ndarray:
        """(n,) the likeliest label."""
        places = class_scores(self.decision_function(X)).argmax(axis=1)
        return np.asarray(self.classes_[places])


def class_scores(scores: np.ndarray) -> np.ndarray:
    """One column a class, also where two classes have one score between them: (n,) or (n, 1) becomes (n, 2)."""
    scores = scores.reshape(len(scores), -1)
    return np.column_stack([np.zeros(len(scores), scores.dtype), scores]) if scores.shape[1] == 1 else scores
