"""`repair`: what is damaged is set aside, what can be saved is saved, the rest becomes "missing".

Nothing is deleted: damaged files go to the folder ``damaged/`` of the store. In this order:

1. A catalogue that is lost or damaged gives way to its backup, or to an empty one if that is damaged too.
2. What crashed writers left is finished, as every writer does.
3. Shards that are gone, or whose bytes are not those that were sealed, lose their rows.
4. Shards that the catalogue does not name are adopted, each checked against the hashes it carries.

A kill at any moment leaves a store on which `repair` can be run again.
"""

from __future__ import annotations

import math
import os
import shutil
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from featcache.core.arguments import checked
from featcache.core.errors import DamagedStoreError, FeatcacheError, NotAStoreError, StoreFormatError
from featcache.core.failpoints import reach
from featcache.core.files import sync
from featcache.core.html import HtmlTable
from featcache.core.progress import Progress, choose
from featcache.core.recipe import Recipe
from featcache.store.catalogue import Catalogue, foreign_errors
from featcache.store.commit import forget_shard, places, shard_folder
from featcache.store.folder import (
    BACKUP,
    CATALOGUE,
    SET_ASIDE,
    another_writer,
    has_catalogue,
    lock_out_writers,
    lost_catalogue,
    no_store,
    refuse_links,
    renew_backup,
)
from featcache.store.journal import writer_lock
from featcache.store.migration import bring_up_to_date
from featcache.store.recovery import active_writers, adopt_shard, recover_crashed_writers
from featcache.store.shard import ShardLayout, hash_file, read_layout
from featcache.store.shard_file import hash_arrays
from featcache.store.shard_maps import row_shape
from featcache.store.verify import homeless_rows, named_shards, row_counts, shard_problems, unnamed_shards


@dataclass
class RepairReport(HtmlTable):
    """What `repair` did.

    Attributes:
        store: the store's path.
        catalogue: ``kept``, ``taken from the backup``, or ``made anew`` (labels, names and splits come
            back with the next `extract`).
        backup: of the catalogue: ``kept`` or ``renewed``.
        set_aside: ``{"file", "reason"}`` of what was moved to ``damaged/``.
        lost: ``{"shard", "reason"}`` of shards whose rows are missing now.
        rows_lost: vectors that are missing now and were there before.
        adopted: rows that came back from shards which the catalogue did not name.
        to_compute: ``{"source", "root", "backbone", "space", "layer", "images"}``: what the next `extract` of that
            source, backbone and layer computes.
        notes: what was told: that the store became one of a newer format.
    """

    store: str
    catalogue: str = "kept"
    backup: str = "kept"
    set_aside: list[dict[str, str]] = field(default_factory=list)
    lost: list[dict[str, str]] = field(default_factory=list)
    rows_lost: int = 0
    adopted: int = 0
    to_compute: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def changed(self) -> bool:
        """Whether anything had to be done."""
        mended = self.catalogue != "kept" or self.backup != "kept"
        return bool(mended or self.set_aside or self.lost or self.adopted)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values."""
        return asdict(self)


@checked
def repair(store: str | Path, *, progress: Progress | bool | None = None) -> RepairReport:
    """Bring a store back into a state in which everything that it names is there and right.

    Args:
        store: the store's folder.
        progress: True for a bar, False for none, None for a bar on a terminal, or an object that is told.

    Raises:
        NotAStoreError: there is no store.
        StoreFormatError: it was written by a newer featcache.
        StoreBusyError: another process is writing.
        DamagedStoreError: a part of the store is a link that leads elsewhere.

    Example:
        >>> fc.repair("pets.fcache").rows_lost
        0
    """
    path = Path(store)
    if not has_catalogue(path) and not lost_catalogue(path):
        raise no_store(path)
    refuse_links(path)
    _refuse_newer(path)
    report = RepairReport(str(store))
    with foreign_errors(str(path)):
        for folder in ("shards", "tmp"):
            (path / folder).mkdir(exist_ok=True)
        common = lock_out_writers(path)
        own = path / "tmp" / uuid.uuid4().hex
        lock = writer_lock(own)
        try:
            if active_writers(path):
                raise another_writer(path)
            own.mkdir()
            lock.acquire(timeout=0)
            for name in (f"{file}{end}" for file in (CATALOGUE, BACKUP) for end in ("-wal", "-shm")):
                if os.path.lexists(path / name):
                    _set_aside(path, path / name, "a store has no write-ahead log", report)
            catalogue = _sound_catalogue(path, own, report)
            try:
                recover_crashed_writers(path, catalogue)
                with choose(progress) as bar:
                    for note in report.notes:
                        bar.note(note)
                    lost = _check_named(path, catalogue, bar, report)
                    _adopt_unnamed(path, catalogue, bar, report)
                report.to_compute = _to_compute(catalogue, lost)
                if report.changed or _why_not(path / BACKUP) is not None:
                    renew_backup(path, catalogue, own)
                    report.backup = "renewed"
            finally:
                catalogue.close()
        finally:
            lock.release()
            shutil.rmtree(own, ignore_errors=True)
            common.release()
    return report


def _sound_catalogue(store: Path, own: Path, report: RepairReport) -> Catalogue:
    """The store's catalogue, open for writing; in place of a damaged one its backup or an empty one."""
    place, backup = store / CATALOGUE, store / BACKUP
    reason = _why_not(place)
    if reason is None:
        return _writable(store, own, report)
    why_no_backup = _why_not(backup)
    new = own / CATALOGUE
    if why_no_backup is None:
        shutil.copyfile(backup, new)
        report.catalogue = "taken from the backup"
    else:
        Catalogue.create(new).close()
        report.catalogue = "made anew"
        if backup.exists():
            _set_aside(store, backup, str(why_no_backup), report)
    sync(new)
    # A journal of the damaged file must not be applied to the new one.
    for path in (store / f"{CATALOGUE}-journal", place):
        if path.exists():
            _set_aside(store, path, str(reason), report)
    reach("repair: damaged catalogue set aside")
    os.replace(new, place)
    sync(store)
    reach("repair: catalogue in its place")
    return _writable(store, own, report)


def _writable(store: Path, own: Path, report: RepairReport) -> Catalogue:
    report.notes += bring_up_to_date(store, own)
    return Catalogue(store / CATALOGUE, writable=True)


def _refuse_newer(store: Path) -> None:
    """Change nothing where a newer featcache wrote the catalogue, or the backup of one that is lost.

    Raises:
        StoreFormatError: it did.
    """
    for path in (store / CATALOGUE, store / BACKUP):
        reason = _why_not(path, quick=True)
        if isinstance(reason, StoreFormatError):
            raise reason
        if reason is None:
            return


def _why_not(path: Path, *, quick: bool = False) -> FeatcacheError | None:
    """Why a catalogue cannot be used; None if it can, or with *quick* if its tables are those of one."""
    try:
        catalogue = Catalogue(path)
        problems = [] if quick else catalogue.problems()
    except (DamagedStoreError, NotAStoreError, StoreFormatError) as error:
        return error
    return DamagedStoreError("; ".join(problems)) if problems else None


def _set_aside(store: Path, path: Path, reason: str, report: RepairReport) -> None:
    folder = store / SET_ASIDE
    folder.mkdir(exist_ok=True)
    target = folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:8]}-{path.name}"
    os.rename(path, target)
    sync(folder)
    sync(path.parent)
    report.set_aside.append({"file": str(target.relative_to(store)), "reason": reason})


def _check_named(store: Path, catalogue: Catalogue, progress: Progress, report: RepairReport) -> dict[int, set[bytes]]:
    """Take the rows of damaged shards out of the catalogue; returns them, by column."""
    lost: dict[int, set[bytes]] = {}
    for column, shard_id, count in homeless_rows(catalogue):
        _note_lost(catalogue, column, shard_id, lost, report)
        with catalogue.transaction() as connection:
            connection.execute("DELETE FROM rows WHERE column_id = ? AND shard_id = ?", (column, shard_id))
        reason = f"{count} rows name a shard that does not hold their layer"
        report.lost.append({"shard": CATALOGUE, "reason": reason})
    shards, counts = named_shards(catalogue), row_counts(catalogue)
    progress.start("repair", len(shards), "shards")
    for shard in shards:
        problems = shard_problems(store, catalogue, shard, counts, quick=False)
        if problems:
            for column, *_ in shard.columns:
                _note_lost(catalogue, column, shard.ref.id, lost, report)
            with catalogue.transaction() as connection:
                connection.execute("DELETE FROM rows WHERE shard_id = ?", (shard.ref.id,))
                forget_shard(connection, shard.ref.id)
            reach("repair: rows of damaged shard deleted")
            report.lost.append({"shard": shard.ref.name, "reason": "; ".join(problems)})
            path = shard.ref.path(store)
            # Where the file is as it was sealed, the rows were wrong, and come back when it is adopted.
            if path.is_file() and hash_file(path) != shard.ref.sha256:
                _set_aside(store, path, "; ".join(problems), report)
                reach("repair: damaged shard set aside")
        progress.advance()
    return lost


def _note_lost(
    catalogue: Catalogue, column: int, shard: int, lost: dict[int, set[bytes]], report: RepairReport
) -> None:
    """Add the rows of one column in one shard to *lost*."""
    rows = catalogue.query("b", "SELECT sha256 FROM rows WHERE column_id = ? AND shard_id = ?", (column, shard))
    lost.setdefault(column, set()).update(sha256 for (sha256,) in rows)
    report.rows_lost += len(rows)


def _adopt_unnamed(store: Path, catalogue: Catalogue, progress: Progress, report: RepairReport) -> None:
    unnamed = unnamed_shards(store, catalogue)
    if unnamed:
        progress.start("adopt", len(unnamed), "shards")
    for path in unnamed:
        # What lies behind a link is not the store's own, so the link goes, not what it leads to.
        own = path.parent if path.parent.is_symlink() else path
        if not os.path.lexists(own):
            continue
        try:
            layout = read_layout(own)
            _check_contents(catalogue, own, layout)
            report.adopted += adopt_shard(catalogue, own, layout, hash_file(own))
            reach("repair: shard adopted")
        except (DamagedStoreError, StoreFormatError) as error:
            _set_aside(store, own, str(error), report)
        progress.advance()


def _check_contents(catalogue: Catalogue, path: Path, layout: ShardLayout) -> None:
    """Compare a shard with the hashes it carries and with what the catalogue knows of its layers."""
    fingerprint = layout.recipe.fingerprint
    if path.parent.name != shard_folder(fingerprint):
        raise DamagedStoreError(f"{path} belongs to another space.")
    with path.open("rb") as file:
        for name, extent in {("sha256", ""): layout.sha256, **layout.vectors}.items():
            array = np.fromfile(
                file, np.dtype(extent.dtype), math.prod(extent.shape), offset=extent.offset - file.tell()
            )
            if hash_arrays([array]) != extent.sha256:
                raise DamagedStoreError(f"{path}: the bytes of {name[0]} are not those that were sealed.")
            if extent is not layout.sha256 and not np.isfinite(array).all():
                raise DamagedStoreError(f"{path}: {name[0]} holds a value that is not finite.")
    for (layer, view), extent in layout.vectors.items():
        known = catalogue.query(
            "t",
            "SELECT DISTINCT c.shape FROM shard_columns c JOIN columns k ON k.id = c.column_id "
            "JOIN spaces p ON p.id = k.space_id WHERE p.fingerprint = ? AND k.layer = ? AND k.view = ?",
            (fingerprint, layer, view),
        )
        if any(row_shape(shape) != extent.shape[1:] for (shape,) in known):
            raise DamagedStoreError(f"{path}: {layer} has shape {extent.shape[1:]}, in other shards {known[0][0]}.")


def _to_compute(catalogue: Catalogue, lost: Mapping[int, set[bytes]]) -> list[dict[str, Any]]:
    """What the next extraction of each source has to compute again, of the rows that were lost."""
    found = []
    for column, sha256s in lost.items():
        missing = sha256s - places(catalogue, column, list(sha256s)).keys()
        ((fingerprint, recipe, layer),) = catalogue.query(
            "ttt",
            "SELECT p.fingerprint, p.recipe, k.layer FROM columns k JOIN spaces p ON p.id = k.space_id WHERE k.id = ?",
            (column,),
        )
        counts: dict[tuple[str, str], int] = {}
        for name, root, sha256 in catalogue.query(
            "ttb", "SELECT s.name, s.root, i.sha256 FROM items i JOIN sources s ON s.id = i.source_id"
        ):
            if sha256 in missing:
                counts[name, root] = counts.get((name, root), 0) + 1
        found += [
            {
                "source": name,
                "root": root,
                "backbone": Recipe.from_json(recipe).backbone,
                "space": fingerprint,
                "layer": layer,
                "images": count,
            }
            for (name, root), count in counts.items()
        ]
    return found
