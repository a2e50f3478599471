"""Labelled vectors that a head reads in blocks, as often as it likes, so that they need not fit in memory.

A head that can learn so has ``fit_stream(stream)`` beside ``fit``. It sees all numbers of classes and
groups at once, which are small, and reads vectors in the order it wants.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class VectorStream:
    """Labelled vectors read on demand.

    Attributes:
        read: from m row numbers to vectors (m, d), float32 or float64.
        numbers: (n,) int64, the class of each row as its place in ``classes``.
        groups: (n,) numbers; rows with the same one are no independent evidence.
        classes: (k,) labels.
        width: d.
    """

    read: Callable[[np.ndarray], np.ndarray]
    numbers: np.ndarray
    groups: np.ndarray
    classes: np.ndarray
    width: int

    def __len__(self) -> int:
        return len(self.numbers)

    def blocks(
        self, order: np.ndarray | None = None, size: int = ROWS_AT_ONCE
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """One pass: row numbers (m,) and vectors (m, d), in *order* or from the first row to the last."""
        order = np.arange(len(self)) if order is None else order
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            yield rows, self.read(rows)
