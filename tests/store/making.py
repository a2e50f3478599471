"""Stores with known content."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from featcache.core.recipe import PixelPath, Recipe, StandardTransform
from featcache.store import StoreWriter
from featcache.store.sources import Record, SourceRecords

PIXELS = PixelPath(StandardTransform((36,), (32, 32), "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))


def recipe(name: str = "test:net") -> Recipe:
    return Recipe(name, hashlib.sha256(name.encode()).hexdigest(), PIXELS)


def keys(count: int, start: int = 0) -> list[bytes]:
    return [hashlib.sha256(b"%d" % i).digest() for i in range(start, start + count)]


def values(count: int, width: int = 8, start: int = 0) -> np.ndarray:
    """Row i depends on start + i alone."""
    i = np.arange(start, start + count, dtype=np.float32)[:, None]
    return np.sin(i * 0.37 + np.arange(width, dtype=np.float32)).astype(np.float32)


def lose(path: Path, uri: str, layer: str, *, view_0: bool = True) -> None:
    """Take one image's vectors of a layer away, as a run that was cut off leaves it; or those of its other views."""
    with StoreWriter(path, create=False) as writer, writer.catalogue.transaction() as connection:
        found = connection.execute(
            "SELECT r.column_id, r.shard_id, r.sha256 FROM rows r JOIN columns k ON k.id = r.column_id "
            "JOIN items i ON i.sha256 = r.sha256 WHERE i.uri = ? AND k.layer = ? AND (k.view <> '0' OR ?)",
            (uri, layer, view_0),
        ).fetchall()
        assert found
        for column, shard, sha256 in found:
            connection.execute("DELETE FROM rows WHERE column_id = ? AND sha256 = ?", (column, sha256))
            connection.execute(
                "UPDATE shard_columns SET live = live - 1 WHERE column_id = ? AND shard_id = ?", (column, shard)
            )


def fill(
    path: Path,
    count: int = 30,
    *,
    start: int = 0,
    shard: int = 10,
    layers: dict[str, int] | None = None,
    dtype: str = "float32",
    backbone: str = "test:net",
    source: str = "images",
) -> None:
    """Append *count* images in shards of *shard*, with items labeled by turns a, b, c."""
    layers = layers or {"pooled": 8}
    with StoreWriter(path) as writer:
        space = writer.space(recipe(backbone))
        for position, name in enumerate(layers):
            space.declare(name, "0", position, dtype)
        for first in range(start, start + count, shard):
            n = min(shard, start + count - first)
            space.append(keys(n, first), {(name, "0"): values(n, width, first) for name, width in layers.items()})
            space.seal()
        records = SourceRecords(writer.catalogue, source, "/nowhere")
        records.save(
            [
                Record(f"{i:05}.jpg", key, "abc"[i % 3], None, None, 1, 2, 3, 4, 5)
                for i, key in enumerate(keys(count, start), start)
            ]
        )
