"""The transaction that makes rows exist, and the numbers that spaces and columns have."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone

from featcache.recipe import Recipe
from featcache.store.catalogue import Catalogue
from featcache.store.shard import SealedShard

Column = tuple[str, str]
"""(layer, view)"""


def shard_folder(fingerprint: str) -> str:
    """The folder's name below ``shards/`` for one space."""
    return fingerprint[:16]


def commit_shard(
    catalogue: Catalogue,
    space: int,
    name: str,
    shard: SealedShard,
    columns: Mapping[Column, int],
    sha256s: Sequence[bytes],
) -> int:
    """The transaction that makes a shard's rows exist; rows that are there already stay with their shard.

    Returns:
        The number of rows that were new; at 0 nothing was recorded.
    """
    with catalogue.transaction() as connection:
        cursor = connection.execute(
            "INSERT INTO shards (name, space_id, sha256, bytes, rows, created) VALUES (?, ?, ?, ?, ?, ?)",
            (name, space, shard.sha256, shard.bytes, shard.rows, datetime.now(timezone.utc).isoformat()),
        )
        number = cursor.lastrowid
        total = 0
        for column, id_ in columns.items():
            if shard.dtypes[column] == "float32":
                _retire_narrow_rows(connection, id_, sha256s)
            live = connection.executemany(
                "INSERT INTO rows (column_id, sha256, shard_id, row) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
                ((id_, sha256, number, row) for row, sha256 in enumerate(sha256s)),
            ).rowcount
            connection.execute(
                "INSERT INTO shard_columns (shard_id, column_id, dtype, shape, live) VALUES (?, ?, ?, ?, ?)",
                (number, id_, shard.dtypes[column], json.dumps(list(shard.shapes[column])), live),
            )
            total += live
        if not total:
            connection.execute("DELETE FROM shard_columns WHERE shard_id = ?", (number,))
            connection.execute("DELETE FROM shards WHERE id = ?", (number,))
    return total


def is_committed(catalogue: Catalogue, name: str) -> bool:
    """Whether the catalogue names this shard."""
    return bool(catalogue.query("SELECT 1 FROM shards WHERE name = ?", (name,)))


def _retire_narrow_rows(connection: sqlite3.Connection, column: int, sha256s: Sequence[bytes]) -> None:
    """Let float32 rows take the place of float16 rows of the same images."""
    narrow = connection.execute(
        "SELECT shard_id FROM shard_columns WHERE column_id = ? AND dtype = 'float16' AND live > 0", (column,)
    ).fetchall()
    for (shard,) in narrow:
        gone = connection.executemany(
            "DELETE FROM rows WHERE column_id = ? AND sha256 = ? AND shard_id = ?",
            ((column, sha256, shard) for sha256 in sha256s),
        ).rowcount
        if gone:
            connection.execute(
                "UPDATE shard_columns SET live = live - ? WHERE column_id = ? AND shard_id = ?",
                (gone, column, shard),
            )


def space_id(catalogue: Catalogue, recipe: Recipe) -> int:
    sql = "SELECT id, recipe FROM spaces WHERE fingerprint = ?"
    found = catalogue.query(sql, (recipe.fingerprint,))
    if not found:
        with catalogue.transaction() as connection:
            connection.execute(
                "INSERT INTO spaces (fingerprint, recipe) VALUES (?, ?) ON CONFLICT DO NOTHING",
                (recipe.fingerprint, recipe.to_json()),
            )
        found = catalogue.query(sql, (recipe.fingerprint,))
    return int(found[0][0])


def column_id(catalogue: Catalogue, space: int, layer: str, view: str, position: int) -> int:
    sql = "SELECT id FROM columns WHERE space_id = ? AND layer = ? AND view = ?"
    found = catalogue.query(sql, (space, layer, view))
    if not found:
        with catalogue.transaction() as connection:
            connection.execute(
                "INSERT INTO columns (space_id, layer, view, position) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
                (space, layer, view, position),
            )
        found = catalogue.query(sql, (space, layer, view))
    return int(found[0][0])
