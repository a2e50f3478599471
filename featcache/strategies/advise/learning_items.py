"""The items that advice is taken from: those to learn from, in folds that never tear apart what belongs together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from featcache.errors import MissingVectorsError, UsageError
from featcache.evaluation import splits
from featcache.labelled_vectors import LabelledVectors

FOLDS = 5
_HELD_BYTES = 2 << 30
"""Vectors that are kept in memory; more are read for each fit."""

Folds = Sequence[tuple[np.ndarray, np.ndarray]]
"""Pairs of row numbers: to learn from, and to answer for."""


@dataclass(frozen=True)
class LearningItems:
    """The items to learn from.

    Attributes:
        examples: they alone, with some layers; rows are counted here.
        rows: (n,) their rows among all labelled items.
        folds: of the cross-validation.
    """

    examples: LabelledVectors
    rows: np.ndarray
    folds: Folds

    def of(self, whole: LabelledVectors) -> LabelledVectors:
        """The same items with other layers.

        Args:
            whole: all labelled items with these layers.

        Raises:
            MissingVectorsError: these are not the same items.
        """
        self.check(whole)
        return part(whole, self.rows)

    def check(self, whole: LabelledVectors) -> None:
        """Refuse vectors of other items.

        Args:
            whole: all labelled items with some layers.

        Raises:
            MissingVectorsError: these are not the same items.
        """
        kept = [whole.items[row].sha256 for row in self.rows if row < len(whole.items)]
        if kept != [item.sha256 for item in self.examples.items]:
            raise MissingVectorsError(f"Not all items have vectors of {', '.join(whole.layers)}.")


def learning_items(examples: LabelledVectors, learn: np.ndarray, seed: int) -> LearningItems:
    """The items to learn from, in at most 5 folds, fewer where a class has fewer independent items.

    Args:
        examples: all labelled items.
        learn: (n,) rows to learn from.
        seed: of the folds.

    Raises:
        UsageError: a class has one independent item alone.
    """
    y, units = examples.y[learn], examples.units[learn]
    k = splits.usable_k(y, units, FOLDS)
    if not k:
        name = min(set(y.tolist()), key=lambda label: (len(np.unique(units[y == label])), label))
        raise UsageError(
            f"Class {name!r} has one independent image alone among the {len(learn)} that are learned from, so nothing "
            "can be measured on it: it would have to be learned from and answered at once. Add images of it, or leave "
            "it out with --labels FILE."
        )
    return LearningItems(part(examples, learn), learn, splits.folds(y, units, k, seed))


def part(examples: LabelledVectors, rows: np.ndarray) -> LabelledVectors:
    """Some of the labelled vectors, in memory where they are not too large for that."""
    made = replace(
        examples,
        items=[examples.items[row] for row in rows],
        y=examples.y[rows],
        units=examples.units[rows],
        read=lambda at: examples.read(rows[at]),
        read_views=_of_views(examples, rows),
    )
    if len(examples.views) > 1 or 4 * len(rows) * sum(examples.widths) > _HELD_BYTES:
        return made
    X = examples.read(rows)
    return replace(made, read=lambda at: X[at])


def _of_views(examples: LabelledVectors, rows: np.ndarray) -> Callable[[np.ndarray], np.ndarray] | None:
    read, k = examples.read_views, len(examples.views)
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
