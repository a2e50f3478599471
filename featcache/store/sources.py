"""What the catalogue knows of one source: its images, those that could not be used, and its hold-out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from featcache.core.errors import DamagedStoreError, UsageError
from featcache.store.spaces import Pending
from featcache.store.writer import StoreWriter

if TYPE_CHECKING:
    import sqlite3

    from featcache.store.catalogue import Catalogue


def save_holdout(path: Path, seed: int, records: Mapping[bytes, tuple[str, str]]) -> list[str]:
    """Record the side, ``train``, ``test`` or ``neither``, and the reason by SHA-256, and the seed of the hold-out.

    What is recorded already stays, but ``train`` may become ``neither``.

    Returns:
        What the writer has to tell.

    Raises:
        NotAStoreError: the store is gone.
        StoreError: the store cannot be written.
    """
    with StoreWriter(path, create=False) as writer, writer.catalogue.transaction() as connection:
        connection.execute(
            "INSERT INTO settings (key, value) VALUES ('holdout_seed', ?) ON CONFLICT DO NOTHING", (str(seed),)
        )
        connection.executemany(
            "INSERT INTO holdout (sha256, part, reason) VALUES (?, ?, ?) ON CONFLICT (sha256) DO UPDATE SET "
            "part = excluded.part, reason = excluded.reason WHERE part = 'train' AND excluded.part = 'neither'",
            ((sha256, part, reason) for sha256, (part, reason) in records.items()),
        )
    return writer.notes


class Listed(Protocol):
    """An image as a source lists it."""

    @property
    def uri(self) -> str: ...
    @property
    def label(self) -> str | None: ...
    @property
    def split(self) -> str | None: ...
    @property
    def group(self) -> str | None: ...


UNUSABLE = (
    "SELECT DISTINCT q.source_id, q.uri FROM quarantine q LEFT JOIN items u "
    "ON u.source_id = q.source_id AND u.uri = q.uri WHERE NOT EXISTS "
    "(SELECT 1 FROM columns k JOIN rows r ON r.column_id = k.id JOIN spaces p ON p.id = k.space_id "
    "WHERE r.sha256 = u.sha256 AND NOT EXISTS "
    "(SELECT 1 FROM spaces a WHERE json_extract(a.recipe, '$.detection') = p.fingerprint))"
)
"""Asks for source and URI of the images in quarantine of which no vector is stored, whether or not their bytes could be
read: they are no items. Where no face was found, that was stored, but it is no vector."""

_NOT_FINITE = "; not finite: "
"""In the catalogue it stands behind the versions, before the columns that are not finite."""


@dataclass(frozen=True, slots=True)
class Record:
    """One image of a source with the state of its file when it was read.

    ``size``, ``mtime_ns``, ``ctime_ns`` and ``inode`` are the file's; ``indexed_ns`` is when it was read.
    """

    uri: str
    sha256: bytes
    label: str | None
    split: str | None
    group: str | None
    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    indexed_ns: int


@dataclass(frozen=True, slots=True)
class Rejected:
    """One image that could not be used. ``sha256`` is None where its bytes could not even be read."""

    uri: str
    sha256: bytes | None
    reason: str
    columns: frozenset[tuple[str, str]] = frozenset()
    """The (layer, view) whose values are not finite, if that is all; the image's others can be used."""


def judged(versions: str) -> tuple[str, frozenset[tuple[str, str]]]:
    """What the catalogue keeps beside a reason: the versions that judged, and the columns that are not finite.

    Raises:
        DamagedStoreError: the columns cannot be read.
    """
    by, mark, listed = versions.rpartition(_NOT_FINITE)
    if not mark:
        return versions, frozenset()
    try:
        return by, frozenset((str(layer), str(view)) for layer, view in json.loads(listed))
    except (ValueError, TypeError, RecursionError) as error:
        raise DamagedStoreError(
            f"The quarantine names no layers and views: {listed[:80]!r}. Run `featcache verify`, then `repair`."
        ) from error


def _kept(versions: str, rejected: Rejected) -> str:
    """The text of which `judged` makes *versions* and the columns again."""
    return versions + (_NOT_FINITE + json.dumps(sorted(rejected.columns)) if rejected.columns else "")


def departed(catalogue: Catalogue, name: str) -> dict[str, bytes]:
    """SHA-256 of the images that a source lists no more, by URI, as far as `gc` has not forgotten them."""
    rows = catalogue.query(
        "th",
        "SELECT d.uri, d.sha256 FROM departed d JOIN sources s ON s.id = d.source_id WHERE s.name = ? ORDER BY d.uri",
        (name,),
    )
    return dict(rows)


class SourceRecords:
    """The records of one source, for a writer.

    Args:
        catalogue: opened for writing.
        name: the source's name.
        root: where its images lie, as an absolute path.
        moved: take *root* as the new place of a source that is known at another one.

    Attributes:
        is_new: the store did not know the source before.
        settled: makes a record what is saved; it may decide by the image's content.

    Raises:
        UsageError: a source of that name is known at another root.
    """

    def __init__(self, catalogue: Catalogue, name: str, root: str, *, moved: bool = False) -> None:
        self._catalogue = catalogue
        self._known: dict[str, Record] | None = None
        self.name = name
        self.settled: Callable[[Record], Record] = lambda record: record
        with catalogue.transaction() as connection:
            known = connection.execute("SELECT id, root FROM sources WHERE name = ?", (name,)).fetchone()
            self.is_new = known is None
            if known is None:
                self.id = int(
                    connection.execute(
                        "INSERT INTO sources (name, root) VALUES (?, ?) RETURNING id", (name, root)
                    ).fetchone()[0]
                )
            else:
                self.id = int(known[0])
                if known[1] != root and not moved:
                    raise UsageError(
                        f"This store knows a source called {name!r} at {known[1]}, not at {root}. "
                        "Another collection needs another name (--name NAME); "
                        "if the same collection was moved, say --moved."
                    )
                if known[1] != root:
                    connection.execute("UPDATE sources SET root = ? WHERE id = ?", (root, self.id))

    def remember(self, settings: Mapping[str, object]) -> None:
        """Keep what `extract` was told of the source."""
        text = json.dumps(settings, sort_keys=True)
        if self._catalogue.query("t", "SELECT settings FROM sources WHERE id = ?", (self.id,)) != [(text,)]:
            with self._catalogue.transaction() as connection:
                connection.execute("UPDATE sources SET settings = ? WHERE id = ?", (text, self.id))

    def request(self, space: int, wanted: Mapping[str, object]) -> None:
        """Keep what `extract` was asked for of the source and a space."""
        text, key = json.dumps(wanted, sort_keys=True), (self.id, space)
        found = self._catalogue.query("t", "SELECT request FROM requests WHERE source_id = ? AND space_id = ?", key)
        if found != [(text,)]:
            with self._catalogue.transaction() as connection:
                connection.execute("DELETE FROM requests WHERE source_id = ? AND space_id = ?", key)
                connection.execute("INSERT INTO requests (source_id, space_id, request) VALUES (?, ?, ?)", (*key, text))

    def expect(self, listed: Iterable[Listed], kept: Callable[[str], bool]) -> None:
        """Note which of the listed images are not done yet.

        Args:
            listed: all images that the source lists now.
            kept: which URIs that it does not list are not taken to be removed.
        """
        rejected = self._catalogue.query("t", "SELECT uri FROM quarantine WHERE source_id = ?", (self.id,))
        done = {*self.known(), *(uri for (uri,) in rejected)}
        before = {
            row[0]: Pending(*row)
            for row in self._catalogue.query(
                "tTTT", "SELECT uri, label, split, grp FROM pending WHERE source_id = ?", (self.id,)
            )
        }
        wanted = {one.uri: Pending(one.uri, one.label, one.split, one.group) for one in listed if one.uri not in done}
        gone = [uri for uri in before if uri in done or (wanted.get(uri) != before[uri] and not kept(uri))]
        new = [one for uri, one in wanted.items() if before.get(uri) != one]
        gone += [one.uri for one in new if one.uri in before]
        if not gone and not new:
            return
        with self._catalogue.transaction() as connection:
            _no_longer_pending(connection, self.id, gone)
            connection.executemany(
                "INSERT INTO pending (source_id, uri, label, split, grp) VALUES (?, ?, ?, ?, ?)",
                [(self.id, one.uri, one.label, one.split, one.group) for one in new],
            )

    def known(self) -> dict[str, Record]:
        """All records by URI, read once until some are written here."""
        if self._known is None:
            rows = self._catalogue.query(
                "thTTTiiiii",
                "SELECT uri, sha256, label, split, grp, size, mtime_ns, ctime_ns, inode, indexed_ns "
                "FROM items WHERE source_id = ?",
                (self.id,),
            )
            self._known = {row[0]: Record(*row) for row in rows}
        return self._known

    def contradicting(self) -> list[tuple[bytes, str, str]]:
        """SHA-256, label and URI of the images that are equal byte for byte and have different labels, by URI."""
        labeled = [(r.sha256, r.label, r.uri) for r in self.known().values() if r.label is not None]
        first: dict[bytes, str] = {}
        twice = {sha256 for sha256, label, _ in labeled if first.setdefault(sha256, label) != label}
        return sorted((one for one in labeled if one[0] in twice), key=lambda one: one[2])

    def doubled(self, uris: Collection[str]) -> dict[str, int]:
        """How many of these images other sources with the same root list too, by the sources' names."""
        rows = self._catalogue.query(
            "tt",
            "SELECT o.name, i.uri FROM sources s JOIN sources o ON o.root = s.root AND o.id != s.id "
            "JOIN items i ON i.source_id = o.id WHERE s.id = ?",
            (self.id,),
        )
        return dict(Counter(name for name, uri in rows if uri in uris))

    def save(self, records: Sequence[Record]) -> None:
        """Add these records, or bring them up to date."""
        if not records:
            return
        self._known = None
        records = [self.settled(record) for record in records]
        with self._catalogue.transaction() as connection:
            connection.executemany(
                "INSERT INTO items (source_id, uri, sha256, label, split, grp, "
                "size, mtime_ns, ctime_ns, inode, indexed_ns) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) "
                "ON CONFLICT (source_id, uri) DO UPDATE SET sha256 = excluded.sha256, "
                "label = excluded.label, split = excluded.split, grp = excluded.grp, "
                "size = excluded.size, mtime_ns = excluded.mtime_ns, ctime_ns = excluded.ctime_ns, "
                "inode = excluded.inode, indexed_ns = excluded.indexed_ns",
                ((self.id, *(getattr(r, name) for name in Record.__slots__)) for r in records),
            )
            connection.executemany(
                "DELETE FROM departed WHERE source_id = ? AND uri = ?", ((self.id, r.uri) for r in records)
            )
            _no_longer_pending(connection, self.id, [r.uri for r in records])

    def keep_groups(self, splits: Mapping[str, str]) -> None:
        """Put all images of each of these groups into its split."""
        if not splits:
            return
        self._known = None
        with self._catalogue.transaction() as connection:
            for table in ("items", "pending"):
                connection.executemany(
                    f"UPDATE {table} SET split = ? WHERE source_id = ? AND grp = ? AND split IS NOT ?",
                    [(split, self.id, group, split) for group, split in splits.items()],
                )

    def remove(self, uris: Iterable[str]) -> None:
        """Forget these images; their vectors stay until ``gc`` takes them away."""
        gone = [(self.id, uri) for uri in uris]
        if not gone:
            return
        self._known = None
        with self._catalogue.transaction() as connection:
            connection.executemany(
                # OR REPLACE would take the old row away without the trigger that keeps the digest.
                "INSERT INTO departed (source_id, uri, sha256) "
                "SELECT source_id, uri, sha256 FROM items WHERE source_id = ? AND uri = ? "
                "ON CONFLICT DO UPDATE SET sha256 = excluded.sha256",
                gone,
            )
            connection.executemany("DELETE FROM items WHERE source_id = ? AND uri = ?", gone)

    def rejected(self, space: int, versions: str) -> dict[str, Rejected]:
        """The images in quarantine for this space that were judged by the same versions of the decoders."""
        rows = self._catalogue.query(
            "tBtt",
            "SELECT uri, sha256, reason, versions FROM quarantine WHERE source_id = ? AND space_id = ?",
            (self.id, space),
        )
        found = ((uri, sha256, reason, judged(kept)) for uri, sha256, reason, kept in rows)
        return {uri: Rejected(uri, sha256, reason, cols) for uri, sha256, reason, (by, cols) in found if by == versions}

    def unusable(self) -> set[str]:
        """URIs of the images in quarantine of which no vector is stored, which are no items."""
        rows = self._catalogue.query("it", UNUSABLE)
        return {uri for source, uri in rows if source == self.id}

    def in_quarantine(self, space: int) -> set[str]:
        """URIs of all images in quarantine for this space."""
        rows = self._catalogue.query(
            "t", "SELECT uri FROM quarantine WHERE source_id = ? AND space_id = ?", (self.id, space)
        )
        return {uri for (uri,) in rows}

    def quarantine(self, space: int, versions: str, rejected: Sequence[Rejected], *, among: Collection[str]) -> None:
        """Put these images into quarantine for *space*, and let go those of *among* that are not rejected."""
        wanted = {r.uri: r for r in rejected}
        current = {
            row[0]: row[1:]
            for row in self._catalogue.query(
                "tBtt",
                "SELECT uri, sha256, reason, versions FROM quarantine WHERE source_id = ? AND space_id = ?",
                (self.id, space),
            )
        }
        gone = [uri for uri in current if uri not in wanted and uri in among]
        new = [r for r in wanted.values() if current.get(r.uri) != (r.sha256, r.reason, _kept(versions, r))]
        if not gone and not new:
            return
        now = datetime.now(UTC).isoformat(timespec="seconds")
        with self._catalogue.transaction() as connection:
            connection.executemany(
                "DELETE FROM quarantine WHERE source_id = ? AND space_id = ? AND uri = ?",
                [(self.id, space, uri) for uri in [*gone, *(r.uri for r in new)]],
            )
            connection.executemany(
                "INSERT INTO quarantine (source_id, uri, space_id, sha256, reason, versions, created) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                [(self.id, r.uri, space, r.sha256, r.reason, _kept(versions, r), now) for r in new],
            )
            _no_longer_pending(connection, self.id, [r.uri for r in new])


def _no_longer_pending(connection: sqlite3.Connection, source: int, uris: Sequence[str]) -> None:
    connection.executemany("DELETE FROM pending WHERE source_id = ? AND uri = ?", [(source, uri) for uri in uris])
