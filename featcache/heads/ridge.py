"""The head ``ridge``: ridge regression on the classes, with its penalty chosen by exact leave-one-out.

Targets are 1 for an item's class and -1 for the others; the intercept is free. In the axes of the centered vectors' own
variance, Z = (X - 1mᵀ) V and ZᵀZ = diag(s), the fit for the penalty λ is Ŷ = Ȳ + Z diag(1/(s + λ)) ZᵀY, so one
eigendecomposition serves all penalties and each λ costs one product. The hat matrix is
H = 11ᵀ/n + Z diag(1/(s + λ)) Zᵀ, and a fit without the rows I predicts for them Y_I - (1 - H_II)⁻¹ (Y_I - Ŷ_I)
(Allen 1974 for one row; Cook and Weisberg 1982, section 2.2, for several), so no fit is repeated. A temperature is
fitted on these scores for each penalty; the penalty with the lowest log-loss is chosen, on a tie the larger one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from featcache.core.errors import UsageError
from featcache.core.threads import one_blas_thread
from featcache.heads.streaming import VectorStream
from featcache.heads.validation import LinearHead, check_finite, class_scores, to_fit
from featcache.metrics.calibration import fit_temperature

_NUMBERS_AT_ONCE = 8_000_000


@dataclass(frozen=True)
class RidgeAxes:
    """Sums over n rows, turned into their axes.

    Attributes:
        n: rows.
        mean: (d,) float64, the mean of the vectors.
        axes: (d, r) float64, V; orthonormal columns.
        sizes: (r,) float64, s.
        targets: (k,) float64, Ȳ.
        products: (r, k) float64, ZᵀY.
    """

    n: int
    mean: np.ndarray
    axes: np.ndarray
    sizes: np.ndarray
    targets: np.ndarray
    products: np.ndarray

    def rotated(self, X: np.ndarray) -> np.ndarray:
        """Z of some vectors, in their own precision."""
        return np.asarray((X - self.mean.astype(X.dtype)) @ self.axes.astype(X.dtype))

    def coefficients(self, penalty: float) -> tuple[np.ndarray, np.ndarray]:
        """(k, d) and (k,) float64 for the vectors as they were given."""
        coef = (self.axes @ (self.products / (self.sizes + penalty)[:, None])).T
        return coef, self.targets - coef @ self.mean


def signs(class_ids: np.ndarray, k: int) -> np.ndarray:
    """Targets as scikit-learn's RidgeClassifier has them: 1 for the class and -1 for others; (n, 1) where k = 2."""
    columns = np.arange(k) if k > 2 else np.array([1])
    return np.where(class_ids[:, None] == columns, 1.0, -1.0)


def ridge_axes(stream: VectorStream) -> RidgeAxes:
    """One pass over the rows; products in the vectors' own precision, sums in float64.

    Raises:
        UsageError: a value is not finite (the row is named), or so large that its square is not.
    """
    n, d, k = len(stream), stream.width, len(stream.classes)
    targets = np.bincount(stream.class_ids, minlength=k) @ signs(np.arange(k), k) / n
    if n < d:
        return _of_few(stream.read(np.arange(n)), signs(stream.class_ids, k) - targets, targets)
    shift: np.ndarray | None = None
    total, gram, cross = np.zeros(d), np.zeros((d, d)), np.zeros((d, len(targets)))
    for rows, X in stream.blocks():
        check_finite(X, rows)
        # Taken off before multiplying, so that a large common part does not drown the differences.
        shift = X.mean(axis=0) if shift is None else shift
        X = X - shift
        total += X.sum(axis=0, dtype=np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            gram += X.T @ X
        # These sum to 0, so it does not matter that X is not centered exactly.
        cross += X.T @ (signs(stream.class_ids[rows], k) - targets).astype(X.dtype)
    assert shift is not None
    gram -= np.outer(total, total / n)
    if not np.isfinite(gram).all():
        raise UsageError("The vectors hold numbers so large that their squares overflow. Divide all by one number.")
    sizes, axes = _eigh(gram)
    return RidgeAxes(n, shift + total / n, axes, np.maximum(sizes, 0), targets, axes.T @ cross)


def _of_few(X: np.ndarray, centred_targets: np.ndarray, targets: np.ndarray) -> RidgeAxes:
    """The same by the inner products of the rows, of which there are fewer than features."""
    check_finite(X)
    mean = X.mean(axis=0, dtype=np.float64)
    centred = X.astype(np.float64) - mean
    sizes, rows = _eigh(centred @ centred.T)
    # Centring leaves n - 1 axes at most, and equal rows fewer; the rest is rounding.
    real = sizes > sizes[-1] * len(X) * np.finfo(X.dtype).eps
    sizes, rows = sizes[real], rows[:, real]
    axes = (centred.T @ rows) / np.sqrt(sizes)
    return RidgeAxes(len(X), mean, axes, sizes, targets, np.sqrt(sizes)[:, None] * (rows.T @ centred_targets))


def left_out_scores(
    fitted: RidgeAxes, Z: np.ndarray, Y: np.ndarray, groups: np.ndarray, penalties: np.ndarray
) -> Iterator[np.ndarray]:
    """What fits without each row's group say of it.

    Args:
        fitted: of all rows.
        Z: (m, r) rotated vectors of some of the rows, every group with all it has.
        Y: (m, k) their targets.
        groups: (m,) int64; none of them holds all n rows.
        penalties: all positive.

    Yields:
        (m, k) scores for each penalty, in Z's precision.
    """
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=groups[order[0]] - 1))
    counts = np.diff(starts, append=len(order))
    alone = order[starts[counts == 1]]
    several = [(size, starts[counts == size, None] + np.arange(size)) for size in np.unique(counts[counts > 1])]
    r = Z.shape[1]
    without = [_without_group(fitted, Z[order[at]], Y[order[at]]) for size, sets in several if size > r for at in sets]
    shrinking = 1 / (fitted.sizes + penalties[:, None])
    leverages = 1 / fitted.n + np.square(Z[alone]) @ shrinking.T.astype(Z.dtype)
    fits = _scores_of_all(fitted, Z, shrinking)
    for penalty, shrunk, leverage, scores in zip(penalties, shrinking, leverages.T, fits, strict=True):
        scores[alone] = Y[alone] - (Y[alone] - scores[alone]) / (1 - leverage)[:, None]
        refits = iter(without)
        for size, sets in several:
            if size > r:
                for at in sets:
                    scores[order[at]] = next(refits)(penalty, Z[order[at]])
                continue
            step = max(1, _NUMBERS_AT_ONCE // (size * r))
            for first in range(0, len(sets), step):
                rows = order[sets[first : first + step]]
                own = Z[rows].astype(np.float64)
                hat = (own * shrunk) @ own.transpose(0, 2, 1) + 1 / fitted.n
                residuals = np.linalg.solve(np.eye(size) - hat, Y[rows] - scores[rows])
                scores[rows] = Y[rows] - residuals
        yield scores


def _scores_of_all(fitted: RidgeAxes, Z: np.ndarray, shrinking: np.ndarray) -> Iterator[np.ndarray]:
    """Scores (m, k) of the fit to all rows for each penalty, of which several share a pass over Z."""
    step = max(1, _NUMBERS_AT_ONCE // (len(Z) * fitted.products.shape[1]))
    for first in range(0, len(shrinking), step):
        some = shrinking[first : first + step]
        weights = np.hstack([fitted.products * shrunk[:, None] for shrunk in some])
        scores = Z @ weights.astype(Z.dtype) + np.tile(fitted.targets, len(some)).astype(Z.dtype)
        yield from np.split(scores, len(some), axis=1)


def _without_group(fitted: RidgeAxes, Z: np.ndarray, Y: np.ndarray) -> Callable[[float, np.ndarray], np.ndarray]:
    """The fit without one group of more rows than axes: from a penalty and vectors to scores.

    Its sums are those of all rows less its own, which is smaller work than a hat matrix of its rows.
    """
    left = fitted.n - len(Z)
    mean = -Z.sum(axis=0, dtype=np.float64) / left
    targets = (fitted.n * fitted.targets - Y.sum(axis=0)) / left
    gram = np.diag(fitted.sizes) - Z.T @ Z - left * np.outer(mean, mean)
    # Y of all rows is not centered here: Z sums to 0 over them, so ZᵀY is the same.
    cross = fitted.products - Z.T @ Y.astype(Z.dtype) - left * np.outer(mean, targets)
    sizes, axes = _eigh(gram)
    sizes, products = np.maximum(sizes, 0), axes.T @ cross

    def scores(penalty: float, X: np.ndarray) -> np.ndarray:
        return np.asarray((X - mean) @ (axes @ (products / (sizes + penalty)[:, None])) + targets)

    return scores


def _eigh(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues from small to large, and eigenvectors.

    By one thread: several wait for each other at each of thousands of short steps, and where a core is
    busy with something else that takes ten times as long.
    """
    with one_blas_thread():
        values, vectors = np.linalg.eigh(matrix)
    return values, vectors


RELATIVE_ALPHAS = tuple(10 ** (exponent / 2) for exponent in range(-6, 7))
SCORED_ROWS = 65_536


class RidgeHead(LinearHead):
    """Ridge classifier with calibrated probabilities.

    Args:
        alphas: penalties to choose from, as in scikit-learn's Ridge; by default 13 from 1/1000 to 1000
            times the mean over the features of their sum of squares about the mean.
        random_state: draws the rows whose leave-one-out answers are compared, where there are more than
            65,536; whole groups of them.

    Attributes:
        classes_: (k,) labels.
        coef_: (k, d) float64, those of scikit-learn's RidgeClassifier; for two classes (1, d).
        intercept_: (k,) or (1,).
        alpha_: the penalty that was chosen.
        temperature_: probabilities are softmax(scores / temperature_), fitted on leave-one-out scores.
        alphas_: (p,) the penalties from small to large.
        scores_: (p,) leave-one-out log-loss of each.
        left_out_rows_: (m,) the rows that were left out in turn.
        left_out_scores_: (m, k) float32 scores of the two or more classes by the fits without them, at the penalty
            chosen.
        chosen_: ``{"alpha": …}``.
        chosen_by_: how it was chosen, in words.
    """

    def __init__(self, alphas: Sequence[float] | None = None, random_state: int = 0) -> None:
        self.alphas = alphas
        self.random_state = random_state

    def fit(self, X: Any, y: Any, groups: Any = None) -> RidgeHead:
        """Fit.

        Args:
            X: (n, d) vectors.
            y: (n,) labels.
            groups: (n,) rows with the same one are left out together.

        Raises:
            UsageError: a value is not finite (the row is named), there is one class only, or a penalty is
                not positive.
        """
        X, classes, class_ids, groups = to_fit(self, X, y, groups)
        return self.fit_stream(VectorStream(lambda rows: X[rows], class_ids, groups, classes, X.shape[1]))

    def fit_stream(self, stream: VectorStream) -> RidgeHead:
        """Fit on vectors that need not fit in memory: one pass over all, and one over those compared."""
        fitted = ridge_axes(stream)
        return self.fit_rotated(
            fitted, stream, lambda rows: np.concatenate([fitted.rotated(X) for _, X in stream.blocks(rows)])
        )

    def fit_rotated(
        self, fitted: RidgeAxes, stream: VectorStream, rotated: Callable[[np.ndarray], np.ndarray]
    ) -> RidgeHead:
        """Fit on vectors whose axes are known.

        Args:
            fitted: the axes.
            stream: the vectors; they are not read.
            rotated: from row numbers (m,) to vectors (m, r) in these axes.
        """
        self.classes_, self.n_features_in_ = stream.classes, stream.width
        if self.alphas is None:
            alphas = np.array(RELATIVE_ALPHAS) * (fitted.sizes.sum() / stream.width or 1.0)
        else:
            alphas = np.sort(np.asarray(self.alphas, dtype=np.float64))
            if not len(alphas) or not (alphas > 0).all():
                raise UsageError(f"alphas must be one or more positive numbers, not {self.alphas!r}.")
        self.left_out_rows_, groups, leaves_out = self._left_out(stream.groups)
        self._choose(fitted, rotated(self.left_out_rows_), stream.class_ids[self.left_out_rows_], groups, alphas)
        self.chosen_by_ = f"leaving out one {leaves_out}" if len(alphas) > 1 else "given"
        self.coef_, self.intercept_ = fitted.coefficients(self.alpha_)
        return self

    def memory_needed(self, n: int, d: int, k: int) -> int:
        """Bytes that a fit holds at least, of n float32 vectors of d numbers in k classes, read piece by piece."""
        r, compared = min(n, d), min(n, SCORED_ROWS)
        # A Gram matrix, its eigenvectors and as much again to find them; the axes of the vectors; the vectors that are
        # compared in these axes, while they are put together twice, and their scores.
        return 8 * (4 * r * r + r * d) + 4 * compared * (2 * r + k)

    def seconds_needed(self, n: int, d: int, k: int) -> float:
        """About how many seconds of processor time a fit takes, see `featcache.heads.duration`."""
        r = min(n, d)
        # The vectors' inner products, their axes, and the scores of all penalties.
        return 5e-11 * n * d * r + 1.5e-10 * r**3 + 1e-9 * min(n, SCORED_ROWS) * r * k

    def _left_out(self, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray, str]:
        """Rows to leave out in turn, whole groups of them; their groups; and what is left out in words."""
        _, group_ids, sizes = np.unique(groups, return_inverse=True, return_counts=True)
        if len(sizes) == 1:
            return np.arange(len(groups)), np.arange(len(groups)), "item, as all are of one group"
        what = "group" if sizes.max() > 1 else "item"
        if len(groups) <= SCORED_ROWS:
            return np.arange(len(groups)), group_ids, what
        order = np.random.default_rng(self.random_state).permutation(len(sizes))
        order = order[sizes[order] <= max(SCORED_ROWS, sizes.min())]
        taken = np.zeros(len(sizes), dtype=bool)
        taken[order] = np.cumsum(sizes[order]) <= SCORED_ROWS
        taken[order[0]] = True
        rows = np.flatnonzero(taken[group_ids])
        return rows, group_ids[rows], f"{what}, for {len(rows):,} items"

    def _choose(
        self, fitted: RidgeAxes, Z: np.ndarray, class_ids: np.ndarray, groups: np.ndarray, alphas: np.ndarray
    ) -> None:
        """Set the penalty and its temperature, by the answers for rows (m, r) of fits without their groups."""
        found: list[tuple[float, float]] = []
        best = 0
        for scores in left_out_scores(fitted, Z, signs(class_ids, len(self.classes_)), groups, alphas):
            start = found[-1][0] if found else None
            found.append(fit_temperature(class_scores(scores), class_ids, start=start))
            if found[-1][1] <= found[best][1]:  # the larger penalty of equals
                best = len(found) - 1
                self.left_out_scores_ = class_scores(scores).astype(np.float32)
        self.alphas_, self.scores_ = alphas, np.array([loss for _, loss in found])
        self.alpha_, self.temperature_ = float(alphas[best]), found[best][0]
        self.chosen_ = {"alpha": self.alpha_}
