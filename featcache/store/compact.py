"""`compact`: small shards are merged, and rows that no longer exist leave their shards.

Only shards in their place are read, and each is checked against its hash first, so that damage is never
sealed anew. Rows move in one transaction, and only those that are still where they were read: another
writer, reader or compaction at the same time loses nothing. Files that are no longer named are removed
after it; what a reader has mapped stays readable.
"""

from __future__ import annotations

import itertools
import math
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from featcache.core.arguments import checked
from featcache.core.errors import ShardGoneError
from featcache.core.failpoints import reach
from featcache.core.html import HtmlTable
from featcache.core.progress import Progress, Silent, choose
from featcache.core.recipe import Recipe
from featcache.store.catalogue import Catalogue, foreign_errors
from featcache.store.commit import (
    forget_shard,
    insert_column,
    insert_shard,
    is_committed,
    live_rows,
    put_in_place,
    remove_unnamed,
    shard_path,
)
from featcache.store.journal import note_dropped
from featcache.store.shard import hash_file
from featcache.store.shard_file import Column, write_shard
from featcache.store.shard_maps import ShardMaps, ShardRef, row_shape
from featcache.store.writer import StoreWriter

MANY = 8
"""Small shards of one kind that a run leaves before it merges them."""


@dataclass
class CompactReport(HtmlTable):
    """What `compact` did.

    Attributes:
        store: the store's path.
        shards_before, shards_after: shards that the catalogue named.
        bytes_before, bytes_after: their size.
        damaged: names of shards that were left alone, as their bytes are not those that were sealed.
        notes: what was told: that the store became one of a newer format.
    """

    store: str
    shards_before: int = 0
    shards_after: int = 0
    bytes_before: int = 0
    bytes_after: int = 0
    damaged: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Held:
    """A column as one shard holds it."""

    id: int
    column: Column
    position: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, slots=True)
class _Part:
    """The rows of one shard that exist in just these columns."""

    shard: ShardRef
    columns: tuple[_Held, ...]
    rows: np.ndarray
    """Their numbers, ascending."""

    @property
    def bytes(self) -> int:
        return len(self.rows) * (32 + sum(held.row_bytes for held in self.columns))

    @property
    def is_whole_shard(self) -> bool:
        return len(self.rows) == self.shard.rows


@checked
def compact(store: str | Path, *, progress: Progress | bool | None = None) -> CompactReport:
    """Merge small shards and rewrite those that hold rows which no longer exist.

    Args:
        store: the store's folder.
        progress: True for a bar, False for none, None for a bar on a terminal, or an object that is told.

    Raises:
        NotAStoreError: there is no store.
        DiskFullError: there is no room for a merged shard; nothing is lost.

    Example:
        >>> fc.compact("pets.fcache").shards_after
        1
    """
    report = CompactReport(str(store))
    with StoreWriter(Path(store), create=False) as writer, choose(progress) as bar:
        report.notes = writer.notes
        for note in report.notes:
            bar.note(note)
        report.shards_before, report.bytes_before = _count(writer.catalogue)
        report.damaged = _rewrite(writer, bar, at_least=2, dead_too=True)
        report.shards_after, report.bytes_after = _count(writer.catalogue)
    return report


def merge_small_shards(writer: StoreWriter) -> None:
    """Merge shards of the same columns that are less than half full, where many of them came together.

    Args:
        writer: a writer of the store, with nothing unsealed.
    """
    _rewrite(writer, Silent(), at_least=MANY, dead_too=False)


def _rewrite(writer: StoreWriter, progress: Progress, *, at_least: int, dead_too: bool) -> list[str]:
    """Merge what is worth it; returns the names of damaged shards."""
    whole: dict[str, bool] = {}

    def is_whole(shard: ShardRef) -> bool:
        if shard.name not in whole:
            whole[shard.name] = _is_whole(writer, shard)
        return whole[shard.name]

    plans = []
    for space, fingerprint, text in writer.catalogue.query("itt", "SELECT id, fingerprint, recipe FROM spaces"):
        parts = list(_parts(writer, space, fingerprint, is_whole if dead_too else None))
        plans += [(space, Recipe.from_json(text), group) for group in _groups(parts, writer.seal_bytes, at_least)]
    if plans:
        progress.start("compact", sum(len(group) for *_, group in plans), "shards")
    for space, recipe, group in plans:
        good = [part for part in group if is_whole(part.shard)]
        if good:
            # A file that vanishes now was merged by another process at the same time.
            with suppress(ShardGoneError):
                _merge(writer, space, recipe, good)
        progress.advance(len(group))
    return sorted(name for name, good in whole.items() if not good and is_committed(writer.catalogue, name))


def _is_whole(writer: StoreWriter, shard: ShardRef) -> bool:
    path = shard.path(writer.path)
    with foreign_errors(str(path)):
        try:
            return hash_file(path) == shard.sha256
        except FileNotFoundError:
            return False


def _parts(
    writer: StoreWriter, space: int, fingerprint: str, is_whole: Callable[[ShardRef], bool] | None
) -> Iterator[_Part]:
    """The parts of a space's shards that are small or, where *is_whole* tells which may be read, have dead rows."""
    catalogue = writer.catalogue
    maps = ShardMaps(writer.path)
    shards: dict[int, tuple[ShardRef, list[tuple[_Held, int]]]] = {}
    for id_, name, digest, size, rows, number, layer, view, position, dtype, shape, live in catalogue.query(
        "ithiiittitti",
        "SELECT s.id, s.name, s.sha256, s.bytes, s.rows, k.id, k.layer, k.view, k.position, c.dtype, c.shape, c.live "
        "FROM shards s JOIN shard_columns c ON c.shard_id = s.id JOIN columns k ON k.id = c.column_id "
        "WHERE s.space_id = ? ORDER BY s.id, k.position, k.layer, k.view",
        (space,),
    ):
        ref = ShardRef(id_, name, fingerprint, rows, size, digest)
        held = _Held(number, (layer, view), position, dtype, row_shape(shape))
        shards.setdefault(id_, (ref, []))[1].append((held, live))
    for ref, columns in shards.values():
        if all(live == ref.rows for _, live in columns):
            if 2 * ref.size < writer.seal_bytes:
                yield _Part(ref, tuple(held for held, _ in columns), np.arange(ref.rows))
        elif is_whole is not None and is_whole(ref):
            try:
                keys = maps.sha256s(ref)
            except ShardGoneError:
                continue  # merged by another process at this moment
            alive = np.stack([live_rows(catalogue, held.id, ref.id, keys) for held, _ in columns])
            for pattern in np.unique(alive, axis=1).T:
                kept = tuple(held for (held, _), is_kept in zip(columns, pattern, strict=True) if is_kept)
                if kept:
                    yield _Part(ref, kept, np.flatnonzero((alive == pattern[:, None]).all(axis=0)))


def _groups(parts: Sequence[_Part], seal_bytes: int, at_least: int) -> list[list[_Part]]:
    """Parts that become one shard each: of the same columns, and together no larger than a shard should be."""
    kinds: dict[tuple[_Held, ...], list[_Part]] = {}
    for part in parts:
        kinds.setdefault(part.columns, []).append(part)
    groups: list[list[_Part]] = []
    for kind in kinds.values():
        if len(kind) < at_least and all(part.is_whole_shard for part in kind):
            continue
        packed: list[list[_Part]] = []
        for part in kind:
            if not packed or sum(p.bytes for p in packed[-1]) + part.bytes > seal_bytes:
                packed.append([])
            packed[-1].append(part)
        groups += [group for group in packed if len(group) > 1 or not group[0].is_whole_shard]
    return groups


def _merge(writer: StoreWriter, space: int, recipe: Recipe, group: Sequence[_Part]) -> None:
    """Write one shard from the parts, let it take their place, and remove the files that nothing names any more."""
    catalogue, maps = writer.catalogue, ShardMaps(writer.path)
    columns = group[0].columns
    keys = [key.tobytes() for part in group for key in maps.sha256s(part.shard)[part.rows]]
    vectors = {
        held.column: [
            _rows(maps.array(part.shard, *held.column, held.dtype, held.shape), part)
            for part in group
        ]
        for held in columns
    }  # fmt: skip
    name = uuid.uuid4().hex
    unsealed, target = writer.folder / f"{name}.h5", shard_path(writer.path, recipe.fingerprint, name)
    with foreign_errors(str(unsealed)):
        shard = write_shard(
            unsealed,
            recipe,
            keys,
            vectors,
            {held.column: held.dtype for held in columns},
            {held.column: held.position for held in columns},
        )
    old = [part.shard.path(writer.path) for part in group]
    try:
        with foreign_errors(str(target)):
            put_in_place(writer.folder, unsealed, target, shard, "compact")
            note_dropped(writer.folder, [target, *old])
        with catalogue.transaction() as connection:
            number = insert_shard(connection, space, shard)
            total = 0
            for held in columns:
                moved = 0
                for part, start in zip(group, _starts(group), strict=True):
                    gone = connection.executemany(
                        "UPDATE rows SET shard_id = ?, row = ? "
                        "WHERE column_id = ? AND sha256 = ? AND shard_id = ? AND row = ?",
                        (
                            (number, start + i, held.id, keys[start + i], part.shard.id, int(row))
                            for i, row in enumerate(part.rows)
                        ),
                    ).rowcount
                    connection.execute(
                        "UPDATE shard_columns SET live = live - ? WHERE shard_id = ? AND column_id = ?",
                        (gone, part.shard.id, held.id),
                    )
                    moved += gone
                insert_column(connection, number, held.id, shard, held.column, moved)
                total += moved
            if not total:
                forget_shard(connection, number)
            for part in group:
                (live,) = connection.execute(
                    "SELECT sum(live) FROM shard_columns WHERE shard_id = ?", (part.shard.id,)
                ).fetchone()
                if not live:
                    forget_shard(connection, part.shard.id)
            reach("compact: rows moved")
        reach("compact: committed")
        remove_unnamed(catalogue, (target, *old), "compact: old file removed")
    except BaseException:
        writer.leave_to_the_next()
        raise


def _starts(group: Sequence[_Part]) -> list[int]:
    """The row at which each part begins in the merged shard."""
    return list(itertools.accumulate((len(part.rows) for part in group[:-1]), initial=0))


def _rows(array: np.ndarray, part: _Part) -> np.ndarray:
    return array if part.is_whole_shard else array[part.rows]


def _count(catalogue: Catalogue) -> tuple[int, int]:
    (found,) = catalogue.query("ii", "SELECT count(*), coalesce(sum(bytes), 0) FROM shards")
    return found[0], found[1]
