"""Stores and outcomes to take advice from."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from featcache.store import StoreWriter
from featcache.store.source_records import Record, SourceRecords
from featcache.strategies.advise.outcome import Outcome

from ..store.making import keys, recipe


def outcome(name: str, right: np.ndarray, rows: np.ndarray | None = None) -> Outcome:
    rows = np.arange(len(right)) if rows is None else rows
    return Outcome(name, rows, np.asarray(right, float), np.zeros(len(right)), 1.0, 1.0, 1)


def store_of(path: Path, y: list[str], vectors: dict[str, np.ndarray]) -> Path:
    """A store with these vectors, whose network and images nobody has."""
    contents = keys(len(y))
    with StoreWriter(path) as writer:
        space = writer.space(recipe())
        for position, name in enumerate(vectors):
            space.declare(name, "0", position, "float32")
        space.append(contents, {(name, "0"): X.astype(np.float32) for name, X in vectors.items()})
        space.seal()
        SourceRecords(writer.catalogue, "pictures", "/nowhere").save(
            [
                Record(f"{i:05}.jpg", key, label, None, None, 1, 2, 3, 4, 5)
                for i, (key, label) in enumerate(zip(contents, y, strict=True))
            ]
        )
    return path


def synthetic(path: Path, each: int, *, early: float, last: float, d: int = 6) -> Path:
    """Two classes of *each* items, whose means are so many deviations apart in an early block and in ``pooled``."""
    rng = np.random.default_rng(0)
    y = np.arange(2 * each) % 2

    def cloud(apart: float) -> np.ndarray:
        return np.hstack([(apart * y)[:, None], np.zeros((len(y), d - 1))]) + rng.normal(size=(len(y), d))

    vectors = {"b.0:mean_std": cloud(early), "b.1:mean_std": cloud((early + last) / 2), "pooled": cloud(last)}
    return store_of(path, ["ab"[number] for number in y], vectors)


def differing(name: str, n: int, above: int, below: int) -> tuple[Outcome, Outcome]:
    """Two strategies on n items: on *above* the first one alone is right, on *below* the softmax alone."""
    right, other = np.ones(n), np.ones(n)
    other[:above] = 0
    right[above : above + below] = 0
    return outcome(name, right), outcome("softmax", other)
