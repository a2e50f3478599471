"""Whether the best of several alternatives, chosen on the same items that it is judged by, is better than chance.

The largest of several mean gains is above 0 by chance more often than one of them alone: among 12 epochs that gain
nothing, the best is ahead by one standard error in 30 to 90 % of trainings, by how alike the epochs are. So the largest
is compared with the largest of the same gains under random signs (the randomization test of the maximum: Westfall and
Young, "Resampling-based multiple testing", 1993, section 2.6). Each unit has one sign for all alternatives, which keeps
how much they depend on each other. `scripts/bench/best_of_many.py` measures how often it errs, and what else was tried.
"""

from __future__ import annotations

import numpy as np

_RESAMPLES, _AT_ONCE = 2000, 2**24


def p_of_best(gains: np.ndarray, units: np.ndarray, seed: int = 0) -> float:
    """How probable so large a best mean gain is, if no alternative gains anything.

    Args:
        gains: (n, m) by how much each of m alternatives is better on each item.
        units: (n,) group of each item; dependent items share one.
        seed: of the random signs.

    Returns:
        From above 0 to 1; 1 where no mean is above 0. With u units it is 2 ** -u at least, so three of them never tell.

    Example:
        >>> bool(p_of_best(np.ones((20, 3)), np.arange(20)) < 0.001)
        True
        >>> p_of_best(np.full((20, 3), -1.0), np.arange(20))
        1.0
    """
    _, unit = np.unique(units, return_inverse=True)
    sums = np.zeros((int(unit.max(initial=-1)) + 1, gains.shape[1]))
    np.add.at(sums, unit, gains)
    best = float(sums.sum(axis=0).max(initial=0.0))
    if best <= 0:
        return 1.0
    rng, reached = np.random.default_rng(seed), 1  # what was seen is one of the assignments of signs
    rows = max(1, _AT_ONCE // len(sums))
    for start in range(0, _RESAMPLES, rows):
        signs = 2.0 * rng.integers(0, 2, size=(min(rows, _RESAMPLES - start), len(sums))) - 1
        # Equal but for rounding counts as reached.
        reached += int(((signs @ sums).max(axis=1) >= best * (1 - 1e-12)).sum())
    return reached / (_RESAMPLES + 1)
