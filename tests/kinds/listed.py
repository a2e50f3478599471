"""Stores made of a listing alone: which contents a source lists under which labels, without any image file."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featcache.store import StoreWriter
from featcache.store.sources import Record, SourceRecords
from tests.store.making import recipe

WIDTH = 8


@dataclass(frozen=True)
class Listed:
    """One image of a source; *content* stands for its bytes."""

    content: int
    label: str | None
    split: str | None = None
    group: str | None = None
    name: str | None = None

    @property
    def uri(self) -> str:
        return self.name or f"{self.content:05}.jpg"

    @property
    def sha256(self) -> bytes:
        return sha256_of(self.content)


def sha256_of(content: int) -> bytes:
    return hashlib.sha256(b"content %d" % content).digest()


def vector_of(content: int) -> np.ndarray:
    """(WIDTH,) float32, by the content alone; contents 1000 apart are near-duplicates."""
    rng = np.random.default_rng(content % 1000)
    near = np.random.default_rng(content).normal(size=WIDTH) * (1e-3 if content >= 1000 else 0)
    return (rng.normal(size=WIDTH) + near).astype(np.float32)


def write_source(store: Path, rows: Sequence[Listed], source: str = "images") -> None:
    """Make the store if need be, add vectors of new contents, and let the source list exactly *rows*."""
    with StoreWriter(store) as writer:
        space = writer.space(recipe())
        space.declare("pooled", "0", 0, "float32")
        there = {sha256 for (sha256,) in writer.catalogue.query("h", "SELECT sha256 FROM rows")}
        new = sorted({row.content for row in rows if row.sha256 not in there})
        if new:
            vectors = np.stack([vector_of(content) for content in new])
            space.append([sha256_of(content) for content in new], {("pooled", "0"): vectors})
            space.seal()
        records = SourceRecords(writer.catalogue, source, f"/nowhere/{source}")
        records.remove(records.known().keys() - {row.uri for row in rows})
        records.save([Record(row.uri, row.sha256, row.label, row.split, row.group, 1, 2, 3, 4, 5) for row in rows])
