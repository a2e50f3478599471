"""Centred vectors in the axes of their own variance, which keep every L2-penalised linear problem the same.

With orthonormal columns V that span the rows of X - 1mᵀ, the substitution W = V U changes neither
(X - 1mᵀ) W nor ‖W‖, so a problem with a free intercept has the same optimum in U. In these axes the Gram
matrix is diagonal: its entries are what preconditions a solver, and for fewer rows than features there
are only as many axes as rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import linalg


@dataclass(frozen=True, slots=True)
class Rotation:
    """From vectors to principal axes and back.

    Attributes:
        mean: (d,) float64, the weighted mean that is taken off.
        basis: (d, r) float32, orthonormal columns, r = min(n, d).
    """

    mean: np.ndarray
    basis: np.ndarray

    def rotated(self, X: np.ndarray) -> np.ndarray:
        """(n, d) vectors as (n, r) float32."""
        return np.asarray((X - self.mean.astype(np.float32)) @ self.basis)

    def back(self, U: np.ndarray) -> np.ndarray:
        """(…, r) weights in the axes as (…, d) weights of the vectors, float64."""
        return np.asarray(U, dtype=np.float64) @ self.basis.T.astype(np.float64)


def principal_axes(X: np.ndarray, weights: np.ndarray) -> Rotation:
    """The axes of some vectors.

    Args:
        X: (n, d) float32.
        weights: (n,) of the rows, not negative, not all zero.

    Returns:
        Axes that are orthonormal to float32 precision, whatever the condition of X: eigenvectors of a Gram
        matrix, and where n < d within the span of a QR decomposition of the rows.
    """
    total = weights.sum(dtype=np.float64)
    mean = np.einsum("n,nd->d", weights / total, X, dtype=np.float64)
    centred = X - mean.astype(np.float32)
    centred *= np.sqrt(weights / total, dtype=np.float32)[:, None]
    n, d = X.shape
    if n < d:
        span, _ = linalg.qr(centred.T, mode="economic", check_finite=False)
        centred = centred @ span
        return Rotation(mean, np.ascontiguousarray(span @ _eigenvectors(centred)))
    return Rotation(mean, _eigenvectors(centred))


def _eigenvectors(centred: np.ndarray) -> np.ndarray:
    """Of the Gram matrix, in float32: its eigenvectors only have to be orthonormal and nearly diagonalise it."""
    gram = centred.T @ centred
    # Scaled, so that tiny vectors do not vanish in their squares.
    gram /= max(float(np.abs(gram).max()), np.finfo(np.float32).tiny)
    return np.ascontiguousarray(linalg.eigh(gram, driver="evd", overwrite_a=True, check_finite=False)[1])
