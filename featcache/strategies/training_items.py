"""Which items a training is of, in a few characters."""

from __future__ import annotations

import hashlib

import numpy as np

from featcache.labelled_vectors import LabelledVectors


def items_digest(examples: LabelledVectors, fit: np.ndarray, validation: np.ndarray) -> str:
    """SHA-256 of the items trained and validated on, in order, with their labels: 64 hexadecimal digits."""
    total = hashlib.sha256()
    for rows in (fit, validation):
        for row in rows.tolist():
            total.update(examples.items[row].sha256 + str(examples.y[row]).encode("utf-8", "surrogatepass") + b"\0")
        total.update(b"\1")
    return total.hexdigest()
