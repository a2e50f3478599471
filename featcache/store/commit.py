"""How rows come to exist: the commit protocol.

A row exists if and only if the transaction that names it was committed. In this order:

1. write ``tmp/<writer>/<name>.h5``, hash, flush (`featcache.store.shard_file`);
2. note name and hash in ``tmp/<writer>/journal``, flush;
3. rename into ``shards/<space>/<name>.h5``, flush the folder;
4. one transaction names the shard, its SHA-256 and its rows.

Every writer holds a lock on its own folder below ``tmp/``. A kill before 3 costs the unsealed work; a kill between 3
and 4 leaves a shard that the next writer finds in the journal, checks against the hash noted there, and adopts
(`featcache.store.recovery`). The files of an active writer are never touched.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from featcache.core.errors import DamagedStoreError
from featcache.core.failpoints import reach
from featcache.core.files import sync
from featcache.store.catalogue import Catalogue, foreign_errors
from featcache.store.journal import note_sealed
from featcache.store.shard import layout_check

if TYPE_CHECKING:
    import sqlite3

    from featcache.core.recipe import Recipe
    from featcache.store.shard_file import Column, SealedShard

_AT_ONCE = 500


def shard_folder(fingerprint: str) -> str:
    """The folder's name below ``shards/`` for one space."""
    return fingerprint[:16]


def shard_path(store: Path, fingerprint: str, name: str) -> Path:
    """Where a shard lies once it is sealed."""
    return store / "shards" / shard_folder(fingerprint) / f"{name}.h5"


def put_in_place(writer: Path, unsealed: Path, target: Path, shard: SealedShard, verb: str) -> None:
    """Rename a file that was written and flushed to its place below ``shards/``.

    Args:
        writer: the writer's own folder, with its journal.
        unsealed: the file.
        target: its place.
        shard: what was written.
        verb: ``seal`` or ``compact``, for the failpoints.
    """
    reach(f"{verb}: file written")
    if target.parent.is_symlink():
        raise DamagedStoreError(
            f"{target.parent} is a link, so what is put there is not the store's own. "
            "Run `featcache repair` on the store."
        )
    if not target.parent.is_dir():
        target.parent.mkdir(exist_ok=True)
        sync(target.parent.parent)
    note_sealed(writer, target, shard.sha256)
    reach(f"{verb}: journal noted")
    os.rename(unsealed, target)
    reach(f"{verb}: renamed")
    sync(target.parent)


def commit_shard(
    catalogue: Catalogue, space: int, shard: SealedShard, columns: Mapping[Column, int], sha256s: Sequence[bytes]
) -> int:
    """The transaction that makes a shard's rows exist; rows that are there already stay with their shard.

    Returns:
        The number of rows that were new; at 0 nothing was recorded.
    """
    with catalogue.transaction() as connection:
        number = insert_shard(connection, space, shard)
        total = 0
        for column, id_ in columns.items():
            if shard.vectors[column].dtype == "float32":
                _retire_narrow_rows(connection, id_, sha256s)
            live = connection.executemany(
                "INSERT INTO rows (column_id, sha256, shard_id, row) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
                ((id_, sha256, number, row) for row, sha256 in enumerate(sha256s)),
            ).rowcount
            insert_column(connection, number, id_, shard, column, live)
            total += live
        if not total:
            forget_shard(connection, number)
        reach("seal: rows inserted")
    reach("seal: committed")
    return total


def insert_shard(connection: sqlite3.Connection, space: int, shard: SealedShard) -> int:
    """Record a shard; returns its number.

    SQLite itself would give the number of a shard that was removed to the next one, and a reader that still
    holds places in the first would read other images' vectors from the second. So numbers follow the clock.
    """
    cursor = connection.execute(
        "INSERT INTO shards (id, name, space_id, sha256, bytes, rows, created, keys_offset, keys_sha256, layout) "
        "SELECT max(?, coalesce(max(id), 0) + 1), ?, ?, ?, ?, ?, ?, ?, ?, ? FROM shards RETURNING id",
        (
            time.time_ns() // 1_000_000,
            shard.name,
            space,
            shard.sha256,
            shard.bytes,
            shard.rows,
            datetime.now(UTC).isoformat(),
            shard.keys.offset,
            bytes.fromhex(shard.keys.sha256),
            layout_check(shard.name, shard.keys, shard.vectors),
        ),
    )
    return int(cursor.fetchone()[0])


def insert_column(
    connection: sqlite3.Connection, shard_id: int, column_id: int, shard: SealedShard, column: Column, live: int
) -> None:
    """Record that a shard holds a column, and how many of its rows there exist."""
    extent = shard.vectors[column]
    shape = json.dumps(list(extent.shape[1:]))
    connection.execute(
        "INSERT INTO shard_columns (shard_id, column_id, dtype, shape, live, offset, sha256) "
        "VALUES (?, ?, ?, ?, ?, ?, ?)",
        (shard_id, column_id, extent.dtype, shape, live, extent.offset, bytes.fromhex(extent.sha256)),
    )


def forget_shard(connection: sqlite3.Connection, shard_id: int) -> None:
    """Take a shard without rows out of the catalogue."""
    connection.execute("DELETE FROM shard_columns WHERE shard_id = ?", (shard_id,))
    connection.execute("DELETE FROM shards WHERE id = ?", (shard_id,))


def remove_unnamed(catalogue: Catalogue, paths: Iterable[Path], point: str) -> None:
    """Remove those of these shards that the catalogue does not name.

    Args:
        catalogue: the catalogue.
        paths: shard files, which may be gone already.
        point: the failpoint after each.
    """
    for path in paths:
        if not is_committed(catalogue, path.stem):
            with foreign_errors(str(path)):
                path.unlink(missing_ok=True)
            reach(point)


def is_committed(catalogue: Catalogue, name: str) -> bool:
    """Whether the catalogue names this shard."""
    return bool(catalogue.query("i", "SELECT 1 FROM shards WHERE name = ?", (name,)))


def places(
    catalogue: Catalogue, column_id: int, sha256s: Sequence[bytes], *, wide: bool = False
) -> dict[bytes, tuple[int, int]]:
    """Shard and row of each of these images that has a row in a column.

    Args:
        catalogue: the catalogue.
        column_id: the column's number.
        sha256s: the images asked for.
        wide: leave out rows that are kept as float16.
    """
    found: dict[bytes, tuple[int, int]] = {}
    narrow = "JOIN shard_columns c USING (shard_id, column_id)" if wide else ""
    condition = "AND c.dtype = 'float32'" if wide else ""
    for start in range(0, len(sha256s), _AT_ONCE):
        some = sha256s[start : start + _AT_ONCE]
        for sha256, shard, row in catalogue.query(
            "hii",
            f"SELECT r.sha256, r.shard_id, r.row FROM rows r {narrow} "
            f"WHERE r.column_id = ? AND r.sha256 IN ({','.join('?' * len(some))}) {condition}",
            (column_id, *some),
        ):
            found[sha256] = (shard, row)
    return found


def live_rows(catalogue: Catalogue, column_id: int, shard_id: int, keys: np.ndarray) -> np.ndarray:
    """Which rows of a shard exist in a column: (rows,) bool.

    Args:
        catalogue: the catalogue.
        column_id: the column's number.
        shard_id: the shard's number.
        keys: (rows, 32) uint8, the shard's own hashes.
    """
    hashes = [key.tobytes() for key in keys]
    found = places(catalogue, column_id, hashes)
    return np.array([found.get(sha256) == (shard_id, row) for row, sha256 in enumerate(hashes)], dtype=bool)


def space_id(catalogue: Catalogue, recipe: Recipe) -> int:
    """The number of a recipe's space, given to it now if it has none."""
    return _number(
        catalogue,
        "SELECT id FROM spaces WHERE fingerprint = ?",
        (recipe.fingerprint,),
        "INSERT INTO spaces (fingerprint, recipe) VALUES (?, ?) ON CONFLICT DO NOTHING",
        (recipe.fingerprint, recipe.to_json()),
    )


def column_id(catalogue: Catalogue, space: int, layer: str, view: str, position: int) -> int:
    """The number of a (space, layer, view), given to it now if it has none."""
    return _number(
        catalogue,
        "SELECT id FROM columns WHERE space_id = ? AND layer = ? AND view = ?",
        (space, layer, view),
        "INSERT INTO columns (space_id, layer, view, position) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
        (space, layer, view, position),
    )


def _number(
    catalogue: Catalogue, find: str, key: tuple[str | int, ...], add: str, values: tuple[str | int, ...]
) -> int:
    found = catalogue.query("i", find, key)
    if not found:
        with catalogue.transaction() as connection:
            connection.execute(add, values)
        found = catalogue.query("i", find, key)
    return int(found[0][0])


def _retire_narrow_rows(connection: sqlite3.Connection, column: int, sha256s: Sequence[bytes]) -> None:
    """Let float32 rows take the place of float16 rows of the same images."""
    narrow: list[tuple[bytes, int]] = []
    for start in range(0, len(sha256s), _AT_ONCE):
        some = sha256s[start : start + _AT_ONCE]
        narrow += connection.execute(
            "SELECT r.sha256, r.shard_id FROM rows r JOIN shard_columns c USING (shard_id, column_id) "
            f"WHERE r.column_id = ? AND r.sha256 IN ({','.join('?' * len(some))}) AND c.dtype = 'float16'",
            (column, *some),
        ).fetchall()
    connection.executemany(
        "DELETE FROM rows WHERE column_id = ? AND sha256 = ?", ((column, sha256) for sha256, _ in narrow)
    )
    connection.executemany(
        "UPDATE shard_columns SET live = live - ? WHERE column_id = ? AND shard_id = ?",
        ((count, column, shard) for shard, count in Counter(shard for _, shard in narrow).items()),
    )
