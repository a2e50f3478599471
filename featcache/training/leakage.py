"""Near-duplicates across a split, which make a score too good: one image is trained on, the other scored.

Exact copies are never on both sides, see `featcache.metrics.splits`. Near-duplicates are found by their vectors
(`featcache.metrics.near_duplicates`), counted and listed. Those of images that the store holds out are not learned
from, see `featcache.training.holdout`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from featcache.core.errors import UsageError
from featcache.metrics import near_duplicates, splits
from featcache.metrics.near_duplicates import NearDuplicates

if TYPE_CHECKING:
    from featcache.core.progress import Progress
    from featcache.store.rows import ItemRows
    from featcache.training.dataset import FeatureDataset, Reader

_EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class Found(NearDuplicates):
    """What `search` found.

    Attributes:
        outside: (k,) int64 row numbers of near-duplicates of images that are not in the dataset.
    """

    outside: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))

    @classmethod
    def nothing(cls, note: str | None = None) -> Found:
        """No near-duplicates; *note* says why, if they were not searched."""
        return cls(near_duplicates.NOTHING.pairs, near_duplicates.NOTHING.cosines, None, note)

    def among(self, rows: np.ndarray) -> Found:
        """The same among some rows (m,) alone, ascending, by their numbers in these."""
        inside = np.isin(self.pairs, rows).all(axis=1)
        pairs = np.searchsorted(rows, self.pairs[inside])
        outside = np.searchsorted(rows, self.outside[np.isin(self.outside, rows)])
        return replace(self, pairs=pairs, cosines=self.cosines[inside], outside=outside)


@dataclass(frozen=True, slots=True)
class LeakageReport:
    """Near-duplicates among labeled vectors.

    Attributes:
        found: the pairs, as row numbers, one per two contents.
        side: (n,) int64 of each row, -1 for rows that take no part; a pair is across if its sides differ.
        left_out: (n,) bool, rows that are not learned from because they are near-duplicates of held-out ones.
    """

    found: NearDuplicates
    side: np.ndarray
    left_out: np.ndarray

    def report(self, dataset: FeatureDataset) -> dict[str, Any]:
        """``pairs`` and, of these, ``across``; how many images are ``left_out``; ``threshold``; ``examples``; ``note``.

        The examples are up to five pairs that are across, or of which one is left out.
        """
        sides = self.side[self.found.pairs]
        across = (sides[:, 0] != sides[:, 1]) & (sides >= 0).all(axis=1)
        shown = across | self.left_out[self.found.pairs].any(axis=1)
        known = self.found.threshold is not None and self.found.note is None
        return {
            "pairs": len(across) if known else None,
            "across": int(across.sum()) if known else None,
            "left_out": int(self.left_out.sum()),
            "threshold": self.found.threshold,
            "examples": [
                {"a": dataset.items[a].uri, "b": dataset.items[b].uri, "cosine": float(cosine)}
                for (a, b), cosine in zip(
                    self.found.pairs[shown][:_EXAMPLES], self.found.cosines[shown][:_EXAMPLES], strict=True
                )
            ],
            "note": self.found.note,
        }


def search(
    dataset: FeatureDataset,
    rows: np.ndarray,
    *,
    scored: np.ndarray | None = None,
    outside: ItemRows | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Found:
    """Near-duplicates among some rows.

    Args:
        dataset: labeled vectors; of several layers the last one is compared.
        rows: (m,) row numbers to search.
        scored: row numbers; only pairs with one of these are searched. All by default.
        outside: the same layers of other images; pairs with one of these are searched too.
        seed: of the first sample.
        progress: gets the search as a phase.
    """
    first: dict[bytes, int] = {}
    for row in np.sort(rows).tolist():
        first.setdefault(dataset.items[row].sha256, row)
    contents = np.array(list(first.values()), dtype=np.int64)
    n, others = len(contents), 0 if outside is None else len(outside)
    narrow = dataset.narrow or _last_layer(dataset.widths[-1])
    own, other = narrow(dataset.read), narrow(dataset.read if outside is None else outside.read)

    def read(at: np.ndarray) -> np.ndarray:
        inside = at < n
        parts = [reader(rows) for reader, rows in ((own, contents[at[inside]]), (other, at[~inside] - n)) if len(rows)]
        return np.concatenate(parts)[np.argsort(np.argsort(~inside, kind="stable"))] if len(parts) > 1 else parts[0]

    asked = None if scored is None else {dataset.items[row].sha256 for row in scored}
    found = near_duplicates.find(
        read,
        np.concatenate([dataset.groups[contents], len(dataset.items) + np.arange(others)]),
        scored=None if asked is None else np.array([sha256 in asked for sha256 in first] + [True] * others),
        seed=seed,
        progress=progress,
    )
    inside = (found.pairs < n).all(axis=1)
    mixed = found.pairs[~inside & (found.pairs < n).any(axis=1)]
    return Found(
        contents[found.pairs[inside]],
        found.cosines[inside],
        found.threshold,
        found.note,
        contents[np.unique(mixed[mixed < n])],
    )


def _last_layer(width: int) -> Callable[[Reader], Reader]:
    return lambda read: lambda rows: read(rows)[:, -width:]


def grouped(dataset: FeatureDataset, outside: ItemRows | None, seed: int, progress: Progress) -> Found:
    """All near-duplicates, to be linked; notes if they could not be searched. Arguments as for `search`."""
    found = search(dataset, np.arange(len(dataset.y)), outside=outside, seed=seed, progress=progress)
    if found.note is not None:
        progress.note(f"Near-duplicates could not be grouped: {found.note}.")
    return found


def guard(
    dataset: FeatureDataset,
    sides: Sequence[np.ndarray],
    *,
    scored: np.ndarray | None = None,
    found: NearDuplicates | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> LeakageReport:
    """Near-duplicates across the sides of a split.

    Args:
        dataset: labeled vectors.
        sides: row numbers of each side: trained on and scored, or the folds.
        scored: only pairs with one of these rows are searched. All by default.
        found: the near-duplicates among all rows, if they were searched already.
        seed: of the first sample.
        progress: gets the search as a phase.
    """
    side = np.full(len(dataset.y), -1, dtype=np.int64)
    for number, rows in enumerate(sides):
        side[rows] = number
    if scored is not None and not len(scored):
        found = near_duplicates.NOTHING
    if found is None:
        found = search(dataset, np.flatnonzero(side >= 0), scored=scored, seed=seed, progress=progress)
    return LeakageReport(found, side, np.zeros(len(side), dtype=bool))


def folds_without_leakage(
    dataset: FeatureDataset, rows: np.ndarray, near: NearDuplicates, k: int, seed: int
) -> tuple[FeatureDataset, list[tuple[np.ndarray, np.ndarray]], dict[str, int], dict[str, Any]]:
    """Some rows in folds that keep near-duplicates together, as a twin among the training rows would flatter a score.

    Args:
        dataset: labeled vectors.
        rows: (m,) row numbers.
        near: near-duplicates among the rows, from `search`.
        k: folds, as many as the classes of at least half of the rows allow.
        seed: of the folds.

    Returns:
        The rows alone, where near-duplicates are one unit; their folds; of each class with fewer units than folds how
        many it has; and a report as of `LeakageReport`, with any near-duplicates as ``examples``, and ``grouped``.

    Raises:
        UsageError: a class has one unit only, or all its rows fall into one fold.
    """
    within = np.isin(near.pairs, rows).all(axis=1)
    near = replace(near, pairs=near.pairs[within], cosines=near.cosines[within])
    items = dataset.linked(near.pairs).subset(rows).in_memory()
    sizes = {str(name): len(np.unique(items.groups[items.y == name])) for name in np.unique(items.y)}
    fewest = min(sizes, key=lambda name: sizes[name])
    if sizes[fewest] < 2:
        alike = len(np.unique(dataset.groups[rows][items.y == fewest]))
        why = f" (its {alike} are near-duplicates of one another)" if alike > 1 else ""
        raise UsageError(
            f"Class {fewest!r} has one independent image among the {len(rows)} outside the hold-out{why}, so nothing "
            "can be measured on it. Add images of it, or omit it with --labels FILE."
        )
    folds, rare = splits.folds_of_most(items.y, items.groups, k, seed)
    report = guard(dataset, [rows[test] for _, test in folds], found=near).report(dataset)
    pairs = zip(near.pairs[:_EXAMPLES].tolist(), near.cosines[:_EXAMPLES].tolist(), strict=True)
    report["examples"] = [{"a": dataset.items[a].uri, "b": dataset.items[b].uri, "cosine": c} for (a, b), c in pairs]
    return items, folds, rare, {**report, "grouped": near.note is None}
