"""Which items a training is of, and the numbers of their classes."""

from __future__ import annotations

import hashlib

import numpy as np

from featcache.training.dataset import LabelledVectors


def class_numbers(y: np.ndarray, learn: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
    """The classes that are learned, and the number of each item's.

    Args:
        y: (n,) labels.
        learn: (m,) rows to learn from; a class that none of them has is not known.

    Returns:
        k labels in sorted order, and (n,) int64 from 0 on, -1 where the class is not known.
    """
    names = np.unique(y[learn])
    numbers = np.where(np.isin(y, names), np.searchsorted(names, y), -1)
    return tuple(str(name) for name in names), numbers.astype(np.int64)


def contents(examples: LabelledVectors, rows: np.ndarray) -> np.ndarray:
    """(c, 32) uint8: the sorted SHA-256s of the items of these rows, each once."""
    found = sorted({examples.items[row].sha256 for row in rows.tolist()})
    return np.frombuffer(b"".join(found), dtype=np.uint8).reshape(-1, 32)


def items_digest(examples: LabelledVectors, fit: np.ndarray, validation: np.ndarray) -> str:
    """SHA-256 of the items trained and validated on, in order, with their labels: 64 hexadecimal digits."""
    total = hashlib.sha256()
    for rows in (fit, validation):
        for row in rows.tolist():
            total.update(examples.items[row].sha256 + str(examples.y[row]).encode("utf-8", "surrogatepass") + b"\0")
        total.update(b"\1")
    return total.hexdigest()
