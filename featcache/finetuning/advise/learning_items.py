"""The items that advice is taken from: those to learn from, in folds that never tear apart what belongs together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from featcache.core.errors import MissingVectorsError, UsageError
from featcache.core.progress import Progress
from featcache.metrics import splits
from featcache.training import leakage
from featcache.training.dataset import FeatureDataset

FOLDS = 5
_EXAMPLES = 5
_HELD_BYTES = 2 << 30
"""Vectors that are kept in memory; more are read for each fit."""

Folds = Sequence[tuple[np.ndarray, np.ndarray]]
"""Pairs of row numbers: to learn from, and to answer for."""


@dataclass(frozen=True)
class LearningItems:
    """The items to learn from.

    Attributes:
        dataset: they alone, with some layers; rows are counted here.
        rows: (n,) their rows among all labelled items.
        folds: of the cross-validation.
        rare: independent items of each class that has fewer than there are folds; some folds do not ask for it.
        near_duplicates: see `learning_items`.
    """

    dataset: FeatureDataset
    rows: np.ndarray
    folds: Folds
    rare: dict[str, int]
    near_duplicates: dict[str, Any]

    def of(self, whole: FeatureDataset) -> FeatureDataset:
        """The same items with other layers.

        Args:
            whole: all labelled items with these layers.

        Raises:
            MissingVectorsError: these are not the same items.
        """
        self.check(whole)
        return replace(part(whole, self.rows), groups=self.dataset.groups, links=self.dataset.links)

    def check(self, whole: FeatureDataset) -> None:
        """Refuse vectors of other items.

        Args:
            whole: all labelled items with some layers.

        Raises:
            MissingVectorsError: these are not the same items.
        """
        kept = [whole.items[row].sha256 for row in self.rows if row < len(whole.items)]
        if kept != [item.sha256 for item in self.dataset.items]:
            raise MissingVectorsError(f"Not all items have vectors of {', '.join(whole.layers)}.")


def learning_items(dataset: FeatureDataset, train_rows: np.ndarray, seed: int, shown: Progress) -> LearningItems:
    """The items to learn from, in 5 folds or as many as the classes of at least half of them allow.

    Near-duplicates (`featcache.metrics.near_duplicates`) are one unit, as with ``group_near_duplicates`` of
    `featcache.train`: a twin in the fold that is learned from would flatter some strategies more than others.
    ``near_duplicates`` has the number of ``pairs``, and of those ``across`` the folds; ``threshold``; up to five
    ``dataset``; a ``note`` why none were looked for; and whether they are ``grouped``.

    Args:
        dataset: all labelled items.
        train_rows: (n,) rows to learn from.
        seed: of the folds and the search.
        shown: is told of the search.

    Raises:
        UsageError: a class has one independent item alone, or all its items fall into one fold.
    """
    near = leakage.search(dataset, train_rows, seed=seed, progress=shown)
    y, units = dataset.y[train_rows], dataset.linked(near.pairs).groups[train_rows]
    names, sizes = _independent(y, units)
    if sizes.min() < 2:
        raise UsageError(_one_alone(y, units, dataset.groups[train_rows]))
    k = _folds(sizes)
    folds = splits.folds(y, units, k, seed, fewest=2)
    for fit, _ in folds:
        unseen = np.setdiff1d(names, y[fit])
        if len(unseen):
            raise UsageError(
                f"All items of class {str(unseen[0])!r} belong together with some of other classes and fall into one "
                "fold, so nothing can be measured on it. Use finer groups, or leave it out with --labels FILE."
            )
    place = {row: number for number, row in enumerate(train_rows.tolist())}
    links = np.array([[place[a], place[b]] for a, b in near.pairs.tolist()], dtype=np.int64).reshape(-1, 2)
    report = leakage.guard(dataset, [train_rows[test] for _, test in folds], found=near).report(dataset)
    report |= {
        "examples": [
            {"a": dataset.items[a].uri, "b": dataset.items[b].uri, "cosine": float(cosine)}
            for (a, b), cosine in zip(near.pairs[:_EXAMPLES], near.cosines[:_EXAMPLES], strict=True)
        ],
        "grouped": near.note is None,
    }
    rare = {str(name): int(size) for name, size in zip(names, sizes, strict=True) if size < k}
    return LearningItems(replace(part(dataset, train_rows), groups=units, links=links), train_rows, folds, rare, report)


def _independent(y: np.ndarray, units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The classes, and how many units each has."""
    names, numbers = np.unique(y, return_inverse=True)
    pairs = np.unique(np.column_stack([numbers, np.unique(units, return_inverse=True)[1]]), axis=0)
    return names, np.bincount(pairs[:, 0])


def _folds(sizes: np.ndarray) -> int:
    """The most folds, 2 to 5, for which classes of at least half of all units have one a fold."""
    return max(k for k in range(2, FOLDS + 1) if k == 2 or 2 * sizes[sizes >= k].sum() >= sizes.sum())


def _one_alone(y: np.ndarray, units: np.ndarray, known: np.ndarray) -> str:
    """Why a class of one unit is refused; *known* (n,) are the units without near-duplicates."""
    names, sizes = _independent(y, units)
    name = str(names[np.argmin(sizes)])
    of_class = len(np.unique(known[y == name]))
    alike = "" if of_class == 1 else f" (its {of_class} are near-duplicates of one another)"
    return (
        f"Class {name!r} has one independent image alone among the {len(y)} outside the hold-out{alike}, so "
        "nothing can be measured on it: it would have to be learned from and answered at once. Add images of it, or "
        "leave it out with --labels FILE."
    )


def part(dataset: FeatureDataset, rows: np.ndarray) -> FeatureDataset:
    """Some of the labelled vectors, in memory where they are not too large for that."""
    made = replace(
        dataset,
        items=[dataset.items[row] for row in rows],
        y=dataset.y[rows],
        groups=dataset.groups[rows],
        read=lambda at: dataset.read(rows[at]),
        view_reader=_of_views(dataset, rows),
    )
    if len(dataset.views) > 1 or 4 * len(rows) * sum(dataset.widths) > _HELD_BYTES:
        return made
    X = dataset.read(rows)
    return replace(made, read=lambda at: X[at])


def _of_views(dataset: FeatureDataset, rows: np.ndarray) -> Callable[[np.ndarray], np.ndarray] | None:
    read, k = dataset.view_reader, len(dataset.views)
    if read is None:
        return None
    return lambda places: read(rows[places // k] * k + places % k)


def shared(y: np.ndarray, units: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Places of whole units drawn at random, of each class the same share and one at least.

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
