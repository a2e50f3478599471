"""Which fold each row is held out in."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from featcache.core.errors import UsageError
from featcache.heads.softmax_solver import NO_FOLD
from featcache.heads.training_rows import TrainingRows
from featcache.metrics import splits


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
            raise UsageError(f"cv is 2 folds or more, not {cv}.")
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
        for number, (learn, test) in enumerate(pairs):
            met = np.zeros(len(fold), dtype=bool)
            met[learn] = met[test] = True
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
