"""What heads that are trained by mini-batches share: rows held out, the vectors' moments, and threads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from featcache.metrics import splits

Batches = Callable[[], Iterable[tuple[np.ndarray, np.ndarray]]]
"""Starts a pass: yields vectors (b, d) and class numbers (b,)."""

HELD_OUT_ROWS = 4096
_SMALL_STEP = 20_000_000


def hold_out(numbers: np.ndarray, groups: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to learn from, and at most 4096 rows of other groups that decide when to stop.

    Args:
        numbers: (n,) class numbers.
        groups: (n,) numbers; rows with the same one stay together.
        fraction: of the groups of each class.
        seed: of the draw.

    Returns:
        Row numbers to learn from, of all classes, and to hold out, sorted. Of a class with one group alone none are
        held out.
    """
    parts = splits.draw_holdout([str(n) for n in numbers], [str(g) for g in groups], fraction=fraction, seed=seed)
    is_test = np.array([parts[str(g)] == "test" for g in groups])
    # A group of several classes may hold all rows of one, which then could not be learned.
    lost = np.setdiff1d(numbers, numbers[~is_test])
    is_test &= ~np.isin(groups, groups[np.isin(numbers, lost)])
    if is_test.sum() > HELD_OUT_ROWS:
        # Whole groups, as many as fit; the others are learned from.
        _, inverse, sizes = np.unique(groups[is_test], return_inverse=True, return_counts=True)
        order = np.random.default_rng(seed).permutation(len(sizes))
        fits = np.zeros(len(sizes), dtype=bool)
        fits[order] = np.cumsum(sizes[order]) <= HELD_OUT_ROWS
        fits[order[0]] = True
        is_test[is_test] = fits[inverse]
    return np.flatnonzero(~is_test), np.flatnonzero(is_test)


def moments(batches: Batches, width: int, k: int) -> tuple[Tensor, Tensor, np.ndarray, int]:
    """Mean and deviation of each feature, summed in float64; rows of each class (k,) and batches of a pass.

    The deviation of a feature that never varies is infinite: it says nothing, and divided by that it is 0.
    """
    counts, steps = np.zeros(k, dtype=np.int64), 0
    total, squares = np.zeros(width), np.zeros(width)
    for vectors, numbers in batches():
        exact = vectors.astype(np.float64)
        total += exact.sum(0)
        squares += (exact**2).sum(0)
        counts += np.bincount(numbers, minlength=k)
        steps += 1
    count = counts.sum()
    mean = total / max(count, 1)
    deviation = np.sqrt(np.maximum(squares / max(count, 1) - mean**2, 0))
    deviation[deviation <= np.maximum(1e-6 * np.abs(mean), 1e-30)] = np.inf
    return torch.from_numpy(mean).float(), torch.from_numpy(deviation).float(), counts, steps


@contextmanager
def threads_for(products: int) -> Iterator[None]:
    """One torch thread for steps so small that threads would mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if products < _SMALL_STEP else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
