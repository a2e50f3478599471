"""The catalogue's tables, and the check that a file holds these and nothing else.

Format 2 is written; format 1 is read (`featcache.store.format_1`).

The address of a vector is (SHA-256 of the image, space, layer, view). ``columns`` numbers the
(space, layer, view) triples and ``rows`` maps (column, SHA-256) to a row of a sealed shard; its
primary key is what keeps a vector from being stored twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from featcache.core.errors import DamagedStoreError, NotAStoreError, StoreFormatError
from featcache.store import format_1

if TYPE_CHECKING:
    import sqlite3

STORE_FORMAT = 2
APPLICATION_ID = 0x46434348  # "FCCH"

TABLES = {
    "sources": """CREATE TABLE sources (
        id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, root TEXT NOT NULL,
        settings TEXT NOT NULL DEFAULT '{}')""",
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
        sha256 BLOB NOT NULL, bytes INTEGER NOT NULL, rows INTEGER NOT NULL, created TEXT NOT NULL,
        keys_offset INTEGER, keys_sha256 BLOB, layout BLOB)""",
    "shard_columns": """CREATE TABLE shard_columns (
        shard_id INTEGER NOT NULL REFERENCES shards(id), column_id INTEGER NOT NULL REFERENCES columns(id),
        dtype TEXT NOT NULL, shape TEXT NOT NULL, live INTEGER NOT NULL,
        offset INTEGER, sha256 BLOB,
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
    "pending": """CREATE TABLE pending (
        source_id INTEGER NOT NULL REFERENCES sources(id), uri TEXT NOT NULL, label TEXT, split TEXT, grp TEXT,
        PRIMARY KEY (source_id, uri)) WITHOUT ROWID""",
    "requests": """CREATE TABLE requests (
        source_id INTEGER NOT NULL REFERENCES sources(id), space_id INTEGER NOT NULL REFERENCES spaces(id),
        request TEXT NOT NULL, PRIMARY KEY (source_id, space_id)) WITHOUT ROWID""",
    "holdout": """CREATE TABLE holdout (
        sha256 BLOB PRIMARY KEY, part TEXT NOT NULL, reason TEXT NOT NULL) WITHOUT ROWID""",
    "settings": """CREATE TABLE settings (
        key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID""",
    "excluded": """CREATE TABLE excluded (
        hash BLOB PRIMARY KEY) WITHOUT ROWID""",
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
    "sources": ("id", "name", "root", "settings"),
    "items": (
        "id", "source_id", "uri", "sha256", "label", "split", "grp",
        "size", "mtime_ns", "ctime_ns", "inode", "indexed_ns",
    ),
    "spaces": ("id", "fingerprint", "recipe"),
    "columns": ("id", "space_id", "layer", "view", "position"),
    "shards": (
        "id", "name", "space_id", "sha256", "bytes", "rows", "created", "keys_offset", "keys_sha256", "layout",
    ),
    "shard_columns": ("shard_id", "column_id", "dtype", "shape", "live", "offset", "sha256"),
    "rows": ("column_id", "sha256", "shard_id", "row"),
    "quarantine": ("source_id", "uri", "space_id", "sha256", "reason", "versions", "created"),
    "pending": ("source_id", "uri", "label", "split", "grp"),
    "requests": ("source_id", "space_id", "request"),
    "holdout": ("sha256", "part", "reason"),
    "settings": ("key", "value"),
    "excluded": ("hash",),
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


def digested(version: int) -> dict[str, tuple[str, ...]]:
    """Per table of a format the values that its digest covers."""
    return DIGESTED if version == STORE_FORMAT else format_1.digested(DIGESTED)


def check(connection: sqlite3.Connection, where: str) -> int:
    """Refuse a database that is not exactly a catalogue of format 1 or 2.

    The caller's transaction keeps a migration from coming between the format and the tables.

    Returns:
        Its format.

    Raises:
        NotAStoreError: the file is some other SQLite database.
        StoreFormatError: the store is of a newer format.
        DamagedStoreError: the tables are not the expected ones (a view or trigger could run code of
            its own on every query).
    """
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    version = version_of(connection)
    if application != APPLICATION_ID:
        raise NotAStoreError(f"{where} is a database, but not the catalogue of a featcache store.")
    if version > STORE_FORMAT:
        raise StoreFormatError(
            f"{where} has store format {version}; this featcache reads formats 1 to {STORE_FORMAT}. "
            "Upgrade featcache to open it."
        )
    tables = TABLES if version == STORE_FORMAT else format_1.tables(TABLES)
    found = {
        name: " ".join(str(sql).split())
        for name, sql in connection.execute("SELECT name, sql FROM main.sqlite_schema WHERE sql IS NOT NULL")
    }
    expected = {name: " ".join(sql.split()) for name, sql in (tables | INDEXES).items()}
    if version < 1 or found != expected:
        odd = sorted(n for n in found.keys() | expected.keys() if found.get(n) != expected.get(n))
        raise DamagedStoreError(
            f"{where} does not have the tables of a featcache catalogue (differing: {', '.join(odd) or 'its format'}). "
            "Run `featcache repair` on the store."
        )
    return version


def version_of(connection: sqlite3.Connection) -> int:
    """The format that a catalogue says it has."""
    return int(connection.execute("PRAGMA user_version").fetchone()[0])
