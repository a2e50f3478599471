"""How far a solution of `softmax_solver` is from the optimum, and Newton's method for its last digits, in float64.

For label distributions α_i with Σ_i s_i (α_i - e_{y_i}) = 0, which the free intercept asks for, and G(α) = Σ_i s_i
(α_i - e_{y_i}) x_iᵀ, convex duality gives

    min F ≥ D(α) = C Σ_i s_i H(α_i) - ½ C² ‖G(α)‖²,        H the entropy in nats.

The probabilities p_i of (W, b) are such distributions once b is the best one for W, which a few Newton steps on its k
numbers bring about; a rest g = Σ_i s_i (p_i - e_{y_i}) remains. With n the weight of each class, S of all, and
θ/(1-θ) = max_j g_j/n_j, the mixture α_i = (1-θ) p_i + θ q with q = (n - (1-θ)(n + g))/(θ S) has none, and as H is
concave

    F(W, b) - min F ≤ ½ ‖W + C G(α)‖² + C (θ (L - ⟨G_q, W⟩ - S H(q)) + (1-θ) g·b),

where L = Σ_i s_i loss_i and G_q = G with q in the place of every α_i. With g = 0 the right-hand side is ½‖∇_W F‖²,
which is also what strong convexity says. Nothing is assumed of how the solution was found.

`Newton` solves for its steps by preconditioned conjugate gradients. Objective and gradient are float64 and computed
from the vectors themselves; the products with the Hessian, of which a few digits are enough, are float32 on the
rotated rows (an inexact Newton method: Nocedal and Wright, Numerical Optimization, 2006, chapter 7).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from featcache.heads.softmax_solver import NO_FOLD, Rotation, Rows, to_residuals

if TYPE_CHECKING:
    from featcache.core.threads import RowThreads

LARGEST_LOSS = -float(np.log(np.finfo(np.float64).eps))
"""A held-out loss is at most this, as in scikit-learn's `log_loss`: of a class that the fold never saw."""

_BLOCK_BYTES, _VECTOR_BYTES = 1 << 20, 1 << 22
LOGITS_BYTES = 1 << 28
"""Logits of so many problems are held at once; those of one in any case."""

_STEPS = 12
_SHARE = 0.05


@dataclass(frozen=True)
class Labeled:
    """The vectors that the problems are about, sorted by fold and within a fold by class.

    Attributes:
        X: (n, d) float32.
        y: (n,) class ids.
        weights: (n,) float64.
        folds: for each fold that has rows its number, its first row and the one behind its last.
        k: how many classes.
    """

    X: np.ndarray
    y: np.ndarray
    weights: np.ndarray
    folds: list[tuple[int, int, int]]
    k: int

    @cached_property
    def sums(self) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """For each fold's rows the weight of each class, (k,), and Σ s x of each class, (k, d)."""
        sums = {}
        for fold, first, stop in self.folds:
            weights, total = np.zeros(self.k), np.zeros((self.k, self.X.shape[1]))
            edges = [first, *(first + 1 + np.flatnonzero(np.diff(self.y[first:stop]))).tolist(), stop]
            for a, b in pairwise(edges):
                weights[self.y[a]] = self.weights[a:b].sum()
                total[self.y[a]] = self.weights[a:b] @ self.X[a:b]
            sums[fold] = weights, total
        return sums


@dataclass(frozen=True, slots=True)
class Certificate:
    """What was found of one solution.

    Attributes:
        intercept: (k,) float64, the best one for the coefficients.
        objective: F, float64.
        gap: a bound of F - min F, relative to F.
        held_out_loss: Σ s loss over the rows of the fold that was left out.
        held_out_hits: Σ s of those rows whose true label is the most likely.
    """

    intercept: np.ndarray
    objective: float
    gap: float
    held_out_loss: float
    held_out_hits: float


class Solution(NamedTuple):
    """A solution of one problem: W (k, d) and b (k,), float64, its C, and the fold it leaves out, or `NO_FOLD`."""

    coef: np.ndarray
    intercept: np.ndarray
    C: float
    fold: int


def certify(data: Labeled, solutions: Sequence[Solution], threads: RowThreads, gap: float) -> list[Certificate]:
    """Certify solutions.

    Args:
        data: the vectors.
        solutions: of P problems, each with an intercept to begin from.
        threads: who computes.
        gap: the relative gap that matters; the intercepts are sought until they hardly add to one of that size.
    """
    at_once = max(1, LOGITS_BYTES // (8 * data.k * len(data.y)))
    found: list[Certificate] = []
    for a in range(0, len(solutions), at_once):
        found += _Some(data, solutions[a : a + at_once], threads).certified(gap)
    return found


class _Some:
    """As many problems as have their logits in memory at once."""

    def __init__(self, data: Labeled, solutions: Sequence[Solution], threads: RowThreads) -> None:
        self.data, self.threads = data, threads
        self.coef, self.b = (np.stack([s[part] for s in solutions]) for part in (0, 1))
        self.Cs, self.folds = np.array([s.C for s in solutions]), [s.fold for s in solutions]
        learned = [[sums for f, sums in data.sums.items() if f != fold or fold == NO_FOLD] for fold in self.folds]
        self.n = np.array([sum(weights for weights, _ in kept) for kept in learned])
        self.class_totals = [np.sum([total for _, total in kept], axis=0) for kept in learned]
        P, k, d = self.coef.shape
        self._stacked = np.ascontiguousarray(self.coef.transpose(1, 0, 2)).reshape(k * P, d)
        self._logits = np.empty((k * P, len(data.y)))

        def forward(start: int, stop: int) -> None:
            for a, b in self._blocks(start, stop):
                np.matmul(self._stacked, data.X[a:b].T.astype(np.float64), out=self._logits[:, a:b])

        threads.map(forward, threads.spans(0, len(data.y)))

    def certified(self, gap: float) -> list[Certificate]:
        """Settle the intercepts, then sum up all that the bounds are made of."""
        self._settle_intercepts(gap)
        P, k, d = self.coef.shape
        L, G, g, held_out = np.zeros(P), np.zeros((k, P, d)), np.zeros((k, P)), np.zeros((2, P))

        def backward(start: int, stop: int) -> tuple[np.ndarray, ...]:
            L, G, g, held_out = np.zeros(P), np.zeros((k * P, d)), np.zeros((k, P)), np.zeros((2, P))
            for a, b, left_out in self._fold_blocks(start, stop):
                R, y, s = self._logits_of(a, b), self.data.y[a:b], self.data.weights[a:b]
                for p in np.flatnonzero(left_out):
                    held_out[:, p] += _held_out(R[:, p], y, s)
                L += np.where(left_out, 0, to_residuals(R, y, s))
                R[:, left_out] = 0
                g += R.sum(2)
                G += R.reshape(k * P, b - a) @ self.data.X[a:b].astype(np.float64)
            return L, G.reshape(k, P, d), g, held_out

        for parts in self.threads.map(backward, self.threads.spans(0, len(self.data.y))):
            for total, part in zip((L, G, g, held_out), parts, strict=True):
                total += part
        return [
            Certificate(self.b[p], *self._bound(p, float(L[p]), G[:, p], g[:, p]), *map(float, held_out[:, p]))
            for p in range(P)
        ]

    def _settle_intercepts(self, gap: float) -> None:
        """Newton's method on the intercepts alone, for each problem until its rest hardly matters."""
        penalties = 0.5 * np.square(self.coef).sum((1, 2))
        open_ = np.arange(len(self.Cs))
        for _ in range(_STEPS):
            still = []
            for p, L, g, H in zip(open_, *self._rests(open_), strict=True):
                occurs = self.n[p] > 0
                theta = float(np.abs(g[occurs] / self.n[p][occurs]).max())
                lost = theta * self.Cs[p] * self.n[p].sum() * np.log(self.data.k)
                if lost > _SHARE * gap * (penalties[p] + self.Cs[p] * L):
                    # All intercepts can move together without effect; adding 1 1ᵀ makes the system regular.
                    H = H[np.ix_(occurs, occurs)]
                    step = np.linalg.solve(H + np.trace(H) / len(H) ** 2, g[occurs])
                    self.b[p, occurs] -= step / max(1.0, float(np.abs(step).max()))
                    still.append(p)
            open_ = np.array(still, dtype=np.int64)
            if not still:
                return

    def _rests(self, which: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For some problems L, g (k,), and Σ s (diag p - p pᵀ) (k, k)."""
        k = self.data.k

        def part(start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            L, g, H = np.zeros(len(which)), np.zeros((len(which), k)), np.zeros((len(which), k, k))
            for a, b, left_out in self._fold_blocks(start, stop):
                y, s = self.data.y[a:b], self.data.weights[a:b]
                learned = np.flatnonzero(~left_out[which])
                if not len(learned):
                    continue
                R = self._logits_of(a, b, which[learned])
                L[learned] += to_residuals(R, y, s)
                g[learned] += R.sum(2).T
                R[y, :, np.arange(b - a)] += s[:, None]
                for place, p in enumerate(learned):
                    H[p] -= R[:, place] @ (R[:, place] / s).T
                    H[p] += np.diag(R[:, place].sum(1))
            return L, g, H

        parts = self.threads.map(part, self.threads.spans(0, len(self.data.y)))
        L, g, H = (np.sum(found, axis=0) for found in zip(*parts, strict=True))
        return L, g, H

    def _logits_of(self, a: int, b: int, which: np.ndarray | slice = slice(None)) -> np.ndarray:
        """A copy (k, problems, rows) with the intercepts."""
        k, P = self.data.k, len(self.Cs)
        chosen = self._logits.reshape(k, P, -1)[:, which, a:b]
        return np.asarray(chosen + self.b[which].T[:, :, None])

    def _blocks(self, start: int, stop: int) -> Iterable[tuple[int, int]]:
        # Of few classes and long vectors the block in float64 would be the larger one.
        rows = min(_BLOCK_BYTES // (8 * len(self._stacked)), _VECTOR_BYTES // (8 * self.data.X.shape[1]))
        size = max(64, rows // 16 * 16)
        for a in range(start, stop, size):
            yield a, min(a + size, stop)

    def _fold_blocks(self, start: int, stop: int) -> Iterable[tuple[int, int, np.ndarray]]:
        """Blocks of rows of one fold, and which problems leave it out."""
        for fold, first, last in self.data.folds:
            left_out = np.array([f == fold and f != NO_FOLD for f in self.folds])
            for a, b in self._blocks(max(start, first), min(stop, last)):
                yield a, b, left_out

    def _bound(self, p: int, L: float, G: np.ndarray, g: np.ndarray) -> tuple[float, float]:
        """F and the bound over F; the names are those of the module's formulas."""
        W, b, C, n = self.coef[p], self.b[p], float(self.Cs[p]), self.n[p]
        S, occurs = n.sum(), n > 0
        F = 0.5 * float(np.square(W).sum()) + C * L
        ratio = max(0.0, float((g[occurs] / n[occurs]).max()))
        theta = ratio / (1 + ratio)
        gap = C * (1 - theta) * float(g[occurs] @ b[occurs])
        if theta > 0:
            q = np.where(occurs, np.maximum((n - (1 - theta) * (n + g)) / (theta * S), 0), 0)
            G_q = np.outer(q, self.class_totals[p].sum(0)) - self.class_totals[p]
            entropy = -float((q[q > 0] * np.log(q[q > 0])).sum())
            gap += C * theta * (L - float((G_q * W).sum()) - S * entropy)
            G = (1 - theta) * G + theta * G_q
        gap += 0.5 * float(np.square(W + C * G).sum())
        return F, gap / max(F, np.finfo(np.float64).tiny)


def _held_out(z: np.ndarray, y: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Σ s loss and Σ s [the most likely is right] for logits (k, rows)."""
    top = z.max(axis=0)
    losses = np.log(np.exp(z - top).sum(axis=0)) + top - z[y, np.arange(len(y))]
    return float(weights @ np.minimum(losses, LARGEST_LOSS)), float(weights @ (z.argmax(axis=0) == y))


_FORCING = 0.03
"""How far the residual of a Newton system is brought down."""

_NEWTON_STEPS = 200
_NEWTON_BLOCK_BYTES = 1 << 21


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

    data: Labeled
    rows: Rows
    rotation: Rotation
    C: float
    diagonal: np.ndarray
    threads: RowThreads

    def polish(self, x: np.ndarray, good: Callable[[np.ndarray, np.ndarray], bool], limit: int = 20) -> np.ndarray:
        """Bring a solution nearer to the optimum.

        Args:
            x: (k, r + 1) float64, the weights in the axes and the intercepts of centered rows.
            good: whether coefficients (k, d) and intercepts (k,) are near enough.
            limit: Newton steps at most.

        Returns:
            The first good point, or the last one reached.
        """
        for _ in range(limit):
            if good(*self.rotation.original(x)):
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

    def _evaluate(self, x: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        """F, its gradient (k, r + 1) float64, and the probabilities (k, n) float32."""
        coef, intercept = self.rotation.original(x)
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
        for _ in range(_NEWTON_STEPS):
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
    size = max(64, _NEWTON_BLOCK_BYTES // bytes_a_row // 16 * 16)
    return [(a, min(a + size, stop)) for a in range(start, stop, size)]
