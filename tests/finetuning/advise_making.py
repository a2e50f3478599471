"""Stores and outcomes to take advice from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from featcache.core.names import VIEW_0, view_name
from featcache.finetuning.advise.choose import Outcome
from featcache.store import StoreWriter
from featcache.store.sources import Record, SourceRecords

from ..store.making import keys, recipe

if TYPE_CHECKING:
    from featcache.core.recipe import Recipe
    from featcache.finetuning.advise import Advice


def outcome(name: str, right: np.ndarray, rows: np.ndarray | None = None) -> Outcome:
    rows = np.arange(len(right)) if rows is None else rows
    return Outcome(name, rows, np.asarray(right, float), np.zeros(len(right)), 1.0, 1.0)


def store_of(
    path: Path,
    y: list[str],
    vectors: dict[str, np.ndarray],
    views: Sequence[np.ndarray] = (),
    made_by: Recipe | None = None,
) -> Path:
    """A store with these vectors and these further views of ``pooled``; nobody has its images, nor its network.

    Each layer is in a shard of its own.
    """
    contents = keys(len(y))
    columns = {(name, VIEW_0): X for name, X in vectors.items()}
    columns |= {("pooled", view_name("a" * 16, 0, number)): X for number, X in enumerate(views, 1)}
    with StoreWriter(path) as writer:
        space = writer.space(made_by or recipe())
        for (name, view), X in columns.items():
            space.declare(name, view, list(vectors).index(name), "float32")
            space.append(contents, {(name, view): X.astype(np.float32)})
            space.seal()
        SourceRecords(writer.catalogue, "images", "/nowhere").save(
            [
                Record(f"{i:05}.jpg", key, label, None, None, 1, 2, 3, 4, 5)
                for i, (key, label) in enumerate(zip(contents, y, strict=True))
            ]
        )
    return path


def synthetic(
    path: Path, each: int, *, early: float, last: float, classes: int = 2, d: int = 6, views: Sequence[float] = ()
) -> Path:
    """Classes of *each* items, whose means are so many deviations from the first one's, early and in ``pooled``.

    *views* are the same distances in further views of ``pooled``.
    """
    rng = np.random.default_rng(0)
    y = np.arange(classes * each) % classes

    def cloud(apart: float) -> np.ndarray:
        return apart * np.eye(classes, d, -1)[y] + rng.normal(size=(len(y), d))

    vectors = {"b.0:mean_std": cloud(early), "b.1:mean_std": cloud((early + last) / 2), "pooled": cloud(last)}
    return store_of(path, ["abcd"[number] for number in y], vectors, [cloud(apart) for apart in views])


def differing(name: str, n: int, above: int, below: int) -> tuple[Outcome, Outcome]:
    """Two strategies on n items: on *above* the first one alone is right, on *below* the softmax alone."""
    right, other = np.ones(n), np.ones(n)
    other[:above] = 0
    right[above : above + below] = 0
    return outcome(name, right), outcome("softmax", other)


def reason_of(advice: Advice, name: str) -> str:
    return next(part["reason"] for part in advice.parts if part["name"].startswith(name) and part["reason"])


def names_of(advice: Advice) -> list[str]:
    return [measured["name"] for measured in advice.strategies]
