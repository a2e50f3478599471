"""Hold-outs and folds for several labels an item: whole units, every label shared out.

Iterative stratification (Sechidis, Tsoumakas and Vlahavas 2011): the rarest label's units are shared out
first, each to the part that lacks most of that label, of equals to the one that lacks most units. Units
are taken in the order of SHA-256 of ``seed:key``, so the draw depends on names alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from featcache.core.errors import UsageError


def draw_holdout(
    Y: np.ndarray,
    keys: Sequence[str],
    *,
    fraction: float = 0.2,
    seed: int = 0,
    decided: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Set whole units aside.

    Args:
        Y: (n, k) bool, the labels of each item.
        keys: n names of units, see `featcache.metrics.splits.unit_keys`.
        fraction: of each label's units.
        seed: another draw.
        decided: parts that were settled before; they stay.

    Returns:
        ``train`` or ``test`` for each unit. A label of two units or more has one on either side, unless that
        was decided otherwise before or would take from another label its last on a side.
    """
    names, has = _by_unit(Y, keys)
    counts = has.sum(axis=0)
    wanted = np.clip(np.round(fraction * counts), np.minimum(1, counts - 1), np.maximum(counts - 1, 0))
    shares = np.vstack([counts - wanted, wanted])
    sizes = np.array([(1 - fraction) * len(names), fraction * len(names)])
    fixed = np.array(
        [("train", "test").index((decided or {})[name]) if name in (decided or {}) else -1 for name in names]
    )
    order = _order(names, seed)
    parts = _share_out(has, order, shares, sizes, fixed)
    _fill_empty_sides(has, order, parts, fixed < 0)
    return {name: ("train", "test")[part] for name, part in zip(names, parts.tolist(), strict=True)}


def folds(Y: np.ndarray, units: np.ndarray, k: int = 5, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """Folds with whole units.

    Args:
        Y: (n, k) bool.
        units: (n,) int64.
        k: how many.
        seed: of the draw.

    Returns:
        k pairs of row numbers: to learn from, to test on. Every row is tested on once.

    Raises:
        UsageError: fewer than two folds, or fewer units than folds.
    """
    if k < 2:
        raise UsageError(f"Folds are two or more, not {k}.")
    names, has = _by_unit(Y, [str(unit) for unit in units])
    if len(names) < k:
        raise UsageError(f"There are {len(names)} independent items, too few for {k} folds.")
    shares = np.repeat(has.sum(axis=0)[None] / k, k, axis=0)
    parts = _share_out(has, _order(names, seed), shares, np.full(k, len(names) / k), np.full(len(names), -1))
    if len(np.unique(parts)) < k:
        # Of few units with many labels a fold can get none; then labels are not looked at.
        parts[_order(names, seed)] = np.arange(len(names)) % k
    part = dict(zip(names, parts.tolist(), strict=True))
    of_row = np.array([part[str(unit)] for unit in units])
    return [(np.flatnonzero(of_row != fold), np.flatnonzero(of_row == fold)) for fold in range(k)]


def _by_unit(Y: np.ndarray, keys: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """The units' names, sorted, and the labels (u, k) that their items have."""
    names, place = np.unique(np.asarray(keys, dtype=object).astype(str), return_inverse=True)
    has = np.zeros((len(names), Y.shape[1]), dtype=bool)
    np.logical_or.at(has, place, Y)
    return names.tolist(), has


def _order(names: Sequence[str], seed: int) -> np.ndarray:
    digests = [hashlib.sha256(f"{seed}:{name}".encode()).digest() for name in names]
    return np.array(sorted(range(len(names)), key=digests.__getitem__), dtype=np.int64)


def _share_out(
    has: np.ndarray, order: np.ndarray, shares: np.ndarray, sizes: np.ndarray, fixed: np.ndarray
) -> np.ndarray:
    """The part (u,) of each unit.

    Args:
        has: (u, k) bool.
        order: (u,) in which units are taken.
        shares: (parts, k) how many units of each label each part should get.
        sizes: (parts,) how many units each part should get.
        fixed: (u,) the part of units that have one, else -1.
    """
    parts = fixed.copy()
    lacks, room = shares.astype(np.float64), sizes.astype(np.float64)
    for part in range(len(room)):
        lacks[part] -= has[fixed == part].sum(axis=0)
        room[part] -= (fixed == part).sum()
    open_units = has[fixed < 0].sum(axis=0)
    while open_units.any():
        label = int(np.argmin(np.where(open_units > 0, open_units, np.iinfo(np.int64).max)))
        for unit in order[(parts[order] < 0) & has[order, label]]:
            best = max(range(len(room)), key=lambda part: (lacks[part, label], room[part], -part))
            parts[unit] = best
            lacks[best, has[unit]] -= 1
            room[best] -= 1
            open_units -= has[unit]
    for unit in order[parts[order] < 0]:
        parts[unit] = best = int(np.argmax(room))
        room[best] -= 1
    return parts


def _fill_empty_sides(has: np.ndarray, order: np.ndarray, parts: np.ndarray, movable: np.ndarray) -> None:
    """Move a unit to where a label has none, if that takes no label's last one from a side."""
    counts = np.array([has[parts == side].sum(axis=0) for side in (0, 1)])
    total = counts.sum(axis=0)
    for label in np.argsort(total, kind="stable"):
        for side in (0, 1):
            if counts[side, label] or total[label] < 2:
                continue
            for unit in order[has[order, label] & (parts[order] != side) & movable[order]]:
                mine = has[unit]
                if (counts[1 - side, mine] > 1).all():
                    parts[unit] = side
                    counts[side, mine] += 1
                    counts[1 - side, mine] -= 1
                    break


def held_out_alone(Y: np.ndarray, keys: Sequence[str], parts: Mapping[str, str]) -> set[str]:
    """The units with a label that stands in the hold-out alone."""
    learned = np.array([parts[key] == "train" for key in keys])
    lost = Y.any(axis=0) & ~Y[learned].any(axis=0)
    return {keys[row] for row in np.flatnonzero(Y[:, lost].any(axis=1)).tolist()}
