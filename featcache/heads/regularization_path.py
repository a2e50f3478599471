"""Solutions along C for all folds and for all rows, each certified; and the folds.

`RegularizationPath` is asked for one C after the other, from small to large. Where the certificate finds too large a
gap, the problem is solved more closely in float32, and after that by Newton's method.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from featcache.core.errors import UsageError
from featcache.heads import softmax_solver
from featcache.heads.softmax_certificate import Certificate, Labeled, Newton, Solution, certify
from featcache.heads.softmax_solver import NO_FOLD, Problem, Rows, principal_axes
from featcache.metrics import splits

if TYPE_CHECKING:
    from featcache.core.threads import RowThreads
    from featcache.heads.validation import TrainingRows

PATH_GAP, FINAL_GAP = 1e-4, 1e-8
"""Largest relative gaps to the optimum: along the path, and of the solution that is kept."""

_TRIES = 3
_ROWS_AT_ONCE = 4096
_REFINED, _REFINING = 1e-6, 60
"""At the C that is kept the folds are solved more closely too: their weights, and so the held-out losses,
are off by the square root of the gap. So close as float32 comes within so many passes."""


class RegularizationPath:
    """A path over some labeled rows.

    Args:
        rows: the labeled rows.
        fold: (n,) fold numbers from 0 on, or `NO_FOLD`.
        threads: who computes.
        max_iter: passes over the rows for one problem at one C, at most.

    Attributes:
        folds: numbers of the folds.
        held_out_weights: the weight of each fold's rows.
        passes: passes over the rows so far, summed over the problems.
    """

    def __init__(self, rows: TrainingRows, fold: np.ndarray, threads: RowThreads, max_iter: int = 500) -> None:
        X, y, weights, k = rows.X, rows.y, rows.weights, len(rows.classes)
        self._order = np.lexsort((y, fold))
        sorted_folds = fold[self._order]
        fold_ids, firsts = np.unique(sorted_folds, return_index=True)
        stops = [*firsts[1:].tolist(), len(y)]
        spans = [(int(f), int(a), int(b)) for f, a, b in zip(fold_ids, firsts, stops, strict=True)]
        # For two classes ½‖w‖² is twice ½‖W‖² at W = (-w/2, w/2): the same problem with half the C.
        self._scale = 0.5 if k == 2 else 1.0
        self._data = Labeled(X[self._order], y[self._order], weights[self._order], spans, k)
        self._rotation = principal_axes(self._data.X, self._data.weights)
        Z = np.empty((len(y), self._rotation.basis.shape[1] + 1), np.float32)
        for a in range(0, len(y), _ROWS_AT_ONCE):  # all at once would take twice their memory besides
            Z[a : a + _ROWS_AT_ONCE, :-1] = self._rotation.rotated(self._data.X[a : a + _ROWS_AT_ONCE])
        Z[:, -1] = 1
        self._rows = Rows(Z, self._data.y, self._data.weights.astype(np.float32), spans, k)
        self._threads, self._limit = threads, max_iter
        self.folds = [f for f, _, _ in spans if f != NO_FOLD]
        self.held_out_weights = [float(self._data.weights[a:b].sum()) for f, a, b in spans if f != NO_FOLD]
        self.passes = 0
        self._problems: list[Problem] = []
        self._kept: list[Problem] = []

    def solve(self, C: float) -> list[Certificate]:
        """Solve for this C, larger than the one before.

        Returns:
            A certificate for each fold's problem, in the order of `folds`, and last for the one on all rows.
        """
        if not self._problems:
            fold_ids = [*self.folds, NO_FOLD]
            self._problems = [softmax_solver.start(self._rows, C * self._scale, f) for f in fold_ids]
        else:
            for problem in self._problems:
                problem.move_to(C * self._scale)
        found: list[Certificate | None] = [None] * len(self._problems)
        tolerance = PATH_GAP / 2
        for _ in range(_TRIES):
            open_ = [i for i, c in enumerate(found) if c is None or c.gap > PATH_GAP]
            problems = [self._problems[i] for i in open_]
            if not problems:
                break
            before = sum(p.evaluations for p in problems)
            softmax_solver.solve(problems, self._rows, tolerance, self._limit, self._threads)
            self.passes += sum(p.evaluations for p in problems) - before
            for i, certificate in zip(open_, self._certified(problems), strict=True):
                found[i] = certificate
            tolerance /= 10
        certificates = [c for c in found if c is not None]
        for i, problem in enumerate(self._problems):
            if certificates[i].gap > PATH_GAP:
                # Certified before it is rounded: at a large C the last digits of float32 are worth more than the gap.
                point = self._polished(problem, PATH_GAP)
                certificates[i] = self._certificate(problem, *self._rotation.original(point))
                problem.x = point.astype(np.float32)
        return certificates

    def keep(self) -> None:
        """Remember the solutions for the present C as the ones that the other methods are about."""
        self._kept = [Problem(p.C, p.fold, p.x.copy(), pairs=list(p.pairs)) for p in self._problems]

    def refined(self) -> list[Certificate]:
        """Solve for the C that was kept as closely as float32 can; certificates as of `solve`."""
        softmax_solver.solve(self._kept, self._rows, _REFINED, _REFINING, self._threads)
        self.passes += sum(p.evaluations for p in self._kept)
        return self._certified(self._kept)

    def final(self) -> tuple[np.ndarray, np.ndarray, Certificate]:
        """The solution on all rows for the C that was kept and refined, brought to `FINAL_GAP`.

        Returns:
            Coefficients (k, d) and intercepts (k,), float64, and their certificate.
        """
        problem = self._kept[-1]
        x = self._polished(problem, FINAL_GAP)
        coef, intercept = self._rotation.original(x)
        certificate = self._certificate(problem, coef, intercept)
        return coef, certificate.intercept, certificate

    def held_out_logits(self) -> np.ndarray:
        """(n, k) float32, each row's logits by the problem that did not learn from it; NaN where there is none.

        A class that the problem had no rows of has the logit -inf.
        """
        logits = np.full((len(self._order), self._data.k), np.nan, np.float32)
        for fold, first, stop in self._data.folds:
            if fold != NO_FOLD:
                coef, intercept = self._rotation.original(self._kept[self.folds.index(fold)].x.astype(np.float64))
                learned = np.sum([weights for f, (weights, _) in self._data.sums.items() if f != fold], axis=0)
                for a in range(first, stop, _ROWS_AT_ONCE):
                    some = slice(a, min(a + _ROWS_AT_ONCE, stop))
                    logits[self._order[some]] = np.where(learned > 0, self._data.X[some] @ coef.T + intercept, -np.inf)
        return logits

    def _certified(self, problems: list[Problem]) -> list[Certificate]:
        solutions = [Solution(*self._rotation.original(p.x.astype(np.float64)), p.C, p.fold) for p in problems]
        found = certify(self._data, solutions, self._threads, PATH_GAP)
        for problem, solution, certificate in zip(problems, solutions, found, strict=True):
            problem.x[:, -1] = certificate.intercept + solution.coef @ self._rotation.mean
        return found

    def _certificate(self, problem: Problem, coef: np.ndarray, intercept: np.ndarray) -> Certificate:
        """Of one solution, with an intercept as good as float64 makes it."""
        return certify(self._data, [Solution(coef, intercept, problem.C, problem.fold)], self._threads, FINAL_GAP)[0]

    def _polished(self, problem: Problem, gap: float) -> np.ndarray:
        """The problem's point brought to a gap by Newton's method, float64."""
        data, rows = self._data, self._rows
        if problem.fold != NO_FOLD:
            learned = np.ones(len(data.y))
            for fold, first, stop in data.folds:
                learned[first:stop] = fold != problem.fold
            data = replace(data, weights=data.weights * learned)
            rows = replace(rows, weights=rows.weights * learned.astype(np.float32))

        def good(coef: np.ndarray, intercept: np.ndarray) -> bool:
            return self._certificate(problem, coef, intercept).gap <= gap

        newton = Newton(data, rows, self._rotation, problem.C, problem.diagonal, self._threads)
        return newton.polish(problem.x.astype(np.float64), good)


def draw_folds(cv: Any, rows: TrainingRows, seed: int) -> tuple[np.ndarray, str]:
    """The fold of each row, and in words how a choice by these folds is made.

    Args:
        cv: a number, a scikit-learn splitter, or an iterable of (learn, test) numbers of the rows as they were
            given, those without weight among them.
        rows: the n rows to learn from; some splitters want to see their vectors too.
        seed: of folds drawn by number.

    Returns:
        (n,) fold numbers from 0 on, `NO_FOLD` for rows that are always learned from; all are where no two
        classes have two independent rows.

    Raises:
        UsageError: a row is tested twice, a fold neither learns from a row nor tests it, or fewer than two folds
            are asked for.
    """
    y, groups = rows.y, rows.groups
    fold, places = np.full(len(y), NO_FOLD), np.arange(len(y))
    if isinstance(cv, (int, np.integer)):
        if cv < 2:
            raise UsageError(f"cv must be at least 2, not {cv}.")
        units = [len(np.unique(groups[y == number])) for number in range(int(y.max()) + 1)]
        several = np.flatnonzero(np.array(units) >= 2)
        if len(several) < 2:
            return fold, "given, not compared: too few independent rows"
        comparable = np.flatnonzero(np.isin(y, several))
        k = splits.usable_k(y[comparable], groups[comparable], int(cv))
        drawn = splits.folds(y[comparable], groups[comparable], k, seed)
        tests = [comparable[test] for _, test in drawn]
    else:
        from sklearn.model_selection import check_cv

        with warnings.catch_warnings():
            if len(np.unique(groups)) == len(groups):
                # Where every row is its own group nothing is ignored that anyone gave.
                warnings.filterwarnings("ignore", "The groups parameter is ignored")
            pairs = list(check_cv(cv, y, classifier=True).split(rows.X, y, groups))
        if cv is not None and not hasattr(cv, "split"):
            fold, places = np.full(rows.given, NO_FOLD), rows.kept
        for number, (train_rows, test) in enumerate(pairs):
            met = np.zeros(len(fold), dtype=bool)
            met[train_rows] = met[test] = True
            # A fold's problem is one of all rows but its own; to learn from more than was said would be a leak.
            if not met[places].all():
                raise UsageError(
                    f"Fold {number} of cv neither learns from row {places[np.argmin(met[places])]} nor tests it. Give "
                    "folds that each learn from every row they do not test, as KFold does and TimeSeriesSplit does not."
                )
        tests = [test for _, test in pairs]
    for number, test in enumerate(tests):
        if (fold[test] != NO_FOLD).any():
            raise UsageError("cv tests a row more than once. Give folds that test each row at most once.")
        fold[test] = number
    return fold[places], f"{len(tests)}-fold cross-validation"
