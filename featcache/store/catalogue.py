"""The only access to the catalogue: connections, transactions, and the digest that watches over them.

- This is the only module that begins or ends a transaction.
- A connection belongs to one thread of one process; after a fork a new one is opened.
- Reading opens the file read-only. The one exception is SQLite's own recovery: a transaction that a
  kill cut off has to be rolled back before anybody can read.
- SQLite has no page checksums. Every writing connection therefore carries temporary triggers that
  keep, for each table, the sum modulo 2^256 of the SHA-256 of its rows: a multiset digest, the same
  in whatever order rows came, stored in the same transaction and recomputed by ``verify``. The
  triggers are the connection's own and never stand in the file.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import itertools
import os
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from featcache.core.errors import (
    DamagedStoreError,
    DiskFullError,
    FeatcacheError,
    NotAStoreError,
    StoreBusyError,
    StoreError,
)
from featcache.core.failpoints import reach
from featcache.core.files import sync
from featcache.store import format_1, schema

BUSY_SECONDS = 60.0
_MODULUS = 1 << 256
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_KINDS: dict[str, tuple[type, ...]] = {
    "i": (int,),
    "t": (str,),
    "T": (str, type(None)),
    "b": (bytes,),
    "B": (bytes, type(None)),
    "h": (bytes,),
}


class Catalogue:
    """A connection for each thread to one catalogue file.

    Args:
        path: the file ``catalog.sqlite``.
        writable: whether transactions are allowed. Reading alone never changes a file.
    """

    def __init__(self, path: Path, *, writable: bool = False) -> None:
        self.path = path
        self.writable = writable
        self._local = threading.local()
        with foreign_errors(str(path)):
            self.connection  # noqa: B018  # opening it checks the file

    @classmethod
    def create(cls, path: Path) -> Catalogue:
        """Make the file with empty tables; a file that another process makes meanwhile is taken as it is."""
        with foreign_errors(str(path)):
            connection = sqlite3.connect(path, isolation_level=None, timeout=BUSY_SECONDS)
            try:
                connection.execute("BEGIN IMMEDIATE")
                if not connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
                    schema.create(connection)
                connection.execute("COMMIT")
            finally:
                connection.close()
        return cls(path, writable=True)

    @property
    def format(self) -> int:
        """The store format of the file; one of format 1 is shown as format 2."""
        self.connection  # noqa: B018  # opens it if need be, and sees what others made of it
        held: _Held = self._local.held
        return held.format

    @property
    def connection(self) -> sqlite3.Connection:
        """This thread's connection, opened at first use and anew after a fork."""
        held: _Held | None = getattr(self._local, "held", None)
        if held is None or held.pid != os.getpid():
            # SQLite forbids using, or even closing, a connection that came through a fork: it is only put aside.
            self._inherited = held
            held = _Held(self.path, self.writable)
            self._local.held = held
        held.see_migration()
        return held.connection

    def query(self, kinds: str, sql: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """All rows of one SELECT, read at once so that no lock is held meanwhile.

        Args:
            kinds: what each column of the answer has to be, since SQLite itself keeps any type in any
                column: ``i`` integer, ``t`` text, ``T`` text or null, ``b`` bytes, ``B`` bytes or null,
                ``h`` a hash of 32 bytes.
            sql: the SELECT.
            values: for its question marks.

        Raises:
            DamagedStoreError: a value is of another kind.
        """
        with foreign_errors(str(self.path)):
            rows = self.connection.execute(sql, values).fetchall()
        allowed, hashes = _allowed(kinds)
        if not {tuple(map(type, row)) for row in rows} <= allowed or any(
            {len(row[place]) for row in rows} - {32} for place in hashes
        ):
            raise DamagedStoreError(
                f"{self.path} holds a value of the wrong type, so it was not written by featcache, or is damaged. "
                "Run `featcache verify`, then `featcache repair`."
            )
        return rows

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """One write transaction with the digests brought up to date; rolled back on any exception."""
        if not self.writable:
            raise StoreError(f"{self.path} was opened for reading only.")
        with foreign_errors(str(self.path)):
            connection = self.connection
            held: _Held = self._local.held
            connection.execute("BEGIN IMMEDIATE")
            held.sums.clear()
            try:
                yield connection
                for name, change in held.sums.items():
                    (old,) = connection.execute("SELECT value FROM digests WHERE name = ?", (name,)).fetchone()
                    new = (int.from_bytes(old, "big") + change) % _MODULUS
                    connection.execute("UPDATE digests SET value = ? WHERE name = ?", (new.to_bytes(32, "big"), name))
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    # On a disk that fails the rollback may fail as well; the next opening does it then.
                    with suppress(sqlite3.Error):
                        connection.execute("ROLLBACK")
                raise

    def problems(self) -> list[str]:
        """What is wrong with the file itself: SQLite's own checks, and the digests recomputed."""
        found = []
        with foreign_errors(str(self.path)):
            connection = self.connection
            with _of_one_moment(connection):
                covered = schema.digested(schema.version_of(connection))
                for (line,) in connection.execute("PRAGMA integrity_check(20)"):
                    if line != "ok":
                        found.append(f"SQLite finds: {line}")
                if connection.execute("PRAGMA main.foreign_key_check").fetchone():
                    found.append("SQLite finds rows that refer to others which are not there")
                stored = dict(connection.execute("SELECT name, value FROM digests"))
                for name, columns in covered.items():
                    if stored.get(name) != _digest(connection, name, columns):
                        found.append(f"the rows of table {name!r} are not those that were written")
        return found

    def copy_to(self, path: Path) -> None:
        """Write a consistent copy of the catalogue to *path* and flush it to the disk."""
        with foreign_errors(str(path)):
            target = sqlite3.connect(path)
            try:
                self.connection.backup(target)
            finally:
                target.close()
            sync(path)

    def close(self) -> None:
        """Close this thread's connection."""
        held: _Held | None = getattr(self._local, "held", None)
        if held is not None and held.pid == os.getpid():
            held.connection.close()
        self._local = threading.local()


@functools.cache
def _allowed(kinds: str) -> tuple[frozenset[tuple[type, ...]], tuple[int, ...]]:
    """The types that a row may have, and where its hashes are."""
    return (
        frozenset(itertools.product(*(_KINDS[kind] for kind in kinds))),
        tuple(place for place, kind in enumerate(kinds) if kind == "h"),
    )


def migrate(path: Path) -> None:
    """Make a catalogue of format 1 one of format 2, in one transaction; one of format 2 stays as it is.

    Raises:
        DamagedStoreError: its tables are not those of a catalogue.
    """
    with foreign_errors(str(path)):
        connection = _connect(path, True)
        try:
            connection.execute("BEGIN IMMEDIATE")
            if schema.check(connection, str(path)) == schema.STORE_FORMAT:
                return
            format_1.make_format_2(connection, schema.TABLES)
            connection.executemany(
                "INSERT INTO digests (name, value) VALUES (?, ?) ON CONFLICT DO UPDATE SET value = excluded.value",
                [
                    (name, _digest(connection, name, schema.DIGESTED[name]))
                    for name in (*format_1.REWRITTEN, *format_1.NEW)
                ],
            )
            connection.execute(f"PRAGMA user_version = {schema.STORE_FORMAT}")
            reach("migrate: tables changed")
            connection.execute("COMMIT")
        finally:
            if connection.in_transaction:
                with suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
            connection.close()


def _digest(connection: sqlite3.Connection, name: str, columns: tuple[str, ...]) -> bytes:
    """The digest of a table's rows, recomputed."""
    total = 0
    for row in connection.execute(f"SELECT {', '.join(columns)} FROM main.{name}"):
        total += row_digest(*row)
    return (total % _MODULUS).to_bytes(32, "big")


class _Held:
    """One connection, the process it belongs to, and the digest changes of its open transaction.

    Attributes:
        format: of the file when it was opened; one of format 1 is shown as format 2.
    """

    def __init__(self, path: Path, writable: bool) -> None:
        self.connection = connection = _connect(path, writable)
        self.pid = os.getpid()
        self.sums: dict[str, int] = {}
        try:
            with _of_one_moment(connection):  # another process may change the format meanwhile
                self.format = schema.check(connection, str(path))
            if self.format != schema.STORE_FORMAT:
                if writable:
                    raise StoreError(f"{path} has store format {self.format}, which is read and not written.")
                format_1.show_as_format_2(connection, schema.DIGESTED)
        except BaseException:
            connection.close()
            raise
        if writable:
            connection.create_function("digest_change", -1, self._change)
            for name, columns in schema.DIGESTED.items():
                new = ", ".join(f"NEW.{c}" for c in columns)
                old = ", ".join(f"OLD.{c}" for c in columns)
                add, take = (
                    f"SELECT digest_change('{name}', 1, {new});",
                    f"SELECT digest_change('{name}', -1, {old});",
                )
                for event, body in (("INSERT", add), ("DELETE", take), ("UPDATE", take + add)):
                    when = f"digest_{name}_{event} AFTER {event} ON main.{name}"
                    connection.execute(f"CREATE TEMP TRIGGER {when} BEGIN {body} END")

    def see_migration(self) -> None:
        """Look at the tables themselves once another process has made them those of format 2."""
        if self.format != schema.STORE_FORMAT and schema.version_of(self.connection) == schema.STORE_FORMAT:
            format_1.show_tables(self.connection)
            self.format = schema.STORE_FORMAT

    def _change(self, name: str, sign: int, *values: Any) -> None:
        self.sums[name] = self.sums.get(name, 0) + sign * row_digest(*values)


@contextmanager
def _of_one_moment(connection: sqlite3.Connection) -> Iterator[None]:
    """What is read meanwhile belongs together: no other process commits."""
    connection.execute("BEGIN")
    try:
        yield
    finally:
        with suppress(sqlite3.Error):
            connection.execute("COMMIT")


def row_digest(*values: Any) -> int:
    """SHA-256 of a row's values as a number; each value is written with its type and length."""
    parts = []
    for value in values:
        if isinstance(value, bytes):
            parts.append(b"b%d:" % len(value) + value)
        elif isinstance(value, int):
            parts.append(b"i%d;" % value)
        elif value is None:
            parts.append(b"n")
        else:
            text = str(value).encode("utf-8", "surrogatepass")
            parts.append(b"t%d:" % len(text) + text)
    return int.from_bytes(hashlib.sha256(b"".join(parts)).digest(), "big")


def _connect(path: Path, writable: bool) -> sqlite3.Connection:
    if not path.is_file():
        raise NotAStoreError(f"There is no catalogue at {path}, so this is not a featcache store.")
    with path.open("rb") as file:
        says_so = file.read(20)[18:] == b"\x02\x02"
    if says_so or os.path.lexists(f"{path}-wal"):
        # Even reading would write beside the catalogue, and what stands there would be read in its place.
        raise DamagedStoreError(
            f"{path} was switched to SQLite's write-ahead log, which a store does not use. "
            "Run `PRAGMA journal_mode = DELETE` on it, or `featcache repair` on the store."
        )
    connection = _open(path, "rw" if writable else "ro")
    try:
        connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    except sqlite3.OperationalError:
        connection.close()
        # A transaction cut off by a kill: opening for writing once lets SQLite roll it back.
        recovering = _open(path, "rw")
        try:
            recovering.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        finally:
            recovering.close()
        connection = _open(path, "rw" if writable else "ro")
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA cache_size = -65536")
    if writable:
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA temp_store = MEMORY")
    return connection


def _open(path: Path, mode: str) -> sqlite3.Connection:
    uri = f"file:{quote(str(path.absolute()))}?mode={mode}"
    return sqlite3.connect(uri, uri=True, isolation_level=None, timeout=BUSY_SECONDS)


@contextmanager
def foreign_errors(where: str) -> Iterator[None]:
    """Turn errors of SQLite, HDF5 and the system into featcache's own, with the cause chained."""
    try:
        yield
    except FeatcacheError:
        raise
    except sqlite3.OperationalError as error:
        text = str(error)
        if "locked" in text or "busy" in text:
            raise StoreBusyError(
                f"{where} is held by another process for more than {BUSY_SECONDS:.0f} s. "
                "Wait for it to finish, or end it, and run the command again."
            ) from error
        if "full" in text:
            raise _disk_full(where) from error
        if "UTF-8" in text:
            raise _damaged(where, text) from error
        raise StoreError(f"{where}: SQLite says {text!r}. Check the disk's free space and permissions.") from error
    except sqlite3.DatabaseError as error:
        raise _damaged(where, str(error)) from error
    except OSError as error:
        if error.errno in _FULL:
            raise _disk_full(where) from error
        reason = error.strerror or str(error)
        raise StoreError(f"{where}: {reason}. Check the disk's free space and permissions.") from error


def _damaged(where: str, said: str) -> DamagedStoreError:
    return DamagedStoreError(f"{where} is damaged (SQLite says {said!r}). Run `featcache repair` on the store.")


def _disk_full(where: str) -> DiskFullError:
    folder = Path(where)
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    return DiskFullError(f"{where} could not be written: no room is left on its disk ({free:,} bytes are free).")
