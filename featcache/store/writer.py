"""Writing into a store: `StoreWriter`, and the rows of one space, which are sealed when they are many or old.

How a shard is committed is in `featcache.store.commit`.
"""

from __future__ import annotations

import json
import shutil
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from featcache.core.errors import StoreError, UsageError
from featcache.core.failpoints import reach
from featcache.store.catalogue import Catalogue, foreign_errors
from featcache.store.commit import column_id, commit_shard, is_committed, places, put_in_place, shard_path, space_id
from featcache.store.folder import (
    CATALOGUE,
    another_writer,
    has_catalogue,
    lock_out_writers,
    make_folders,
    renew_backup,
)
from featcache.store.journal import writer_lock
from featcache.store.migration import bring_up_to_date
from featcache.store.recovery import recover_crashed_writers
from featcache.store.shard_file import Column, write_shard

if TYPE_CHECKING:
    from datetime import datetime
    from types import TracebackType

    import numpy as np

    from featcache.core.recipe import Recipe

SEAL_BYTES = 128 << 20
SEAL_SECONDS = 30.0


class StoreWriter:
    """One process's right to add to a store; makes the store where there is none.

    Use as a context manager: leaving it normally or with an exception seals what is complete. Several
    writers may work on one store at once.

    Args:
        path: the store's folder.
        seal_bytes: unsealed vectors beyond which a shard is sealed; `SEAL_BYTES` by default.
        seal_seconds: age of unsealed vectors beyond which a shard is sealed at the next `append`;
            `SEAL_SECONDS` by default.
        create: make the store where there is none.
        alone: allow no other writer, now or until this one is closed.

    Attributes:
        notes: what the caller has to tell: that the store became one of the present format.
        has_company: whether another writer was at work when this one began.

    Raises:
        NotAStoreError: the path holds something else, or nothing and *create* is off.
        DamagedStoreError: the catalogue is lost or damaged.
        StoreBusyError: with *alone*, another writer is at work; else, somebody works alone.
    """

    def __init__(
        self,
        path: Path,
        *,
        seal_bytes: int | None = None,
        seal_seconds: float | None = None,
        create: bool = True,
        alone: bool = False,
    ) -> None:
        self.path = path = path.absolute()
        self.seal_bytes = SEAL_BYTES if seal_bytes is None else seal_bytes
        self.seal_seconds = SEAL_SECONDS if seal_seconds is None else seal_seconds
        self._spaces: dict[str, SpaceWriter] = {}
        self._left_to_the_next = False
        self.notes: list[str] = []
        with foreign_errors(str(path)):
            make_folders(path, create=create)
            self.folder = path / "tmp" / uuid.uuid4().hex
            self._lock = writer_lock(self.folder)
            # Whoever holds the common lock may judge folders dead, so a new one is locked under it.
            self._common = lock_out_writers(path)
            try:
                if has_catalogue(path):
                    self.notes += bring_up_to_date(path)
                self.catalogue = Catalogue.create(path / CATALOGUE)
                try:
                    self._changes = self.catalogue.connection.total_changes
                    living = recover_crashed_writers(path, self.catalogue)
                    self.has_company = bool(living)
                    if alone and living:
                        raise another_writer(path)
                    self.folder.mkdir()
                    self._lock.acquire(timeout=0)
                except BaseException:
                    self.catalogue.close()
                    raise
            except BaseException:
                self._common.release()
                raise
            if not alone:
                self._common.release()

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
                renew_backup(self.path, self.catalogue, self.folder)
        finally:
            self.catalogue.close()
            self._lock.release()
            self._common.release()
            if not self._left_to_the_next:
                shutil.rmtree(self.folder, ignore_errors=True)

    def leave_to_the_next(self) -> None:
        """Keep the journal when this writer closes: a shard in its place could not be committed."""
        self._left_to_the_next = True

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except StoreError:
            # What went wrong first says more; the next writer does what could not be done now.
            if error is None:
                raise


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
        self.sealed = 0
        """Images whose vectors were sealed by this writer."""
        self.row_bytes = 0
        """Bytes that one image's vectors take in a shard."""

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
        return set(places(self._writer.catalogue, self._columns[layer, view], sha256s, wide=at_least == "float32"))

    def append(self, sha256s: Sequence[bytes], vectors: Mapping[Column, np.ndarray]) -> None:
        """Add rows; they are safe on the disk once sealed, which size and time bring about.

        Args:
            sha256s: SHA-256 of each image's bytes.
            vectors: for each declared (layer, view) a finite float array (n, …) in the same order.
        """
        key = tuple(sorted(vectors))
        if len(sha256s):
            self.row_bytes = 32 + sum(part.nbytes for part in vectors.values()) // len(sha256s)
        buffer = self._buffers.setdefault(key, _Buffer(key))
        buffer.add(sha256s, vectors)
        if sum(other.bytes for other in self._buffers.values()) >= self._writer.seal_bytes:
            self.seal()  # each set of columns has a buffer, and all together must not outgrow the memory
        else:
            self.seal_aged()

    @property
    def is_sealed(self) -> bool:
        """Whether all that was appended is on the disk."""
        return not any(buffer.sha256s for buffer in self._buffers.values())

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
        writer, catalogue = self._writer, self._writer.catalogue
        name = uuid.uuid4().hex
        sha256s, vectors = buffer.sha256s, buffer.vectors
        # Whatever happens now, these rows are not tried again: they are in the store, left to the next
        # writer, or computed again by the next run.
        buffer.clear()
        unsealed = writer.folder / f"{name}.h5"
        target = shard_path(writer.path, self.recipe.fingerprint, name)
        with foreign_errors(str(unsealed)):
            shard = write_shard(unsealed, self.recipe, sha256s, vectors, self._dtypes, self._positions)
        columns = {column: self._columns[column] for column in buffer.columns}
        try:
            with foreign_errors(str(target)):
                put_in_place(writer.folder, unsealed, target, shard, "seal")
            reach("seal: folder flushed")
            new = commit_shard(catalogue, self.id, shard, columns, sha256s)
        except BaseException:
            writer.leave_to_the_next()
            raise
        self.sealed += len(sha256s)
        if not new and not is_committed(catalogue, name):
            # Others had stored all its rows meanwhile.
            target.unlink()


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
