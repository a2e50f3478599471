"""Votes of the nearest vectors by cosine: what the head ``knn`` answers with, fitted or read from a file.

The k most similar of the stored vectors vote for their classes with weights exp((c - c₁) / 0.07), where c
is the cosine and c₁ that of the nearest (Wu et al. 2018, equation 8, and its temperature). One further
vote is shared by all classes alike, so that no probability is 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

SHARPNESS = 0.07
_COSINES_AT_ONCE = 16_000_000


@dataclass(frozen=True)
class NeighbourForm:
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
