"""Which fold each row is held out in."""

from __future__ import annotations

from typing import Any

import numpy as np

from featcache.errors import UsageError
from featcache.evaluation import splits
from featcache.heads.path_solver import NO_FOLD


def draw_folds(cv: Any, y: np.ndarray, groups: np.ndarray, X: np.ndarray, seed: int) -> tuple[np.ndarray, str]:
    """The fold of each row, and in words how a choice by these folds is made.

    Args:
        cv: a number, a scikit-learn splitter, or an iterable of (learn, test) row numbers.
        y: (n,) class numbers.
        groups: (n,) int64; rows with one number are in one fold.
        X: (n, d), which some splitters want to see.
        seed: of folds drawn by number.

    Returns:
        (n,) fold numbers from 0 on, `NO_FOLD` for rows that are always learned from; all are where no two
        classes have two independent rows.

    Raises:
        UsageError: a row is tested twice, or fewer than two folds are asked for.
    """
    fold = np.full(len(y), NO_FOLD)
    if isinstance(cv, (int, np.integer)):
        if cv < 2:
            raise UsageError(f"cv is 2 folds or more, not {cv}.")
        units = [len(np.unique(groups[y == number])) for number in range(int(y.max()) + 1)]
        several = np.flatnonzero(np.array(units) >= 2)
        if len(several) < 2:
            return fold, "given, not compared: too few independent rows"
        rows = np.flatnonzero(np.isin(y, several))
        k = splits.usable_k(y[rows], groups[rows], int(cv))
        pairs = [(rows[learn], rows[test]) for learn, test in splits.folds(y[rows], groups[rows], k, seed)]
    else:
        from sklearn.model_selection import check_cv

        pairs = list(check_cv(cv, y, classifier=True).split(X, y, groups))
    for number, (_, test) in enumerate(pairs):
        if (fold[test] != NO_FOLD).any():
            raise UsageError("cv tests a row more than once. Give folds that test each row at most once.")
        fold[test] = number
    return fold, f"{len(pairs)}-fold cross-validation"
