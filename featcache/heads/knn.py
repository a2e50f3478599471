"""The head ``knn``: the nearest stored vectors vote, and k is chosen by leaving out.

Votes of the nearest vectors by cosine: what the head ``knn`` answers with, fitted or read from a file.

The k most similar of the stored vectors vote for their classes with weights exp((c - c₁) / 0.07), where c
is the cosine and c₁ that of the nearest (Wu et al. 2018, equation 8, and its temperature). One further
vote is shared by all classes alike, so that no probability is 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from featcache.core.errors import UsageError
from featcache.heads.validation import to_answer, to_fit

SHARPNESS = 0.07
_COSINES_AT_ONCE = 16_000_000


@dataclass(frozen=True)
class KnnPredictor:
    """Stored vectors that vote.

    Attributes:
        vectors: (n, d), of length 1 (or 0).
        numbers: (n,) int64, the class of each as its place in ``classes``.
        k: how many vote.
        classes: labels.
        link: ``votes``; probabilities are those described above.
    """

    vectors: np.ndarray
    numbers: np.ndarray
    k: int
    classes: tuple[str, ...]
    link: str = "votes"

    def probabilities(self, X: np.ndarray) -> np.ndarray:
        """(m, classes) float64 for vectors (m, d), rows sum to 1."""
        found = np.empty((len(X), len(self.classes)))
        for at, cosines, places in nearest(self.vectors, normalised(X), self.k):
            found[at] = shares(cosines, self.numbers[places], len(self.classes))
        return found

    def predict(self, X: np.ndarray) -> np.ndarray:
        """(m,) labels."""
        return np.asarray(np.array(self.classes)[self.probabilities(X).argmax(axis=1)])


def normalised(X: np.ndarray) -> np.ndarray:
    """Vectors (n, d) divided by their lengths; those of length 0 stay 0."""
    # By the largest number first, whose square could be too large or too small.
    X = X / np.maximum(np.abs(X).max(axis=1, keepdims=True), np.finfo(X.dtype).tiny)
    lengths = np.linalg.norm(X, axis=1, keepdims=True)
    return np.asarray(X / np.where(lengths > 0, lengths, 1))


def nearest(
    vectors: np.ndarray,
    queries: np.ndarray,
    k: int,
    groups: np.ndarray | None = None,
    query_groups: np.ndarray | None = None,
) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """The most similar vectors of each query, in blocks of bounded memory.

    Args:
        vectors: (n, d) of length 1.
        queries: (m, d) of length 1.
        k: how many; fewer where n is smaller.
        groups: (n,) numbers.
        query_groups: (m,) numbers; vectors of the query's own group get the cosine -inf.

    Yields:
        Which queries these are, their cosines (b, k) from large to small, and row numbers (b, k).
    """
    k = min(k, len(vectors))
    step = max(1, _COSINES_AT_ONCE // len(vectors))
    for start in range(0, len(queries), step):
        at = slice(start, min(start + step, len(queries)))
        cosines = queries[at] @ vectors.T
        if groups is not None and query_groups is not None:
            cosines[query_groups[at, None] == groups] = -np.inf
        places = np.argpartition(cosines, len(vectors) - k, axis=1)[:, len(vectors) - k :]
        found = np.take_along_axis(cosines, places, axis=1)
        order = np.argsort(-found, axis=1, kind="stable")
        yield at, np.take_along_axis(found, order, axis=1), np.take_along_axis(places, order, axis=1)


def weights(cosines: np.ndarray) -> np.ndarray:
    """The votes' weights, (b, k) float64; that of the nearest is 1."""
    cosines = cosines.astype(np.float64)
    return np.asarray(np.exp((cosines - cosines[:, :1]) / SHARPNESS))


def shares(cosines: np.ndarray, numbers: np.ndarray, classes: int) -> np.ndarray:
    """(b, classes) probabilities from the neighbours' cosines and class numbers, both (b, k)."""
    votes = np.full((len(cosines), classes), 1 / classes)
    for weight, number in zip(weights(cosines).T, numbers.T, strict=True):
        votes[np.arange(len(votes)), number] += weight
    return np.asarray(votes / votes.sum(axis=1, keepdims=True))


KS = (1, 3, 5, 10, 20, 50)
_QUERIES, _FEWEST_QUERIES, _COSINES = 10_000, 1_000, 1_000_000_000


class KnnHead(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """k nearest neighbours by cosine, with weighted votes (see `featcache.heads.knn`).

    Args:
        ks: numbers of neighbours to choose from; those above n - 1 are left out.
        random_state: draws the rows that k is chosen on, where there are more than 10,000 (from 100,000
            on fewer, but at least 1,000).

    Attributes:
        classes_: (k,) labels.
        vectors_: (n, d) the vectors fitted on, divided by their lengths.
        numbers_: (n,) int64, their classes as places in ``classes_``.
        k_: how many vote.
        ks_: the numbers that were compared, ascending.
        scores_: for each of them the log-loss, each row's group left out; of equals the larger is taken.
        chosen_: ``{"k": …}``.
        chosen_by_: how, in words.
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
            raise UsageError(f"ks are whole numbers from 1 on, at least one, not {self.ks!r}.")
        X, self.classes_, self.numbers_, groups = to_fit(self, X, y, groups)
        self.vectors_ = normalised(X)
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
            votes = weights(cosines)
            own = votes * (self.numbers_[places] == self.numbers_[queries[at], None])
            p = (own.cumsum(axis=1) + 1 / len(self.classes_)) / (votes.cumsum(axis=1) + 1)
            total -= np.log(p[:, self.ks_ - 1]).sum(axis=0)
        return total / len(queries)

    def predictor(self) -> KnnPredictor:
        """What is saved and turned into torch: labels as text, vectors in float32."""
        check_is_fitted(self)
        return self._form(self.vectors_.astype(np.float32))

    def _form(self, vectors: np.ndarray) -> KnnPredictor:
        return KnnPredictor(vectors, self.numbers_, self.k_, tuple(str(c) for c in self.classes_))

    def predict_proba(self, X: Any) -> np.ndarray:
        """(n, k) probabilities in the order of ``classes_``."""
        check_is_fitted(self)
        return self._form(self.vectors_).probabilities(to_answer(self, X))

    def predict(self, X: Any) -> np.ndarray:
        """(n,) the likeliest label."""
        places = self.predict_proba(X).argmax(axis=1)
        return np.asarray(self.classes_[places])
