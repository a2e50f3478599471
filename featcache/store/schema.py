"""The catalogue's tables, and the check that a file holds these and nothing else.

The address of a vector is (SHA-256 of the image, space, layer, view). ``columns`` numbers the
(space, layer, view) triples and ``rows`` maps (column, SHA-256) to a row of a sealed shard; its
primary key is what keeps a vector from being stored twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from featcache.core.errors import DamagedStoreError, NotAStoreError, StoreFormatError

if TYPE_CHECKING:
    import sqlite3

STORE_FORMAT = 1
APPLICATION_ID = 0x46434348  # "FCCH"

TABLES = {
    "sources": """CREATE TABLE sources (
        id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, root TEXT NOT NULL)""",
    "items": """CREATE TABLE items (
        id INTEGER PRIMARY KEY, source_id INTEGER NOT NULL REFERENCES sources(id), uri TEXT NOT NULL,
        sha256 BLOB NOT NULL, label TEXT, split TEXT, grp TEXT,
        size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, ctime_ns INTEGER NOT NULL,
        inode INTEGER NOT NULL, indexed_ns INTEGER NOT NULL, UNIQUE (source_id, uri))""",
    "spaces": """CREATE TABLE spaces (
        id INTEGER PRIMARY KEY, fingerprint TEXT NOT NULL UNIQUE, recipe TEXT NOT NULL)""",
    "columns": """CREATE TABLE columns (
        id INTEGER PRIMARY KEY, space_id INTEGER NOT NULL REFERENCES spaces(id), layer TEXT NOT NULL,
        view TEXT NOT NULL, position INTEGER NOT NULL, UNIQUE (space_id, layer, view))""",
    "shards": """CREATE TABLE shards (
        id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, space_id INTEGER NOT NULL REFERENCES spaces(id),
        sha256 BLOB NOT NULL, bytes INTEGER NOT NULL, rows INTEGER NOT NULL, created TEXT NOT NULL)""",
    "shard_columns": """CREATE TABLE shard_columns (
        shard_id INTEGER NOT NULL REFERENCES shards(id), column_id INTEGER NOT NULL REFERENCES columns(id),
        dtype TEXT NOT NULL, shape TEXT NOT NULL, live INTEGER NOT NULL,
        PRIMARY KEY (shard_id, column_id)) WITHOUT ROWID""",
    "rows": """CREATE TABLE rows (
        column_id INTEGER NOT NULL REFERENCES columns(id), sha256 BLOB NOT NULL,
        shard_id INTEGER NOT NULL REFERENCES shards(id), row INTEGER NOT NULL,
        PRIMARY KEY (column_id, sha256)) WITHOUT ROWID""",
    "quarantine": """CREATE TABLE quarantine (
        source_id INTEGER NOT NULL REFERENCES sources(id), uri TEXT NOT NULL,
        space_id INTEGER NOT NULL REFERENCES spaces(id), sha256 BLOB, reason TEXT NOT NULL,
        versions TEXT NOT NULL, created TEXT NOT NULL,
        PRIMARY KEY (source_id, uri, space_id)) WITHOUT ROWID""",
    "holdout": """CREATE TABLE holdout (
        source_id INTEGER NOT NULL REFERENCES sources(id), sha256 BLOB NOT NULL, part TEXT NOT NULL,
        PRIMARY KEY (source_id, sha256)) WITHOUT ROWID""",
    "departed": """CREATE TABLE departed (
        source_id INTEGER NOT NULL REFERENCES sources(id), uri TEXT NOT NULL, sha256 BLOB NOT NULL,
        PRIMARY KEY (source_id, uri)) WITHOUT ROWID""",
    "runs": """CREATE TABLE runs (
        id INTEGER PRIMARY KEY, verb TEXT NOT NULL, started TEXT NOT NULL, record TEXT NOT NULL)""",
    "digests": """CREATE TABLE digests (
        name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID""",
}

INDEXES = {
    "items_by_content": "CREATE INDEX items_by_content ON items (sha256)",
}

DIGESTED = {
    "sources": ("id", "name", "root"),
    "items": (
        "id", "source_id", "uri", "sha256", "label", "split", "grp",
        "size", "mtime_ns", "ctime_ns", "inode", "indexed_ns",
    ),
    "spaces": ("id", "fingerprint", "recipe"),
    "columns": ("id", "space_id", "layer", "view", "position"),
    "shards": ("id", "name", "space_id", "sha256", "bytes", "rows", "created"),
    "shard_columns": ("shard_id", "column_id", "dtype", "shape", "live"),
    "rows": ("column_id", "sha256", "shard_id", "row"),
    "quarantine": ("source_id", "uri", "space_id", "sha256", "reason", "versions", "created"),
    "holdout": ("source_id", "sha256", "part"),
    "departed": ("source_id", "uri", "sha256"),
    "runs": ("id", "verb", "started", "record"),
}  # fmt: skip
"""Per table the values that its digest covers: all of them."""


def create(connection: sqlite3.Connection) -> None:
    """Make the tables in an empty database, inside the caller's transaction."""
    for statement in (*TABLES.values(), *INDEXES.values()):
        connection.execute(statement)
    connection.executemany("INSERT INTO digests (name, value) VALUES (?, ?)", [(name, bytes(32)) for name in DIGESTED])
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {STORE_FORMAT}")


def check(connection: sqlite3.Connection, where: str) -> None:
    """Refuse a database that is not exactly a catalogue of this format.

    Raises:
        NotAStoreError: the file is some other SQLite database.
        StoreFormatError: the store is of a format that this version does not read.
        DamagedStoreError: the tables are not the expected ones (a view or trigger could run code of
            its own on every query).
    """
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application != APPLICATION_ID:
        raise NotAStoreError(f"{where} is a database, but not the catalogue of a featcache store.")
    if version != STORE_FORMAT:
        raise StoreFormatError(
            f"{where} has store format {version}; this featcache reads format {STORE_FORMAT}. "
            "Upgrade featcache to open it."
        )
    found = {
        name: " ".join(str(sql).split())
        for name, sql in connection.execute("SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL")
    }
    expected = {name: " ".join(sql.split()) for name, sql in (TABLES | INDEXES).items()}
    if found != expected:
        odd = sorted(n for n in found.keys() | expected.keys() if found.get(n) != expected.get(n))
        raise DamagedStoreError(
            f"{where} does not have the tables of a featcache catalogue (differing: {', '.join(odd)}). "
            "Run `featcache repair` on the store."
        )
