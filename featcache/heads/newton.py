"""The last digits of one solution: Newton's method, its steps by preconditioned conjugate gradients.

For the problem of `path_solver` on all rows, in its axes. Objective and gradient are float64 and taken from
the vectors themselves; the products with the Hessian, of which a few digits are enough, are float32 on the
rotated rows (an inexact Newton method: Nocedal and Wright, Numerical Optimization, 2006, chapter 7).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from featcache.heads.rotation import Rotation
from featcache.heads.row_threads import RowThreads
from featcache.heads.softmax_certificate import Labelled
from featcache.heads.softmax_solver import Rows, to_residuals

_FORCING = 0.03
"""How far the residual of a Newton system is brought down."""

_STEPS = 200
_BLOCK_BYTES = 1 << 21


@dataclass(frozen=True, slots=True)
class Newton:
    """One problem.

    Attributes:
        data: the vectors.
        rows: the same rows in their axes.
        rotation: between the two.
        C: the C.
        diagonal: (k, r + 1), near to the inverse of the Hessian's diagonal.
        threads: who computes.
    """

    data: Labelled
    rows: Rows
    rotation: Rotation
    C: float
    diagonal: np.ndarray
    threads: RowThreads

    def polish(self, x: np.ndarray, good: Callable[[np.ndarray, np.ndarray], bool], limit: int = 20) -> np.ndarray:
        """Bring a solution nearer to the optimum.

        Args:
            x: (k, r + 1) float64, the weights in the axes and the intercepts of centred rows.
            good: whether coefficients (k, d) and intercepts (k,) are near enough.
            limit: Newton steps at most.

        Returns:
            The first good point, or the last one reached.
        """
        for _ in range(limit):
            if good(*self.original(x)):
                break
            f, gradient, probabilities = self._evaluate(x)
            way = self._direction(gradient, probabilities)
            slope, t = float((way * gradient).sum()), 1.0
            while slope < 0 and t > 1e-8:
                if self._evaluate(x + t * way)[0] <= f + 1e-4 * t * slope:
                    break
                t /= 2
            else:
                break  # float64 sees no descent any more
            x = x + t * way
        return x

    def original(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A point as coefficients (k, d) and intercepts (k,) of the vectors as they are."""
        coef = self.rotation.back(x[:, :-1])
        return coef, x[:, -1] - coef @ self.rotation.mean

    def _evaluate(self, x: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        """F, its gradient (k, r + 1) float64, and the probabilities (k, n) float32."""
        coef, intercept = self.original(x)
        data, k = self.data, len(x)
        probabilities = np.empty((k, len(data.y)), np.float32)

        def part(start: int, stop: int) -> tuple[float, np.ndarray, np.ndarray]:
            loss, sums, rest = 0.0, np.zeros(coef.shape), np.zeros(k)
            for a, b in _blocks(start, stop, max(8 * k, 4 * data.X.shape[1])):
                X = data.X[a:b].astype(np.float64)
                R = coef @ X.T + intercept[:, None]
                p = np.exp(R - R.max(axis=0))
                probabilities[:, a:b] = p / p.sum(axis=0)
                loss += float(to_residuals(R.reshape(k, 1, b - a), data.y[a:b], data.weights[a:b])[0])
                sums += R @ X
                rest += R.sum(axis=1)
            return loss, sums, rest

        loss, G, g = (sum(found) for found in zip(*self.threads.map(part, self._spans), strict=True))
        G = self.C * (G - np.outer(g, self.rotation.mean)) + coef
        gradient = np.column_stack([G @ self.rotation.basis.astype(np.float64), self.C * g])
        return 0.5 * float(np.square(coef).sum()) + self.C * loss, gradient, probabilities

    @property
    def _spans(self) -> list[tuple[int, int]]:
        return self.threads.spans(0, len(self.data.y))

    def _direction(self, gradient: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
        """Near to -H⁻¹ ∇F, by conjugate gradients from 0."""
        d, r = np.zeros(gradient.shape), -gradient
        z = self.diagonal * r
        way, rz = z, float((r * z).sum())
        enough = _FORCING**2 * rz
        for _ in range(_STEPS):
            if rz <= enough:
                break
            h = self._hessian_times(way, probabilities)
            curve = float((way * h).sum())
            if curve <= 0:
                break
            d += rz / curve * way
            r -= rz / curve * h
            z = self.diagonal * r
            rz, before = float((r * z).sum()), rz
            way = z + rz / before * way
        return d

    def _hessian_times(self, v: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
        rows, narrow = self.rows, v.astype(np.float32)

        def part(start: int, stop: int) -> np.ndarray:
            sums = np.zeros(v.shape)
            for a, b in _blocks(start, stop, 4 * len(v)):
                p = probabilities[:, a:b]
                U = narrow @ rows.Z[a:b].T
                U -= (p * U).sum(axis=0)
                U *= p
                U *= rows.weights[a:b]
                sums += U @ rows.Z[a:b]
            return sums

        total = self.C * np.sum(self.threads.map(part, self._spans), axis=0)
        total[:, :-1] += v[:, :-1]
        return np.asarray(total)


def _blocks(start: int, stop: int, bytes_a_row: int) -> list[tuple[int, int]]:
    size = max(64, _BLOCK_BYTES // bytes_a_row // 16 * 16)
    return [(a, min(a + size, stop)) for a in range(start, stop, size)]
