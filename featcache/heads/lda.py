"""Linear discriminant analysis in whitened coordinates: where a projection for matching starts from.

With x the vectors less their mean and S their covariance within identities, the coordinates are z = L⁻¹ x, where
L Lᵀ = (1 - a) S + a m I is S shrunk towards a multiple of the identity that has its mean variance m (Ledoit and Wolf
2004). In them images of one identity vary alike in all directions, and the discriminants of Fisher (1936) and Rao
(1948) are the principal components of the identities' means. With more numbers than vectors all takes place in the
span of the vectors, which loses nothing, as the rest of the space has the variance a m in every direction.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.linalg

FEWEST_WITHIN = 10
"""With fewer degrees of freedom within identities, n - k, their covariance is that of all vectors instead."""


@dataclass(frozen=True)
class Scatter:
    """Vectors about their mean, and how they vary within identities.

    Attributes:
        mean: (d,) float64.
        basis: (d, r) float64 with orthonormal columns, whose span holds the vectors; None where r = d.
        rows: (n, r) float64, the vectors less their mean in that basis.
        class_ids: (n,) int64, identities from 0.
        within: (r, r) float64 covariance within identities.
        variance: its mean over all directions.
        directions: how many there are, d, of which the rows may span r alone.
    """

    mean: np.ndarray
    basis: np.ndarray | None
    rows: np.ndarray
    class_ids: np.ndarray
    within: np.ndarray
    variance: float
    directions: int

    @cached_property
    def ledoit_wolf(self) -> float:
        """The shrinkage of Ledoit and Wolf (2004), from 0 to 1."""
        from sklearn.covariance import ledoit_wolf_shrinkage

        residual, _ = _residual(self.rows, self.class_ids)
        if residual.shape[1] == self.directions:
            return float(ledoit_wolf_shrinkage(residual, assume_centered=True))
        return _shrinkage(residual, self.directions)


@dataclass(frozen=True)
class Whitened:
    """Whitened coordinates and the discriminants in them.

    Attributes:
        scatter: of the vectors.
        factor: (r, r) float64, the lower triangular L.
        rows: (n, r) float32, coordinates of the vectors.
        discriminants: (p, r) float32 orthonormal, the most discriminating first.
    """

    scatter: Scatter
    factor: np.ndarray
    rows: np.ndarray
    discriminants: np.ndarray

    def coordinates(self, X: np.ndarray) -> np.ndarray:
        """(m, d) vectors into (m, r) float32 coordinates."""
        rows = np.asarray(X, dtype=np.float64) - self.scatter.mean
        if self.scatter.basis is not None:
            rows = rows @ self.scatter.basis
        return _whitened(self.factor, rows)

    def unfolded(self, weight: np.ndarray) -> np.ndarray:
        """The map (p, r) of coordinates as one (p, d) float32 of vectors less their mean."""
        map_ = scipy.linalg.solve_triangular(self.factor, weight.astype(np.float64).T, lower=True, trans="T").T
        if self.scatter.basis is not None:
            map_ = map_ @ self.scatter.basis.T
        return np.ascontiguousarray(map_, dtype=np.float32)


def scatter_of(X: np.ndarray, class_ids: np.ndarray, *, directions: int | None = None) -> Scatter:
    """Measure how vectors vary within identities.

    Args:
        X: (n, d) finite vectors.
        class_ids: (n,) identities from 0.
        directions: of the space that X has coordinates in, where these are of a basis that spans all of X but not
            the space; d by default.
    """
    exact = np.asarray(X, dtype=np.float64)
    mean = exact.mean(axis=0)
    rows, basis = exact - mean, None
    n, d = rows.shape
    if directions is None and d > n:
        basis, triangle = scipy.linalg.qr(rows.T, mode="economic", check_finite=False)
        rows = triangle.T
    residual, freedom = _residual(rows, class_ids)
    within = residual.T @ residual / max(freedom, 1)
    directions = directions or d
    return Scatter(mean, basis, rows, class_ids, within, float(np.trace(within)) / directions, directions)


def whiten(scatter: Scatter, shrinkage: float, dimensions: int) -> Whitened:
    """Whiten, and find the discriminants.

    Args:
        scatter: of the vectors.
        shrinkage: a, from 0 to 1.
        dimensions: at most so many discriminants; there are fewer than identities, and no more than numbers.
    """
    r = len(scatter.within)
    covariance = (1 - shrinkage) * scatter.within
    # So little that no direction without variance is divided by 0, and none with some is changed.
    floor = 1e-9 * max(float(np.trace(scatter.within)) / r, np.finfo(np.float64).tiny / 1e-9)
    covariance[np.diag_indices(r)] += shrinkage * scatter.variance + floor
    factor = scipy.linalg.cholesky(covariance, lower=True, check_finite=False)
    rows = _whitened(factor, scatter.rows)
    weighted = _means(rows.astype(np.float64), scatter.class_ids) * np.sqrt(np.bincount(scatter.class_ids))[:, None]
    axes = np.linalg.svd(weighted, full_matrices=False)[2]
    # The means lie about the mean of all, so that the last axis has no extent.
    return Whitened(scatter, factor, rows, axes[: min(dimensions, len(weighted) - 1, r)].astype(np.float32))


def _residual(rows: np.ndarray, class_ids: np.ndarray) -> tuple[np.ndarray, int]:
    """What rows differ by from their identity's mean, and the degrees of freedom; from the mean of all, if few."""
    freedom = len(rows) - int(class_ids.max()) - 1
    if freedom < FEWEST_WITHIN:
        return rows, len(rows) - 1
    return rows - _means(rows, class_ids)[class_ids], freedom


def _whitened(factor: np.ndarray, rows: np.ndarray) -> np.ndarray:
    solved = scipy.linalg.solve_triangular(factor, rows.T, lower=True, check_finite=False)
    return np.ascontiguousarray(solved.T, dtype=np.float32)


def _means(rows: np.ndarray, class_ids: np.ndarray) -> np.ndarray:
    """(k, r) the mean of each identity."""
    counts = np.bincount(class_ids)
    sums = np.zeros((len(counts), rows.shape[1]))
    np.add.at(sums, class_ids, rows)
    return np.asarray(sums / counts[:, None])


def _shrinkage(residual: np.ndarray, d: int) -> float:
    """Ledoit and Wolf's shrinkage in d directions of vectors (n, r) whose other d - r numbers are 0."""
    n = len(residual)
    gram = residual @ residual.T
    squares = np.square(np.diag(gram))
    # With S = XᵀX / n: ‖S‖² = ‖XXᵀ‖² / n², and Σ‖xxᵀ - S‖² = Σ‖x‖⁴ - n ‖S‖².
    norm = float(np.square(gram).sum()) / n**2
    distance = norm - (float(np.trace(gram)) / n) ** 2 / d
    spread = (float(squares.sum()) / n - norm) / n
    return float(np.clip(spread / distance, 0, 1)) if distance > 0 else 1.0
