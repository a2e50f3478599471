"""All pairs of some vectors, or a sample where they are too many, and which of them show one identity."""

from __future__ import annotations

import math

import numpy as np


def pairs_within(identities: np.ndarray, limit: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of rows.

    Pairs of one identity are all taken, or half the limit of them at random; pairs of two identities fill the rest,
    all or at random. Each pair is as likely as any other of its kind, so identities with more images have more.

    Args:
        identities: (n,) of each row.
        limit: at most so many pairs.
        seed: of what is drawn.

    Returns:
        (m, 2) int64 row numbers, no pair twice and no row with itself, and (m,) bool, which show one identity.
    """
    rng = np.random.default_rng(seed)
    numbers = np.unique(identities, return_inverse=True)[1]
    counts = np.bincount(numbers)
    ends = np.cumsum(counts * (counts - 1) // 2)
    drawn = _drawn(int(ends[-1]), limit // 2, rng)
    owner = np.searchsorted(ends, drawn, side="right")
    first, second = of_triangle(drawn - np.where(owner > 0, ends[owner - 1], 0))
    rows, start = np.argsort(numbers, kind="stable"), (np.cumsum(counts) - counts)[owner]
    same = np.stack([rows[start + second], rows[start + first]], axis=1)

    total, room = math.comb(len(numbers), 2), limit - len(same)
    share = max(1 - int(ends[-1]) / max(total, 1), 1 / max(room, 1))
    # As many more as turn out to be of one identity, and a few for chance.
    wanted = room if total <= room else math.ceil((room + 6 * math.sqrt(room) + 20) / share)
    first, second = of_triangle(_drawn(total, wanted, rng))
    different = np.stack([second, first], axis=1)[numbers[first] != numbers[second]]
    if len(different) > room:
        different = different[rng.permutation(len(different))[:room]]
    pairs = np.concatenate([same, different])
    return pairs, np.arange(len(pairs)) < len(same)


def _drawn(total: int, wanted: int, rng: np.random.Generator) -> np.ndarray:
    """All numbers below *total* in order, or *wanted* of them at random."""
    return np.arange(total) if total <= wanted else rng.choice(total, wanted, replace=False)


def of_triangle(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pairs (i, j), i > j, that have these numbers in the order (1, 0), (2, 0), (2, 1), (3, 0) …"""
    first = ((1 + np.sqrt(8.0 * numbers + 1)) / 2).astype(np.int64)
    # Rounding may lead one too far, where numbers are large.
    first -= first * (first - 1) // 2 > numbers
    first += first * (first + 1) // 2 <= numbers
    return first, numbers - first * (first - 1) // 2
