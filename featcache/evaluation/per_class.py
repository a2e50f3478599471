"""How well each class is told from the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from featcache.metrics.classification import wilson


@dataclass(frozen=True, slots=True)
class ClassScore:
    """One class; a value is None where there is nothing to divide by.

    Attributes:
        label: its name.
        items: items of it.
        precision: share of the items called so that are so.
        recall: share of its items that are called so.
        recall_low, recall_high: Wilson's 95 % interval of the recall, with the number of units of the
            class as the number of trials.
        f1: harmonic mean of precision and recall, 2 hits / (items + items called so).
    """

    label: str
    items: int
    precision: float | None
    recall: float | None
    recall_low: float | None
    recall_high: float | None
    f1: float | None


def confusion_matrix(y: np.ndarray, predicted: np.ndarray, labels: Sequence[str]) -> np.ndarray:
    """(k, k) int64: how many items of each label (row) are called what (column).

    Args:
        y: (n,) true labels.
        predicted: (n,) predicted labels.
        labels: k labels, all that occur.
    """
    place = {label: i for i, label in enumerate(labels)}
    counts = np.zeros((len(labels), len(labels)), dtype=np.int64)
    np.add.at(counts, ([place[str(v)] for v in y], [place[str(v)] for v in predicted]), 1)
    return counts


def per_class(confusion: np.ndarray, labels: Sequence[str], units: np.ndarray) -> list[ClassScore]:
    """The scores of each class.

    Args:
        confusion: (k, k), see `confusion_matrix`.
        labels: k labels.
        units: (k,) how many independent units the items of each class are.
    """
    scores = []
    for i, label in enumerate(labels):
        hits, items, called = int(confusion[i, i]), int(confusion[i].sum()), int(confusion[:, i].sum())
        scores.append(ClassScore(**counted_score(label, hits=hits, items=items, called=called, units=int(units[i]))))
    return scores


def counted_score(label: str, *, hits: int, items: int, called: int, units: int) -> dict[str, Any]:
    """The values of a `ClassScore`.

    Args:
        label: the class.
        hits: items of it that are called so.
        items: items of it.
        called: items called so.
        units: how many independent units its items are.
    """
    low, high = wilson(hits / items, units) if items else (None, None)
    return {
        "label": label,
        "items": items,
        "precision": hits / called if called else None,
        "recall": hits / items if items else None,
        "recall_low": low,
        "recall_high": high,
        "f1": 2 * hits / (items + called) if items + called else None,
    }


def units_of_each(y: np.ndarray, units: np.ndarray, labels: Sequence[str]) -> np.ndarray:
    """(k,) int64: in how many units each label occurs."""
    return np.array([len(np.unique(units[y == label])) for label in labels], dtype=np.int64)
