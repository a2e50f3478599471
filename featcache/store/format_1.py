"""The catalogue of format 1: its tables, how it is read as format 2, and how it becomes format 2.

Reading changes nothing: temporary views of the connection, with the names and columns of format 2, stand in front of
the tables. The hold-out of format 1 belonged to a source; where two sources disagree, ``test`` holds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Mapping

_ADDED = {
    "sources": {"settings": "TEXT NOT NULL DEFAULT '{}'"},
    "shards": {"keys_offset": "INTEGER", "keys_sha256": "BLOB", "layout": "BLOB"},
    "shard_columns": {"offset": "INTEGER", "sha256": "BLOB"},
}
"""Columns that came with format 2."""

NEW = ("pending", "requests", "settings", "excluded")
"""Tables that came with format 2."""

_HOLDOUT = """CREATE TABLE holdout (
    source_id INTEGER NOT NULL REFERENCES sources(id), sha256 BLOB NOT NULL, part TEXT NOT NULL,
    PRIMARY KEY (source_id, sha256)) WITHOUT ROWID"""

# 'test' comes before 'train'.
_SIDES = "SELECT sha256, min(part) AS part, 'recorded' AS reason FROM main.holdout GROUP BY sha256"

REWRITTEN = ("sources", "shards", "shard_columns", "holdout")
"""Tables whose rows have other values in format 2."""


def tables(present: Mapping[str, str]) -> dict[str, str]:
    """The statements of format 1, from those of format 2."""
    found = {name: sql for name, sql in present.items() if name not in NEW}
    for name, columns in _ADDED.items():
        # As `ALTER TABLE` writes them: behind the last column, each after a comma.
        text = " ".join(found[name].split())
        for column, kind in columns.items():
            text = text.replace(f", {column} {kind}", "", 1)
        found[name] = text
    return found | {"holdout": _HOLDOUT}


def digested(present: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Per table of format 1 the values that its digest covers, from those of format 2."""
    found = {
        name: tuple(column for column in columns if column not in _ADDED.get(name, ()))
        for name, columns in present.items()
        if name not in NEW
    }
    return found | {"holdout": ("source_id", "sha256", "part")}


def show_as_format_2(connection: sqlite3.Connection, present: Mapping[str, tuple[str, ...]]) -> None:
    """Put views in front of the tables that differ; *present* are the columns of format 2."""
    for name, columns in _ADDED.items():
        kept = ", ".join(column for column in present[name] if column not in columns)
        absent = ", ".join(f"{kind.partition('DEFAULT ')[2] or 'NULL'} AS {column}" for column, kind in columns.items())
        connection.execute(f"CREATE TEMP VIEW {name} AS SELECT {kept}, {absent} FROM main.{name}")
    for name in NEW:
        empty = ", ".join(f"NULL AS {column}" for column in present[name])
        connection.execute(f"CREATE TEMP VIEW {name} AS SELECT {empty} WHERE 0")
    connection.execute(f"CREATE TEMP VIEW holdout AS {_SIDES}")


def show_tables(connection: sqlite3.Connection) -> None:
    """Take the views away: another process made the store one of format 2."""
    for name in (*_ADDED, *NEW, "holdout"):
        connection.execute(f"DROP VIEW IF EXISTS temp.{name}")


def make_format_2(connection: sqlite3.Connection, present: Mapping[str, str]) -> None:
    """Change the tables, inside the caller's transaction; *present* are the statements of format 2."""
    for name, columns in _ADDED.items():
        for column, kind in columns.items():
            connection.execute(f"ALTER TABLE {name} ADD COLUMN {column} {kind}")
    sides = connection.execute(_SIDES).fetchall()
    connection.execute("DROP TABLE holdout")
    for name in (*NEW, "holdout"):
        connection.execute(present[name])
    connection.executemany("INSERT INTO holdout (sha256, part, reason) VALUES (?, ?, ?)", sides)
