"""Hold-outs and folds of identities: nobody stands on both sides.

A head for matching is asked about people whom it has never seen, so it is scored on such people: a split
goes between identities, not between the images of each. Identities that share a group lie on one side too.
"""

from __future__ import annotations

import hashlib

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components


def folds(y: np.ndarray, k: int, seed: int = 0, groups: np.ndarray | None = None) -> np.ndarray:
    """Deal identities into folds.

    They are ranked by SHA-256 of ``seed:identity``, and dealt one after another, so that folds differ by one
    identity at most where there are no groups.

    Args:
        y: (n,) identities.
        k: how many folds.
        seed: another draw.
        groups: (n,) of any type; identities that have images in one group fall into one fold.

    Returns:
        (n,) int64, the fold of each row, from 0.
    """
    rank, _ = _ranked(y, seed, groups)
    return np.asarray(rank % k)


def holdout(y: np.ndarray, fraction: float, seed: int = 0, groups: np.ndarray | None = None) -> np.ndarray:
    """Set identities aside: those that come first in the ranking of `folds`.

    Args:
        y: (n,) identities.
        fraction: of the identities, or where there are groups of what hangs together.
        seed: another draw.
        groups: (n,) as for `folds`.

    Returns:
        (n,) bool, which rows are set aside.
    """
    rank, count = _ranked(y, seed, groups)
    return np.asarray(rank < round(fraction * count))


def _ranked(y: np.ndarray, seed: int, groups: np.ndarray | None) -> tuple[np.ndarray, int]:
    """The place (n,) of each row's identity, and all that hangs together with it, in the draw; and how many places."""
    names, numbers = np.unique(np.asarray(y).astype(str), return_inverse=True)
    together = np.arange(len(names))
    if groups is not None:
        kinds, group = np.unique(np.asarray(groups), return_inverse=True)
        size = len(names) + len(kinds)
        links = coo_array((np.ones(len(numbers), bool), (numbers, len(names) + group)), shape=(size, size))
        _, parts = connected_components(links, directed=False)
        _, together = np.unique(parts[: len(names)], return_inverse=True)
    # Each part is called by the first of its identities in the order of names.
    _, first = np.unique(together, return_index=True)
    order = sorted(range(len(first)), key=lambda i: hashlib.sha256(f"{seed}:{names[first[i]]}".encode()).digest())
    place = np.empty(len(first), dtype=np.int64)
    place[order] = np.arange(len(first))
    return place[together][numbers], len(first)
