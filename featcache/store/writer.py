"""Writing: the commit protocol, and what a later writer does for one that died.

A row exists if and only if the transaction that names it was committed. In this order:

1. write ``tmp/<writer>/<name>.h5``, close, hash, flush;
2. note name and hash in ``tmp/<writer>/journal``, flush;
3. rename into ``shards/<space>/<name>.h5``, flush the folder;
4. one transaction names the shard, its SHA-256 and its rows.

Every writer holds a lock on its own folder below ``tmp/``. A kill before 3 costs the unsealed work; a
kill between 3 and 4 leaves a shard in its place that the next writer finds in the journal, checks
against the hash noted there, and adopts. What belongs to a living writer is never touched.
"""

from __future__ import annotations

import json
import os
import shutil
import time
import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType

import numpy as np
from filelock import FileLock

from featcache.errors import DamagedStoreError, NotAStoreError, UsageError
from featcache.recipe import Recipe
from featcache.store.adoption import adopt_orphans, writer_lock
from featcache.store.catalogue import Catalogue, foreign_errors, sync_file
from featcache.store.commit import Column, column_id, commit_shard, is_committed, shard_folder, space_id
from featcache.store.shard import SealedShard, write_shard

SEAL_BYTES = 128 << 20
SEAL_SECONDS = 30.0
CATALOGUE = "catalog.sqlite"
BACKUP = "catalog.backup.sqlite"


class StoreWriter:
    """One process's right to add to a store; makes the store where there is none.

    Use as a context manager: leaving it normally or with an exception seals what is complete. Several
    writers may work on one store at once.

    Args:
        path: the store's folder.
        seal_bytes: unsealed vectors beyond which a shard is sealed.
        seal_seconds: age of unsealed vectors beyond which a shard is sealed at the next `append`.
    """

    def __init__(self, path: Path, *, seal_bytes: int = SEAL_BYTES, seal_seconds: float = SEAL_SECONDS) -> None:
        self.path = path
        self.seal_bytes = seal_bytes
        self.seal_seconds = seal_seconds
        with foreign_errors(str(path)):
            _make_folders(path)
            self.catalogue = Catalogue.create(path / CATALOGUE)
            self._changes = self.catalogue.connection.total_changes
            self.folder = path / "tmp" / uuid.uuid4().hex
            self._lock = writer_lock(self.folder)
            # Whoever holds the common lock may judge folders dead, so a new one is locked under it.
            with FileLock(path / "tmp" / "lock"):
                adopt_orphans(path, self.catalogue)
                self.folder.mkdir()
                self._lock.acquire(timeout=0)
        self._spaces: dict[str, SpaceWriter] = {}

    def space(self, recipe: Recipe) -> SpaceWriter:
        """The part of the store that holds the vectors of *recipe*."""
        key = recipe.fingerprint
        if key not in self._spaces:
            self._spaces[key] = SpaceWriter(self, recipe)
        return self._spaces[key]

    def record_run(self, verb: str, started: datetime, record: Mapping[str, object]) -> None:
        """Keep what a run did, as JSON."""
        with self.catalogue.transaction() as connection:
            connection.execute(
                "INSERT INTO runs (verb, started, record) VALUES (?, ?, ?)",
                (verb, started.isoformat(timespec="seconds"), json.dumps(record, sort_keys=True)),
            )

    def close(self) -> None:
        """Seal what is complete, renew the backup of the catalogue, give the lock back."""
        try:
            for space in self._spaces.values():
                space.seal()
            if self.catalogue.connection.total_changes != self._changes:
                copy = self.folder / BACKUP
                self.catalogue.copy_to(copy)
                with foreign_errors(str(copy)):
                    os.replace(copy, self.path / BACKUP)
                    sync_file(self.path)
        finally:
            self.catalogue.close()
            self._lock.release()
            shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class SpaceWriter:
    """Appends vectors of one recipe. Get one from `StoreWriter.space`."""

    def __init__(self, writer: StoreWriter, recipe: Recipe) -> None:
        self.recipe = recipe
        self._writer = writer
        self._buffers: dict[tuple[Column, ...], _Buffer] = {}
        self.id = space_id(writer.catalogue, recipe)
        self._columns: dict[Column, int] = {}
        self._dtypes: dict[Column, str] = {}
        self._positions: dict[Column, int] = {}

    def declare(self, layer: str, view: str, position: int, dtype: str = "float32") -> None:
        """Announce a column before its first `append`: its place in the network and its storage dtype."""
        if dtype not in ("float16", "float32"):
            raise UsageError(f"Vectors are stored as float32 or float16, not as {dtype!r}.")
        self._columns[layer, view] = column_id(self._writer.catalogue, self.id, layer, view, position)
        self._dtypes[layer, view] = dtype
        self._positions[layer, view] = position

    def present(self, layer: str, view: str, sha256s: Sequence[bytes], *, at_least: str = "float16") -> set[bytes]:
        """Which of these images have a vector in this column already.

        Args:
            layer: the layer's name.
            view: the view's name.
            sha256s: the images asked for.
            at_least: ``float32`` counts vectors kept as float16 as absent.
        """
        column = self._columns[layer, view]
        narrow = "" if at_least == "float16" else " AND c.dtype = 'float32'"
        found: set[bytes] = set()
        for start in range(0, len(sha256s), 500):
            some = sha256s[start : start + 500]
            marks = ",".join("?" * len(some))
            found.update(
                sha256
                for (sha256,) in self._writer.catalogue.query(
                    "SELECT r.sha256 FROM rows r JOIN shard_columns c USING (shard_id, column_id) "
                    f"WHERE r.column_id = ? AND r.sha256 IN ({marks}){narrow}",
                    (column, *some),
                )
            )
        return found

    def append(self, sha256s: Sequence[bytes], vectors: Mapping[Column, np.ndarray]) -> None:
        """Add rows; they are safe on the disk once sealed, which size and time bring about.

        Args:
            sha256s: SHA-256 of each image's bytes.
            vectors: for each declared (layer, view) a finite float array (n, …) in the same order.
        """
        key = tuple(sorted(vectors))
        buffer = self._buffers.setdefault(key, _Buffer(key))
        buffer.add(sha256s, vectors)
        if buffer.bytes >= self._writer.seal_bytes:
            self._seal(buffer)
        else:
            self.seal_aged()

    def seal_aged(self) -> None:
        """Seal what has waited longer than the writer's ``seal_seconds``."""
        for buffer in self._buffers.values():
            if buffer.sha256s and time.monotonic() - buffer.since >= self._writer.seal_seconds:
                self._seal(buffer)

    def seal(self) -> None:
        """Seal everything appended so far."""
        for buffer in self._buffers.values():
            self._seal(buffer)

    def _seal(self, buffer: _Buffer) -> None:
        if not buffer.sha256s:
            return
        store = self._writer.path
        name = uuid.uuid4().hex
        unsealed = self._writer.folder / f"{name}.h5"
        with foreign_errors(str(unsealed)):
            shard = write_shard(unsealed, self.recipe, buffer.sha256s, buffer.vectors, self._dtypes, self._positions)
            target = store / "shards" / shard_folder(self.recipe.fingerprint) / f"{name}.h5"
            target.parent.mkdir(exist_ok=True)
            sync_file(target.parent.parent)
            _note(self._writer.folder / "journal", target, shard)
            os.rename(unsealed, target)
            sync_file(target.parent)
        columns = {column: self._columns[column] for column in buffer.columns}
        catalogue = self._writer.catalogue
        try:
            commit_shard(catalogue, self.id, name, shard, columns, buffer.sha256s)
        finally:
            # Not named by the catalogue: the transaction failed, or others had stored all its rows meanwhile.
            if not is_committed(catalogue, name):
                target.unlink()
        buffer.clear()


class _Buffer:
    """Rows that wait to be sealed, for one set of columns; a shard's datasets share all its rows."""

    def __init__(self, columns: tuple[Column, ...]) -> None:
        self.columns = columns
        self.clear()

    def clear(self) -> None:
        self.sha256s: list[bytes] = []
        self.vectors: dict[Column, list[np.ndarray]] = {column: [] for column in self.columns}
        self.bytes = 0
        self.since = 0.0

    def add(self, sha256s: Sequence[bytes], vectors: Mapping[Column, np.ndarray]) -> None:
        if not self.sha256s:
            self.since = time.monotonic()
        for column, part in vectors.items():
            if len(part) != len(sha256s):
                raise UsageError(f"{len(part)} vectors of {column[0]} came with {len(sha256s)} hashes.")
            self.vectors[column].append(part)
            self.bytes += part.nbytes
        self.sha256s.extend(sha256s)


def _note(journal: Path, target: Path, shard: SealedShard) -> None:
    with journal.open("a", encoding="utf-8") as file:
        file.write(f"{target.stem} {target.parent.name} {shard.sha256.hex()}\n")
        file.flush()
        os.fsync(file.fileno())


def _make_folders(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise NotAStoreError(f"{path} is a file, so it cannot be a store. Give a folder, for example {path}.fcache.")
    if path.is_dir() and not (path / CATALOGUE).exists():
        if (path / BACKUP).exists():
            raise DamagedStoreError(
                f"{path} has lost its {CATALOGUE}. Copy {path / BACKUP} to {path / CATALOGUE} and try again."
            )
        strangers = sorted(p.name for p in path.iterdir() if p.name not in ("shards", "tmp"))
        if strangers:
            raise NotAStoreError(
                f"{path} is a folder that holds other things ({strangers[0]} …) and no featcache store. "
                "Give the name of a new folder, for example photos.fcache."
            )
    for folder in (path, path / "shards", path / "tmp"):
        folder.mkdir(parents=folder == path, exist_ok=True)
