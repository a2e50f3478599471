"""The solver of ``softmax``: many L2-penalised softmax regressions on the same rows, at once.

A problem is one C on one set of rows: all rows, or all but one fold. For rows x_i, labels y_i and weights s_i it
minimizes, over W (k, r) and an unpenalized intercept b (k,),

    F(W, b) = ½‖W‖² + C Σ_i s_i (log Σ_j exp(z_ij) - z_iy),    z_i = W x_i + b.

The problems are stacked: with P of them, the logits of a block of rows are one product of a (P·k, r) and an (r, rows)
matrix, and the gradients are one more. A block of a fold skips that fold's problem. Rows are sorted by fold, then
class, so that what belongs together is a slice.

The rows are rotated to their principal axes (`Rotation`). With orthonormal columns V that span the rows of X - 1mᵀ, W
= V U changes neither (X - 1mᵀ) W nor ‖W‖, so a problem with a free intercept has the same optimum in U, and for fewer
rows than features there are only as many axes as rows. There the Gram matrix is diagonal with entries s_j². With v_k
the mean of p(1 - p) of class k over the rows, the Hessian's diagonal is near C v_k s_j² + 1, and its inverse is the
preconditioner: what L-BFGS (Nocedal 1980) starts its two-loop recursion from. Each problem has its own history and
its own step, found by Armijo's rule; solved ones leave the stack.

From one C to the next a problem starts on the line through its own last two solutions over log C, and keeps its
history: a pair (s, y) of the old problem is (s, s + (y - s) C'/C) in the new one, as only the loss is scaled. No
problem ever starts from another's solution: a fold that started from the fit of all rows would know the labels it is
scored on.

Products are float32, sums over blocks float64. A solution is accepted when ½‖∇F‖², which bounds F - min F, is below
the tolerance by these products; `softmax_certificate` then computes the bound in float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from scipy import linalg

if TYPE_CHECKING:
    from featcache.core.threads import RowThreads

NO_FOLD = -1
"""The fold of rows that are always learned from, and of the problem on all rows."""

_PAIRS = 8
_BLOCK_BYTES = 1 << 20
_ROWS_AT_ONCE = 4096
_SAFE = 60.0
"""Logits that are at most so much above the right one cannot overflow float32 when exponentiated."""
_ABSENT = np.float32(-1e9)
"""The intercept of a class without rows: its probability is 0."""


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of all problems, sorted by fold and within a fold by class.

    Attributes:
        Z: (n, r + 1) float32, rows in principal axes and a last column of ones.
        y: (n,) class ids.
        weights: (n,) float32.
        folds: for each fold that has rows its number, its first row and the one behind its last.
        k: how many classes.
        squares: (r + 1,) float64, Σ s z² of each column.
    """

    Z: np.ndarray
    y: np.ndarray
    weights: np.ndarray
    folds: list[tuple[int, int, int]]
    k: int
    squares: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        squares = np.zeros(self.Z.shape[1])
        for a in range(0, len(self.y), _ROWS_AT_ONCE):
            some = slice(a, a + _ROWS_AT_ONCE)
            squares += self.weights[some].astype(np.float64) @ np.square(self.Z[some])
        object.__setattr__(self, "squares", squares)


@dataclass(eq=False)
class Problem:
    """One problem and where its solver stands.

    Attributes:
        C: its C.
        fold: the fold that is left out.
        x: (k, r + 1) float32, the weights and in the last column the intercepts.
        evaluations: passes over the rows so far, at this C.
        bound: ½‖∇F‖² over F by float32 products.
    """

    C: float
    fold: int
    x: np.ndarray
    f: float = 0.0
    bound: float = np.inf
    evaluations: int = 0
    gradient: np.ndarray = field(default_factory=lambda: np.empty(0))
    diagonal: np.ndarray = field(default_factory=lambda: np.empty(0))
    pairs: list[tuple[np.ndarray, np.ndarray, float]] = field(default_factory=list)
    before: tuple[float, np.ndarray] | None = None

    @property
    def weights(self) -> np.ndarray:
        """(k, r) in the axes."""
        return self.x[:, :-1]

    @property
    def intercepts(self) -> np.ndarray:
        """(k,)."""
        return self.x[:, -1]

    def move_to(self, C: float) -> None:
        """Begin the problem of another C where this one's solution points to."""
        here, ratio = self.x, C / self.C
        if self.before is None:
            self.x = here.copy()
        else:
            C0, x0 = self.before
            self.x = here + (here - x0) * np.float32(np.log(ratio) / np.log(self.C / C0))
        self.before = (self.C, here)
        kept = []
        for s, y, _ in self.pairs:
            penalty = s.copy()
            penalty[:, -1] = 0
            scaled = penalty + (y - penalty) * np.float32(ratio)
            product = _dot(s, scaled)
            if product > 0:
                kept.append((s, scaled, 1 / product))
        self.pairs = kept
        self.C, self.evaluations, self.bound = C, 0, np.inf

    def direction(self) -> np.ndarray:
        """Where to go from here: the two-loop recursion."""
        q = self.gradient.copy()
        steps = []
        for s, y, rho in reversed(self.pairs):
            a = rho * _dot(s, q)
            q -= np.float32(a) * y
            steps.append(a)
        q *= self.diagonal
        for (s, y, rho), a in zip(self.pairs, reversed(steps), strict=True):
            q += np.float32(a - rho * _dot(y, q)) * s
        return -q

    def remember(self, s: np.ndarray, y: np.ndarray) -> None:
        """Keep a step and the change of the gradient along it."""
        product = _dot(s, y)
        if product > 1e-7 * np.sqrt(_dot(s, s) * _dot(y, y)):
            self.pairs.append((s, y, 1 / product))
            del self.pairs[:-_PAIRS]


def start(rows: Rows, C: float, fold: int) -> Problem:
    """A problem at W = 0, with the intercepts that are best there: the logarithms of the shares."""
    share = np.zeros(rows.k)
    for number, first, stop in rows.folds:
        if number != fold or fold == NO_FOLD:
            share += np.bincount(rows.y[first:stop], rows.weights[first:stop], rows.k)
    x = np.zeros((rows.k, rows.Z.shape[1]), np.float32)
    with np.errstate(divide="ignore"):
        x[:, -1] = np.where(share > 0, np.log(share / share.max()), _ABSENT)
    return Problem(C, fold, x)


def solve(problems: Sequence[Problem], rows: Rows, tolerance: float, limit: int, threads: RowThreads) -> None:
    """Bring problems to their optimum.

    Args:
        problems: each at a point of its own; they are changed in place.
        rows: what they are about.
        tolerance: of ½‖∇F‖² / F.
        limit: evaluations of a problem after which it is left as it is.
        threads: who computes.
    """
    found = evaluate(problems, rows, threads, curvature=True)
    for problem, (loss, gradient, curvature) in zip(problems, found, strict=True):
        _take(problem, problem.x, loss, gradient)
        diagonal = problem.C * curvature[:, None] * rows.squares
        diagonal[:, :-1] += 1
        problem.diagonal = np.where(diagonal > 0, 1 / np.maximum(diagonal, 1e-30), 0).astype(np.float32)
        problem.bound = _bound(problem)
    searches = [_Search(p) for p in problems if p.bound > tolerance]
    while searches:
        active, trials = [s.problem for s in searches], [s.trial for s in searches]
        for search, (loss, gradient, _) in zip(searches, evaluate(active, rows, threads, points=trials), strict=True):
            search.judge(loss, gradient)
        searches = [
            s for s in searches if s.problem.bound > tolerance and s.problem.evaluations < limit and not s.exhausted
        ]


class _Search:
    """The step of one problem along its present direction."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.exhausted = False
        self._aim()

    def _aim(self) -> None:
        p = self.problem
        self._way = p.direction()
        self._slope = _dot(self._way, p.gradient)
        if self._slope >= 0:
            p.pairs.clear()
            self._way = -p.diagonal * p.gradient
            self._slope = _dot(self._way, p.gradient)
        self._t = 1.0
        self.trial = p.x + self._way

    def judge(self, loss: float, gradient: np.ndarray) -> None:
        """Take the trial point and aim anew, or shorten the step."""
        p, before = self.problem, self.problem.f
        f, whole = _objective(p.C, self.trial, loss, gradient)
        # Sums of float32 losses differ in their last digits, whatever the step.
        if not f <= before + 1e-4 * self._t * self._slope + 1e-6 * abs(before):
            p.evaluations += 1
            curve = (f - before - self._t * self._slope) if np.isfinite(f) else np.inf
            best = -self._slope * self._t / (2 * curve) if curve > 0 else 0.5
            self._t *= float(np.clip(best, 0.1, 0.5))
            self.trial = p.x + np.float32(self._t) * self._way
            self.exhausted = self._t < 1e-6
            return
        p.remember(self.trial - p.x, whole - p.gradient)
        _take(p, self.trial, loss, gradient)
        p.bound = _bound(p)
        self._aim()


def _objective(C: float, x: np.ndarray, loss: float, gradient: np.ndarray) -> tuple[float, np.ndarray]:
    """F and its gradient from those of the loss."""
    whole = np.float32(C) * gradient
    whole[:, :-1] += x[:, :-1]
    return 0.5 * float(np.square(x[:, :-1], dtype=np.float64).sum()) + C * loss, whole


def _take(problem: Problem, x: np.ndarray, loss: float, gradient: np.ndarray) -> None:
    problem.x = x
    problem.f, problem.gradient = _objective(problem.C, x, loss, gradient)
    problem.evaluations += 1


def _bound(problem: Problem) -> float:
    """½‖∇F‖² over F, the intercepts' part in the metric of the preconditioner."""
    g = problem.gradient.astype(np.float64)
    whole = np.square(g[:, :-1]).sum() + (np.square(g[:, -1]) * problem.diagonal[:, -1]).sum()
    return 0.5 * float(whole) / max(problem.f, np.finfo(np.float64).tiny)


def _dot(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.dot(a.reshape(-1), b.reshape(-1)))


def evaluate(
    problems: Sequence[Problem],
    rows: Rows,
    threads: RowThreads,
    *,
    points: Sequence[np.ndarray] | None = None,
    curvature: bool = False,
) -> Iterator[tuple[float, np.ndarray, np.ndarray]]:
    """Losses and their gradients, for all problems in one pass over the rows.

    Args:
        problems: whose folds count.
        rows: the rows.
        threads: who computes.
        points: (k, r + 1) for each problem; by default where it stands.
        curvature: whether to compute the third of what is returned.

    Returns:
        For each problem Σ s loss, its gradient (k, r + 1) float32, and the mean over the rows of p(1 - p)
        of each class, (k,).
    """
    at = [p.x for p in problems] if points is None else points
    k, width = rows.k, rows.Z.shape[1]
    work = []
    for fold, first, stop in rows.folds:
        inside = [i for i, p in enumerate(problems) if p.fold != fold or fold == NO_FOLD]
        if inside:
            stacked = np.stack([at[i] for i in inside], axis=1).reshape(k * len(inside), width)
            work.append((inside, stacked, threads.spans(first, stop)))

    def share(thread: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        # A thread goes through all folds before anybody waits for it: there are many passes, and each is short.
        losses, gradients = np.zeros(len(problems)), np.zeros((len(problems), k, width))
        spreads = np.zeros((k, len(problems)))
        for inside, stacked, spans in work:
            for a, b in spans[thread : thread + 1]:
                loss, gradient, spread = _part(stacked, rows, a, b, curvature)
                losses[inside] += loss
                spreads[:, inside] += spread
                parts = gradient.reshape(k, len(inside), width)
                for place, i in enumerate(inside):
                    gradients[i] += parts[:, place]
        return losses, gradients, spreads

    losses, gradients, spreads = (np.sum(found, axis=0) for found in zip(*threads.each(share), strict=True))
    total = float(rows.weights.sum(dtype=np.float64))
    for i in range(len(problems)):
        yield float(losses[i]), gradients[i].astype(np.float32), spreads[:, i] / total


def _part(
    stacked: np.ndarray, rows: Rows, start: int, stop: int, curvature: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Some rows' share of the losses, the gradients and Σ s p(1 - p)."""
    k = rows.k
    p = len(stacked) // k
    size = max(128, _BLOCK_BYTES // (4 * len(stacked)) // 16 * 16)
    losses, spread = np.zeros(p), np.zeros((k, p))
    gradient = np.zeros(stacked.shape)
    buffer = np.empty(len(stacked) * min(size, stop - start), np.float32)
    product = np.empty(stacked.shape, np.float32)
    for a in range(start, stop, size):
        b = min(a + size, stop)
        Z = rows.Z[a:b]
        T = buffer[: len(stacked) * (b - a)].reshape(len(stacked), b - a)
        np.matmul(stacked, Z.T, out=T)
        R = T.reshape(k, p, b - a)
        losses += to_residuals(R, rows.y[a:b], rows.weights[a:b])
        if curvature:
            with np.errstate(divide="ignore"):
                inverse = np.where(rows.weights[a:b] > 0, 1 / rows.weights[a:b], 0)
            spread += np.abs(R).sum(2, dtype=np.float64) - np.einsum("kpb,kpb,b->kp", R, R, inverse)
        np.matmul(T, Z, out=product)
        gradient += product
    return losses, gradient, spread


def to_residuals(R: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Turn logits into the gradient of the losses by them, in place.

    The right class's own residual is minus the sum of the others and not p - 1, so that it keeps its
    digits when p is near 1.

    Args:
        R: (k, P, rows) float32 or float64, logits of P problems; becomes s (p - [class is right]).
        y: (rows,) class ids, sorted.
        weights: (rows,) s.

    Returns:
        (P,) float64, Σ s loss.
    """
    right = np.empty(R.shape[1:], R.dtype)
    edges = [0, *(np.flatnonzero(np.diff(y)) + 1).tolist(), len(y)]
    segments = [(int(y[a]), a, b) for a, b in pairwise(edges)]
    for number, a, b in segments:
        right[:, a:b] = R[number, :, a:b]
    R -= right
    top: np.ndarray | float = 0.0
    if float(R.max()) > _SAFE:
        top = R.max(axis=0)
        R -= top
    np.exp(R, out=R)
    for number, a, b in segments:
        R[number, :, a:b] = 0
    others = R.sum(axis=0)
    rest = others + np.expm1(-top)  # what stands beside 1 in the sum over all classes
    losses = top + np.log1p(rest)
    factor = weights / (1 + rest)
    R *= factor
    others *= factor
    for number, a, b in segments:
        R[number, :, a:b] = -others[:, a:b]
    return np.asarray(np.einsum("pb,b->p", losses, weights, dtype=np.float64))


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

    def original(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Weights in the axes and intercepts (k, r + 1) as coefficients (k, d) and intercepts (k,) of the vectors."""
        coef = np.asarray(x[:, :-1], dtype=np.float64) @ self.basis.T.astype(np.float64)
        return coef, x[:, -1] - coef @ self.mean


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
