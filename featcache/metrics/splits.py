"""Splits and folds that keep together what belongs together.

Items with the same content (SHA-256) or the same group form a **unit**, and so do items that are linked through others;
pairs of near-duplicates can be given as further links. A unit lies on one side of every split and in one fold.

A head for matching is used on people it has never seen, so it is scored on such people: `identity_folds` splits
identities, not the images of each. Identities that share a group (`together`) lie on one side too.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from featcache.core.errors import UsageError


class Grouped(Protocol):
    """What has a content and perhaps a group."""

    @property
    def sha256(self) -> bytes: ...
    @property
    def group(self) -> str | None: ...


Links = Sequence[Sequence[int]] | np.ndarray
"""Pairs of places in a list of items."""


def units(items: Sequence[Grouped], links: Links = ()) -> np.ndarray:
    """The unit of each item.

    A union-find of a few lines: scipy's connected_components would import scipy before anything else needs it.

    Args:
        items: n items.
        links: (m, 2) pairs of items that belong together too.

    Returns:
        (n,) int64, equal for items that share content, group or link, directly or through others; numbered
        in the order of their first items.
    """
    parent: dict[tuple[str, str | bytes], tuple[str, str | bytes]] = {}

    def root(key: tuple[str, str | bytes]) -> tuple[str, str | bytes]:
        parent.setdefault(key, key)
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    for item in items:
        content = root(("content", item.sha256))
        if item.group is not None:
            parent[content] = root(("group", item.group))
    for a, b in links:
        parent[root(("content", items[a].sha256))] = root(("content", items[b].sha256))
    number: dict[tuple[str, str | bytes], int] = {}
    return np.array([number.setdefault(root(("content", item.sha256)), len(number)) for item in items], dtype=np.int64)


def set_aside(y: Sequence[str] | np.ndarray, keys: Sequence[str], fraction: float, seed: int = 0) -> dict[str, bool]:
    """Which units to validate a training on, in each class the same fraction.

    Units are ranked by SHA-256 of ``seed:key`` within their class (the most frequent label of their
    items; the smallest of several), and the first ones are set aside.

    Args:
        y: (n,) labels.
        keys: n names of units.
        fraction: of each class's units.
        seed: another draw.

    Returns:
        For each unit whether it is set aside. A class of two units or more has one on either side.
    """
    labels: dict[str, Counter[str]] = {}
    for label, key in zip(y, keys, strict=True):
        labels.setdefault(key, Counter())[str(label)] += 1
    classes: dict[str, list[str]] = {}
    for key, counts in labels.items():
        label = min(counts, key=lambda name: (-counts[name], name))
        classes.setdefault(label, []).append(key)
    aside: dict[str, bool] = {}
    for members in classes.values():
        wanted = min(max(1, round(fraction * len(members))), len(members) - 1)
        ranked = sorted(members, key=lambda key: hashlib.sha256(f"{seed}:{key}".encode()).digest())
        aside |= {key: place < wanted for place, key in enumerate(ranked)}
    return aside


def usable_k(y: np.ndarray, units: np.ndarray, k: int) -> int:
    """The number of folds, at most *k*, for which every class has a unit a fold; 0 where that is below 2."""
    fewest = min(len(np.unique(units[y == label])) for label in np.unique(y))
    return min(k, fewest) if fewest >= 2 else 0


def folds(
    y: np.ndarray, units: np.ndarray, k: int = 5, seed: int = 0, *, fewest: int | None = None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Stratified folds with whole units.

    Where every item is a unit and no class has too few, these are scikit-learn's. Otherwise the largest units come
    first, each into the fold that has least of its classes (Graham's 1969 rule for scheduling). scikit-learn's
    StratifiedGroupKFold does the like in time items × folds × classes, 5 s for 10,000 items.

    Args:
        y: (n,) labels.
        units: (n,) int64.
        k: how many.
        seed: of the shuffle.
        fewest: units that each class needs, k by default. A class of fewer than k is not tested in every fold.

    Returns:
        k pairs of row numbers: to learn from, to test on. Every row is tested on once.

    Raises:
        UsageError: fewer than two folds, or a class has fewer units than it needs.
    """
    if k < 2:
        raise UsageError(f"There must be at least 2 folds, not {k}.")
    counts = {label: len(np.unique(units[y == label])) for label in np.unique(y)}
    for label, found in counts.items():
        if found < (k if fewest is None else fewest):
            raise UsageError(
                f"Class {str(label)!r} has {found} independent item{'s' if found != 1 else ''}, too few for {k} folds. "
                f"Take {found} folds or more images of it." if found > 1 else
                f"Class {str(label)!r} has only one independent item, so it cannot be both learned from and tested on. "
                "Add images of it or leave it out."
            )  # fmt: skip
    if len(np.unique(units)) == len(units) and min(counts.values()) >= k:
        from sklearn.model_selection import StratifiedKFold

        return list(StratifiedKFold(k, shuffle=True, random_state=seed).split(units, y))
    fold_of = _fold_of_each(np.unique(y, return_inverse=True)[1], np.unique(units, return_inverse=True)[1], k, seed)
    return [(np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)) for fold in range(k)]


def folds_of_most(
    y: np.ndarray, units: np.ndarray, k: int, seed: int
) -> tuple[list[tuple[np.ndarray, np.ndarray]], dict[str, int]]:
    """Folds although some classes are rare: as many, up to *k*, as the classes of at least half of all units allow.

    Args:
        y, units, k, seed: as for `folds`; each class has two units or more.

    Returns:
        The folds, each of which trains on all classes; and of each class with fewer units than folds, which some of
        them do not test, how many it has.

    Raises:
        UsageError: all items of a class fall into one fold.
    """
    names = np.unique(y)
    sizes = np.array([len(np.unique(units[y == name])) for name in names])
    k = max(n for n in range(2, k + 1) if n == 2 or 2 * sizes[sizes >= n].sum() >= sizes.sum())
    drawn = folds(y, units, k, seed, fewest=2)
    for train, _ in drawn:
        if len(unseen := np.setdiff1d(names, y[train])):
            raise UsageError(
                f"All items of class {str(unseen[0])!r} are grouped with items of other classes and fall into one "
                "fold, so nothing can be measured on it. Use finer groups, or omit it with --labels FILE."
            )
    return drawn, {str(name): int(size) for name, size in zip(names, sizes, strict=True) if size < k}


def _fold_of_each(y: np.ndarray, units: np.ndarray, k: int, seed: int) -> np.ndarray:
    """The fold of each row, (n,); y and units are numbers from 0."""
    order = np.argsort(units, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(units))[:-1])
    shuffled = np.random.default_rng(seed).permutation(len(members))
    shuffled = shuffled[np.argsort([-len(members[u]) for u in shuffled], kind="stable")]
    weight = 1.0 / np.bincount(y) ** 2
    filled, sizes = np.zeros((k, len(weight))), np.zeros(k)
    fold_of = np.empty(len(y), dtype=np.int64)
    for unit in shuffled.tolist():
        rows = members[unit]
        # The sum over classes and folds of the squared shares grows least where this is least.
        if len(rows) == 1:
            load = filled[:, y[rows[0]]]
        else:
            classes, counts = np.unique(y[rows], return_counts=True)
            load = filled[:, classes] @ (counts * weight[classes])
        fold = min(range(k), key=lambda fold: (load[fold], sizes[fold]))
        fold_of[rows] = fold
        np.add.at(filled[fold], y[rows], 1)
        sizes[fold] += len(rows)
    return fold_of


def draw_share(y: np.ndarray, units: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Rows of whole units drawn at random, of each class the same share and one unit at least.

    Args:
        y: (m,) labels.
        units: (m,) unit of each.
        share: of the units of each class.
        rng: of the draw.
    """
    _, firsts, numbers = np.unique(units, return_index=True, return_inverse=True)
    of_unit, taken = y[firsts], np.zeros(len(firsts), dtype=bool)
    for label in np.unique(of_unit):
        members = rng.permutation(np.flatnonzero(of_unit == label))
        taken[members[: max(1, round(share * len(members)))]] = True
    # A unit of several classes goes with its first item; a class must not be lost by that.
    for label in np.setdiff1d(y, y[taken[numbers]]):
        taken[numbers[np.flatnonzero(y == label)[0]]] = True
    return np.flatnonzero(taken[numbers])


def identity_folds(y: np.ndarray, k: int, seed: int = 0, groups: np.ndarray | None = None) -> np.ndarray:
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
    names, ids = np.unique(np.asarray(y).astype(str), return_inverse=True)
    part = together(y, groups)
    # Each part is called by the first of its identities in the order of names.
    _, first = np.unique(part, return_index=True)
    order = sorted(range(len(first)), key=lambda i: hashlib.sha256(f"{seed}:{names[first[i]]}".encode()).digest())
    place = np.empty(len(first), dtype=np.int64)
    place[order] = np.arange(len(first))
    return np.asarray(place[part][ids] % k)


def together(y: np.ndarray, groups: np.ndarray | None = None) -> np.ndarray:
    """Which identities have images in one group, directly or through others.

    Args:
        y: (n,) identities.
        groups: (n,) of any type; None where there are none.

    Returns:
        (m,) int64, for the m identities in sorted order the number of their part, from 0.
    """
    names, ids = np.unique(np.asarray(y).astype(str), return_inverse=True)
    if groups is None:
        return np.arange(len(names))
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    kinds, group = np.unique(np.asarray(groups), return_inverse=True)
    size = len(names) + len(kinds)
    links = coo_array((np.ones(len(ids), bool), (ids, len(names) + group)), shape=(size, size))
    _, parts = connected_components(links, directed=False)
    return np.unique(parts[: len(names)], return_inverse=True)[1].astype(np.int64)
