"""Whether a store is what it says: the catalogue itself, shards against their hashes, and both against each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from featcache.core.arguments import checked
from featcache.core.errors import FeatcacheError, StoreFormatError
from featcache.core.html import HtmlTable
from featcache.core.progress import Progress, choose
from featcache.store.catalogue import Catalogue, foreign_errors
from featcache.store.commit import live_rows
from featcache.store.folder import BACKUP, CATALOGUE, has_catalogue, lost_catalogue, no_store
from featcache.store.journal import noted
from featcache.store.shard import hash_file
from featcache.store.shard_maps import ShardMaps, ShardRef, row_shape

_ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class VerifyReport(HtmlTable):
    """What `verify` found.

    Attributes:
        shards: shards that the catalogue names.
        rows: vectors that the catalogue names.
        damaged: what is wrong, as ``{"shard": name, "problem": text}``; the catalogue counts as a shard
            called ``catalog.sqlite``, its backup as ``catalog.backup.sqlite``.
        unnamed: shard files that the catalogue does not name. That is no damage: a writer died, or the
            catalogue is older than they are. ``repair`` adopts them.
    """

    shards: int
    rows: int
    damaged: list[dict[str, str]] = field(default_factory=list)
    unnamed: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.damaged

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values."""
        return {
            "ok": self.ok,
            "shards": self.shards,
            "rows": self.rows,
            "damaged": self.damaged,
            "unnamed": self.unnamed,
        }


@dataclass(frozen=True)
class NamedShard:
    """A shard as the catalogue describes it.

    Attributes:
        ref: where it is and what it should be.
        columns: (number, layer, view, dtype, shape of a row, rows that exist) of each column it holds.
    """

    ref: ShardRef
    columns: tuple[tuple[int, str, str, str, tuple[int, ...], int], ...]
    layout: bytes | None
    """`layout_check` of where its data lie; None where an earlier version sealed it."""


@checked
def verify(store: str | Path, *, quick: bool = False, progress: Progress | bool | None = None) -> VerifyReport:
    """Check the catalogue and its backup, every shard's SHA-256, rows and shards against each other, every value.

    It may run while others read, write or compact. It changes nothing.

    Args:
        store: the store's folder.
        quick: leave out what reads the vectors: hashes of the files, values that are not finite.
        progress: True for a bar, False for none, None for a bar on a terminal, or an object that is told.

    Raises:
        NotAStoreError: there is no store.
        StoreFormatError: it was written by a newer featcache.

    Example:
        >>> report = fc.verify("pets.fcache")
        >>> report.rows, report.damaged
        (24, [])
    """
    path = Path(store)
    if not has_catalogue(path) and not lost_catalogue(path):
        raise no_store(path)
    damaged = [{"shard": BACKUP, "problem": problem} for problem in _problems_of_catalogue(path / BACKUP, False)]
    in_catalogue = _problems_of_catalogue(path / CATALOGUE, True)
    damaged += [{"shard": CATALOGUE, "problem": problem} for problem in in_catalogue]
    try:
        catalogue = Catalogue(path / CATALOGUE)
        shards, counts = named_shards(catalogue), row_counts(catalogue)
        ((rows,),) = catalogue.query("i", "SELECT count(*) FROM rows")
        if homeless := sum(count for *_, count in homeless_rows(catalogue)):
            problem = f"{homeless} rows name a shard that does not hold their layer"
            damaged.append({"shard": CATALOGUE, "problem": problem})
    except FeatcacheError as error:
        if not in_catalogue:
            damaged.append({"shard": CATALOGUE, "problem": str(error)})
        return VerifyReport(0, 0, damaged)
    with choose(progress) as bar:
        bar.start("verify", len(shards), "shards")
        found: dict[str, list[str]] = {}
        for shard in shards:
            problems = shard_problems(path, catalogue, shard, counts, quick=quick)
            if problems:
                found[shard.ref.name] = problems
            bar.advance()
    if found:
        # What others moved or removed while this was running is no damage.
        counts = row_counts(catalogue)
        for shard in named_shards(catalogue):
            if shard.ref.name in found:
                problems = found[shard.ref.name]
                if shard not in shards or any(counts.get((c[0], shard.ref.id), 0) != c[-1] for c in shard.columns):
                    problems = shard_problems(path, catalogue, shard, counts, quick=quick)
                damaged += [{"shard": shard.ref.name, "problem": problem} for problem in problems]
    return VerifyReport(len(shards), rows, damaged, [file.stem for file in unnamed_shards(path, catalogue)])


def named_shards(catalogue: Catalogue) -> list[NamedShard]:
    """All shards of a catalogue, oldest first.

    Raises:
        DamagedStoreError: one of them can be no shard.
    """
    columns: dict[int, list[tuple[int, str, str, str, tuple[int, ...], int]]] = {}
    for id_, number, layer, view, dtype, shape, live in catalogue.query(
        "iitttti",
        "SELECT c.shard_id, k.id, k.layer, k.view, c.dtype, c.shape, c.live FROM shard_columns c "
        "JOIN columns k ON k.id = c.column_id ORDER BY c.shard_id, k.id",
    ):
        columns.setdefault(id_, []).append((number, layer, view, dtype, row_shape(shape), live))
    return [
        NamedShard(ShardRef(id_, name, fingerprint, rows, size, sha256), tuple(columns.get(id_, [])), layout)
        for id_, name, fingerprint, rows, size, sha256, layout in catalogue.query(
            "ittiihB",
            "SELECT s.id, s.name, p.fingerprint, s.rows, s.bytes, s.sha256, s.layout FROM shards s "
            "JOIN spaces p ON p.id = s.space_id ORDER BY s.id",
        )
    ]


def homeless_rows(catalogue: Catalogue) -> list[tuple[int, int, int]]:
    """(column, shard, how many) of rows that name a shard which does not hold their column."""
    return catalogue.query(
        "iii",
        "SELECT r.column_id, r.shard_id, count(*) FROM rows r LEFT JOIN shard_columns c USING (shard_id, column_id) "
        "WHERE c.shard_id IS NULL GROUP BY r.column_id, r.shard_id",
    )


def row_counts(catalogue: Catalogue) -> dict[tuple[int, int], int]:
    """How many rows the catalogue names in each (column, shard)."""
    return {
        (column, shard): count
        for column, shard, count in catalogue.query(
            "iii", "SELECT column_id, shard_id, count(*) FROM rows GROUP BY column_id, shard_id"
        )
    }


def shard_problems(
    store: Path, catalogue: Catalogue, shard: NamedShard, counts: Mapping[tuple[int, int], int], *, quick: bool
) -> list[str]:
    """What is wrong with one shard: its file, its rows, its values.

    Args:
        store: the store's folder.
        catalogue: its catalogue.
        shard: the shard.
        counts: of `row_counts`.
        quick: leave out what reads the vectors.
    """
    path = shard.ref.path(store)
    try:
        with foreign_errors(str(path)):
            if not quick and path.is_file() and hash_file(path) != shard.ref.sha256:
                return ["its bytes are not those that were sealed"]
        return list(_problems_of_rows(store, catalogue, shard, counts, quick=quick))
    except FeatcacheError as error:
        return [str(error)]


def _problems_of_rows(
    store: Path, catalogue: Catalogue, shard: NamedShard, counts: Mapping[tuple[int, int], int], *, quick: bool
) -> Iterator[str]:
    # Maps of its own, so that no more than one shard is held at a time.
    maps = ShardMaps(store)
    keys = maps.sha256s(shard.ref)
    if shard.layout is not None and maps.layout_check(shard.ref) != shard.layout:
        yield "its data do not lie where the catalogue says"
    for number, layer, view, dtype, shape, live in shard.columns:
        vectors = maps.array(shard.ref, layer, view, dtype, shape)
        named = counts.get((number, shard.ref.id), 0)
        found = int(live_rows(catalogue, number, shard.ref.id, keys).sum())
        if named != found:
            yield f"{layer}: {named - found} rows belong to other images than the catalogue says"
        if named != live:
            yield f"{layer}: {named} rows are named where {live} are counted"
        if not quick and not all(
            np.isfinite(vectors[start : start + _ROWS_AT_ONCE]).all() for start in range(0, len(vectors), _ROWS_AT_ONCE)
        ):
            yield f"{layer}: a value is not finite"


def unnamed_shards(store: Path, catalogue: Catalogue) -> list[Path]:
    """Files among the shards that the catalogue does not name, and that no writer's journal speaks of."""
    lying = sorted((store / "shards").glob("*/*"))
    journalled = {entry.name for folder in (store / "tmp").glob("*") for entry in noted(folder)}
    # The catalogue is asked last: what was committed meanwhile is named.
    named = {shard.ref.path(store) for shard in named_shards(catalogue)}
    return [path for path in lying if path not in named and path.stem not in journalled]


def _problems_of_catalogue(path: Path, needed: bool) -> list[str]:
    """What is wrong with a catalogue's file; without one, nothing unless it is *needed*."""
    if not path.is_file():
        return ["it is gone"] if needed else []
    try:
        return Catalogue(path).problems()
    except StoreFormatError:
        if needed:
            raise
        return ["a newer featcache wrote it"]
    except FeatcacheError as error:
        return [str(error)]
