"""The hold-out of a store: images that heads are scored on, and never learn from.

An image is held out by what it is, whatever its class, label or source: if the first eight bytes of the SHA-256 of
``seed:key``, read as a fraction of 2^64, are below one fifth. The key is ``group:`` and its group, or ``sha256:`` and
the SHA-256 of its bytes. So neither other labels nor added or missing images change the side of an image, and how many
of a class are held out is left to chance.

What a head was scored on is recorded by content, since an image may get another group later; a record overrules the
rule. There are two exceptions, recorded too. A class without a held-out image gives one, and a class of which all
images would be held out keeps one to learn from, if no head has been scored on it yet.

An image that shares content, group or link with a held-out one but is not held out itself is on neither side. So is a
near-duplicate of a held-out image, which is recorded: it is not learned from where the other is gone, either.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from featcache.metrics.splits import Grouped

TRAIN, TEST, NEITHER = "train", "test", "neither"
BY_CONTENT, TOPPED_UP, KEPT, NEAR = "by content", "topped up", "kept to learn from", "near-duplicate"
"""Why a side is recorded."""
SEED = "holdout_seed"
"""The store's setting that has the seed."""
_RANGE = 1 << 64
_LIMIT = _RANGE // 5


@dataclass(frozen=True, slots=True)
class Near:
    """What is known of near-duplicates among n images.

    Attributes:
        pairs: (m, 2) row numbers.
        outside: (n,) bool, near-duplicates of held-out images that are not among the n.
        searched: (n,) bool, images of which all near-duplicates are known.
    """

    pairs: np.ndarray
    outside: np.ndarray
    searched: np.ndarray

    @classmethod
    def none(cls, n: int) -> Near:
        """No near-duplicates among n images."""
        return cls(np.empty((0, 2), np.int64), np.zeros(n, dtype=bool), np.ones(n, dtype=bool))


@dataclass(slots=True)
class Holdout:
    """The sides of n images.

    Attributes:
        train, test: (n,) bool; an image may be on neither side.
        near: (n,) bool, images on neither side because they are near-duplicates of held-out ones.
        records: side and reason by SHA-256, of what is to be recorded.
        topped_up: images held out because their class had none.
        unlearned: classes (labels, or numbers of columns) of which no image is left to learn from.
    """

    train: np.ndarray
    test: np.ndarray
    near: np.ndarray
    records: dict[bytes, tuple[str, str]] = field(default_factory=dict)
    topped_up: int = 0
    unlearned: list[str] = field(default_factory=list)


def key_of(item: Grouped) -> str:
    """The name by which an image is held out."""
    return f"sha256:{item.sha256.hex()}" if item.group is None else f"group:{item.group}"


def rank_of(key: str, seed: int) -> int:
    """From 0 to 2^64; below a fifth of that the images of this key are held out."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{key}".encode("utf-8", "surrogatepass")).digest()[:8], "big")


def is_below(rank: int) -> bool:
    """Whether what has this rank is held out by the rule."""
    return rank < _LIMIT


def held_out(items: Sequence[Grouped], known: Mapping[bytes, str], seed: int) -> np.ndarray:
    """Which images are held out by the rule and by record: (n,) bool.

    Args:
        items: n images.
        known: the recorded sides, ``train``, ``test`` or ``neither``, by SHA-256.
        seed: of the store's hold-out.
    """
    # Images that are added to a group that was learned from are learned from.
    groups = {item.group: False for item in items if item.group is not None and known.get(item.sha256) == TRAIN}
    contents: dict[bytes, bool] = {}
    for item in items:
        if item.sha256 in known:
            contents[item.sha256] = known[item.sha256] == TEST
        elif item.group is None:
            contents[item.sha256] = contents.get(item.sha256, False) or is_below(rank_of(key_of(item), seed))
        else:
            if item.group not in groups:
                groups[item.group] = is_below(rank_of(key_of(item), seed))
            contents[item.sha256] = contents.get(item.sha256, False) or groups[item.group]
    return np.array([contents[item.sha256] for item in items], dtype=bool)


def draw(
    items: Sequence[Grouped],
    y: np.ndarray,
    units: np.ndarray,
    known: Mapping[bytes, str],
    seed: int,
    near: Near | None = None,
) -> Holdout:
    """The side of each image.

    Args:
        items: n images.
        y: (n,) labels, or (n, k) bool with several labels per image.
        units: (n,) int64; images that share content, group or link have the same number, see `splits.units`.
        known: the recorded sides by SHA-256.
        seed: of the store's hold-out.
        near: near-duplicates; the pairs are links of *units* too. A class is topped up only from searched images.

    Returns:
        The sides. ``records`` has what is held out and not recorded yet, and the exceptions. A recorded ``test`` or
        ``neither`` never becomes ``train``; a recorded ``train`` becomes ``neither`` where it is a near-duplicate.
    """
    found = _Draw(items, y, units, known, seed)
    found.set_aside(Near.none(len(items)) if near is None else near)
    for rows in found.classes:
        if not found.train[rows].any():
            found.keep_one(rows)
    for rows in found.classes:
        if not found.test[rows].any():
            found.top_up(rows)
    return found.result()


class _Draw:
    """A draw under way; each class and each unit is an array of its row numbers."""

    def __init__(
        self, items: Sequence[Grouped], y: np.ndarray, units: np.ndarray, known: Mapping[bytes, str], seed: int
    ) -> None:
        self.items, self.y, self.known, self.seed = items, y, known, seed
        self.names, self.classes = _classes(y)
        numbers, self.unit = np.unique(units, return_inverse=True)
        self.members = _rows_of_each(self.unit, len(numbers))
        self.fixed = np.array([item.sha256 in known for item in items], dtype=bool)
        self.topped, self.kept = np.zeros((2, len(items)), dtype=bool)
        self.test = held_out(items, known, seed)

    def set_aside(self, near: Near) -> None:
        """Learn from nothing that belongs together with a held-out image."""
        self.searched, self.pairs = near.searched, near.pairs
        recorded = np.array([self.known.get(item.sha256) == NEITHER for item in self.items], dtype=bool)
        self.barred = (recorded | near.outside) & ~self.test
        mixed = np.zeros(len(self.members), dtype=bool)
        mixed[self.unit[self.test | self.barred]] = True
        self.train = ~mixed[self.unit]

    def _ranked(self, rows: np.ndarray) -> list[int]:
        """The units of these rows by the smallest rank of their keys."""
        ranks: dict[int, int] = {}
        for row in rows.tolist():
            unit = int(self.unit[row])
            ranks[unit] = min(rank_of(key_of(self.items[row]), self.seed), ranks.get(unit, _RANGE))
        return sorted(ranks, key=ranks.__getitem__)

    def keep_one(self, rows: np.ndarray) -> None:
        """Learn from one unit of a class that would be held out whole; not from what a head was scored on."""
        for unit in reversed(self._ranked(rows[self.test[rows]])):
            members = self.members[unit]
            if not (self.fixed & self.test | self.barred)[members].any():
                self.test[members], self.train[members], self.kept[members] = False, True, True
                return

    def top_up(self, rows: np.ndarray) -> None:
        """Hold out one unit of a class, unless that takes from a class all that is left to learn from."""
        for unit in self._ranked(rows[(self.train & self.searched)[rows]]):
            members = self.members[unit]
            if self.fixed[members].any() or self.kept[members].any():
                continue
            self.train[members] = False
            if all(self.train[others].any() for others in self._classes_of(members)):
                taken = members[self.searched[members]]
                self.test[taken] = self.topped[taken] = True
                return
            self.train[members] = True

    def _classes_of(self, rows: np.ndarray) -> list[np.ndarray]:
        if self.y.ndim == 2:
            return [self.classes[column] for column in np.flatnonzero(self.y[rows].any(axis=0))]
        return [self.classes[place] for place in np.searchsorted(self.names, np.unique(self.y[rows]))]

    def result(self) -> Holdout:
        records: dict[bytes, tuple[str, str]] = {}
        near = self._near()
        for row in np.flatnonzero(near).tolist():
            sha256 = self.items[row].sha256
            if self.known.get(sha256) != NEITHER:
                records[sha256] = (NEITHER, NEAR)
        for row in np.flatnonzero((self.test | self.kept) & ~self.fixed).tolist():
            reason = TOPPED_UP if self.topped[row] else KEPT if self.kept[row] else BY_CONTENT
            records[self.items[row].sha256] = (TEST if self.test[row] else TRAIN, reason)
        lost = [len(rows) and not self.train[rows].any() for rows in self.classes]
        unlearned = [str(name) for name, gone in zip(self.names, lost, strict=True) if gone]
        return Holdout(self.train, self.test, near, records, int(self.topped.sum()), unlearned)

    def _near(self) -> np.ndarray:
        """(n,) bool, near-duplicates of what is held out in the end."""
        a, b = self.pairs.T
        close = self.barred.copy()
        close[a[self.test[b]]] = close[b[self.test[a]]] = True
        contents = {self.items[row].sha256 for row in np.flatnonzero(close).tolist()}
        return np.array(
            [item.sha256 in contents and not held for item, held in zip(self.items, self.test, strict=True)]
        )


def _classes(y: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """The classes, sorted, and the rows of each; of (n, k) labels the numbers of the columns."""
    if y.ndim == 2:
        return np.arange(y.shape[1]), [np.flatnonzero(column) for column in y.T]
    names, places = np.unique(y, return_inverse=True)
    return names, _rows_of_each(places, len(names))


def _rows_of_each(numbers: np.ndarray, count: int) -> list[np.ndarray]:
    order = np.argsort(numbers, kind="stable")
    return np.split(order, np.cumsum(np.bincount(numbers, minlength=count))[:-1])
