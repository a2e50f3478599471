"""The head ``knn``: weighted votes of the nearest vectors, with k chosen by leave-one-out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from featcache.core.errors import UsageError
from featcache.heads.predictors import KnnPredictor, nearest, normalized, vote_weights
from featcache.heads.validation import to_answer, to_fit

KS = (1, 3, 5, 10, 20, 50)
_QUERIES, _FEWEST_QUERIES, _COSINES = 10_000, 1_000, 1_000_000_000


class KnnHead(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """k nearest neighbors by cosine, with weighted votes (see `featcache.heads.predictors.KnnPredictor`).

    Args:
        ks: numbers of neighbors to choose from; those above n - 1 are left out.
        random_state: draws the rows that k is chosen on, where there are more than 10,000 (from 100,000
            on fewer, but at least 1,000).

    Attributes:
        classes_: (k,) labels.
        vectors_: (n, d) the vectors fitted on, divided by their lengths.
        class_ids_: (n,) int64, their classes as places in ``classes_``.
        k_: how many vote.
        ks_: the numbers that were compared, ascending.
        scores_: for each of them the log-loss, each row's group left out; on a tie the larger is taken.
        chosen_: ``{"k": …}``.
        chosen_by_: how it was chosen, in words.
    """

    def __init__(self, ks: Sequence[int] = KS, random_state: int = 0) -> None:
        self.ks = ks
        self.random_state = random_state

    def fit(self, X: Any, y: Any, groups: Any = None) -> KnnHead:
        """Fit.

        Args:
            X: (n, d) vectors.
            y: (n,) labels.
            groups: (n,) rows with the same one do not vote for each other while k is chosen.

        Raises:
            UsageError: a value is not finite (the row is named), there is one class only, or *ks* are not
                whole numbers from 1 on.
        """
        ks = np.atleast_1d(np.asarray(self.ks))
        if not len(ks) or ks.dtype.kind not in "iu" or ks.min() < 1:
            raise UsageError(f"ks must be one or more whole numbers from 1 on, not {self.ks!r}.")
        X, self.classes_, self.class_ids_, groups = to_fit(self, X, y, groups)
        self.vectors_ = normalized(X)
        alike = len(np.unique(groups)) == 1
        if alike:
            groups = np.arange(len(groups))
        n = len(groups)
        self.ks_ = np.unique(np.minimum(ks.astype(np.int64), n - 1))
        queries = np.arange(n)
        most = min(_QUERIES, max(_FEWEST_QUERIES, _COSINES // n))
        if n > most:
            queries = np.sort(np.random.default_rng(self.random_state).choice(n, most, replace=False))
        self.scores_ = self._left_out_losses(queries, groups)
        best = len(self.ks_) - 1 - int(np.argmin(self.scores_[::-1]))
        self.k_ = int(self.ks_[best])
        self.chosen_ = {"k": self.k_}
        what = "item, as all are of one group" if alike else "group" if len(np.unique(groups)) < n else "item"
        some = f", for {len(queries):,} items" if len(queries) < n else ""
        self.chosen_by_ = f"leaving out one {what}{some}" if len(self.ks_) > 1 else "given"
        return self

    def _left_out_losses(self, queries: np.ndarray, groups: np.ndarray) -> np.ndarray:
        """Mean log-loss of each k over some rows."""
        total = np.zeros(len(self.ks_))
        asked = self.vectors_[queries]
        for at, cosines, places in nearest(self.vectors_, asked, int(self.ks_[-1]), groups, groups[queries]):
            votes = vote_weights(cosines)
            own = votes * (self.class_ids_[places] == self.class_ids_[queries[at], None])
            p = (own.cumsum(axis=1) + 1 / len(self.classes_)) / (votes.cumsum(axis=1) + 1)
            total -= np.log(p[:, self.ks_ - 1]).sum(axis=0)
        return total / len(queries)

    def predictor(self) -> KnnPredictor:
        """What is saved and converted to torch: labels as text, vectors in float32."""
        check_is_fitted(self)
        return self._predictor(self.vectors_.astype(np.float32))

    def _predictor(self, vectors: np.ndarray) -> KnnPredictor:
        return KnnPredictor(vectors, self.class_ids_, self.k_, tuple(str(c) for c in self.classes_))

    def predict_proba(self, X: Any) -> np.ndarray:
        """(n, k) probabilities in the order of ``classes_``."""
        check_is_fitted(self)
        return self._predictor(self.vectors_).probabilities(to_answer(self, X))

    def predict(self, X: Any) -> np.ndarray:
        """(n,) the most likely label."""
        places = self.predict_proba(X).argmax(axis=1)
        return np.asarray(self.classes_[places])
