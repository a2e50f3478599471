"""`gc`: vectors that are no longer wanted are taken away. It only says what it would do unless told to do it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from featcache.errors import UsageError
from featcache.failpoints import reach
from featcache.store import layer_names
from featcache.store.catalogue import Catalogue, foreign_errors
from featcache.store.commit import forget_shard, remove_unnamed, shard_path
from featcache.store.feature_store import FeatureStore
from featcache.store.items import Space
from featcache.store.journal import note_dropped
from featcache.store.writer import StoreWriter


@dataclass
class GcReport:
    """What `gc` did, or would do.

    Attributes:
        store: the store's path.
        applied: whether it was done.
        vectors: rows taken away, over all layers and views.
        kept: rows that stay.
        layers: ``{"fingerprint", "backbone", "layer", "vectors"}`` for each layer that loses rows.
        bytes: size of the shards that go altogether.
        bytes_in_part: about what ``compact`` frees in shards that keep some of their rows.
        doubtful: sources that are absent or more than half gone, with the reason; they need *force*.
    """

    store: str
    applied: bool = False
    vectors: int = 0
    kept: int = 0
    layers: list[dict[str, Any]] = field(default_factory=list)
    bytes: int = 0
    bytes_in_part: int = 0
    doubtful: list[dict[str, str]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values."""
        return asdict(self)


def gc(
    store: str | Path,
    *,
    space: str | None = None,
    layers: str | Sequence[str] | None = None,
    apply: bool = False,
    force: bool = False,
) -> GcReport:
    """Take away vectors: those of images that no source holds any more, or all of a space or of layers.

    Args:
        store: the store's folder.
        space: a space's fingerprint (or its beginning) or backbone: all its vectors go.
        layers: names or globs of stored layers: all their vectors go, in *space* or in every space.
        apply: do it; otherwise the report says what would be done.
        force: do it even where a source is absent or more than half gone.

    Raises:
        NotAStoreError: there is no store.
        UnknownNameError: no such space or layer.
        UsageError: with *apply*, a source is absent or more than half gone and *force* is off.
        StoreBusyError: another process is writing.
    """
    report = GcReport(str(store))
    vanished_only = space is None and layers is None
    with StoreWriter(Path(store), create=False, alone=True) as writer:
        # Only now is it settled what there is: the writer has finished what dead ones left.
        opened = FeatureStore.open(store)
        chosen = opened.spaces if space is None else [opened.space(space)]
        columns = _columns(writer.catalogue, chosen, layers)
        losses = _losses(writer.catalogue, columns, vanished_only)
        _describe(writer.catalogue, columns, losses, report)
        if vanished_only:
            report.doubtful = _doubtful(writer.catalogue)
        if not apply:
            return report
        if report.doubtful and not force:
            listed = "; ".join(f"{source['source']}: {source['reason']}" for source in report.doubtful)
            raise UsageError(
                f"Sources of {store} are missing or more than half gone ({listed}). Bring them back and run "
                "`featcache extract` first; if the images are gone for good, say --force."
            )
        _delete(writer, columns, losses, vanished_only)
        if space is not None and layers is None:
            _forget_space(writer.catalogue, chosen[0])
        report.applied = True
    return report


def _columns(
    catalogue: Catalogue, spaces: Sequence[Space], layers: str | Sequence[str] | None
) -> dict[int, tuple[Space, str]]:
    """The columns that are spoken of, by number: their space and layer."""
    stored = list(dict.fromkeys(name for space in spaces for name in space.layers))
    names = stored if layers is None else layer_names.choose(layers, stored)
    by_fingerprint = {space.fingerprint: space for space in spaces}
    return {
        id_: (by_fingerprint[fingerprint], layer)
        for id_, fingerprint, layer in catalogue.query(
            "itt",
            "SELECT k.id, p.fingerprint, k.layer FROM columns k JOIN spaces p ON p.id = k.space_id "
            "ORDER BY p.id, k.position, k.layer",
        )
        if fingerprint in by_fingerprint and layer in names
    }


def _losses(catalogue: Catalogue, columns: Iterable[int], vanished_only: bool) -> dict[tuple[int, int], int]:
    """How many rows go, by (column, shard)."""
    return {
        (column, shard): count
        for column in columns
        for shard, count in catalogue.query(
            "ii",
            f"SELECT r.shard_id, count(*) FROM rows r WHERE r.column_id = ? {_unwanted(vanished_only)} "
            "GROUP BY r.shard_id",
            (column,),
        )
    }


def _unwanted(vanished_only: bool) -> str:
    return "AND NOT EXISTS (SELECT 1 FROM items i WHERE i.sha256 = r.sha256)" if vanished_only else ""


def _describe(
    catalogue: Catalogue,
    columns: Mapping[int, tuple[Space, str]],
    losses: Mapping[tuple[int, int], int],
    report: GcReport,
) -> None:
    report.vectors = sum(losses.values())
    ((rows,),) = catalogue.query("i", "SELECT count(*) FROM rows")
    report.kept = rows - report.vectors
    for column, (space, layer) in columns.items():
        count = sum(n for (of, _), n in losses.items() if of == column)
        if count:
            report.layers.append(
                {
                    "fingerprint": space.fingerprint,
                    "backbone": space.recipe.backbone,
                    "layer": layer,
                    "vectors": count,
                }
            )
    for _, size, live, loss in _shards(catalogue, losses):
        if live == loss:
            report.bytes += size
        else:
            report.bytes_in_part += size * loss // live


def _shards(catalogue: Catalogue, losses: Mapping[tuple[int, int], int]) -> list[tuple[str, int, int, int]]:
    """(name, bytes, rows that exist, rows that go) of every shard, counted over its columns."""
    loss: dict[int, int] = {}
    for (_, shard), count in losses.items():
        loss[shard] = loss.get(shard, 0) + count
    return [
        (name, size, live, loss.get(id_, 0))
        for id_, name, size, live in catalogue.query(
            "itii",
            "SELECT s.id, s.name, s.bytes, sum(c.live) FROM shards s JOIN shard_columns c ON c.shard_id = s.id "
            "GROUP BY s.id",
        )
    ]


def _doubtful(catalogue: Catalogue) -> list[dict[str, str]]:
    """Sources whose images may be away for the moment only."""
    found = []
    for name, root, present, gone in catalogue.query(
        "ttii",
        "SELECT s.name, s.root, (SELECT count(*) FROM items i WHERE i.source_id = s.id), "
        "(SELECT count(*) FROM departed d WHERE d.source_id = s.id) FROM sources s ORDER BY s.name",
    ):
        if not os.path.exists(root):
            found.append({"source": name, "reason": f"there is nothing at {root}"})
        elif gone > present:
            found.append({"source": name, "reason": f"{gone:,} of its {gone + present:,} images are gone"})
    return found


def _delete(
    writer: StoreWriter,
    columns: Iterable[int],
    losses: Mapping[tuple[int, int], int],
    vanished_only: bool,
) -> None:
    catalogue = writer.catalogue
    paths = {
        name: shard_path(writer.path, fingerprint, name)
        for name, fingerprint in catalogue.query(
            "tt", "SELECT s.name, p.fingerprint FROM shards s JOIN spaces p ON p.id = s.space_id"
        )
    }
    going = [paths[name] for name, _, live, loss in _shards(catalogue, losses) if live == loss]
    try:
        with foreign_errors(str(writer.folder)):
            note_dropped(writer.folder, going)
        reach("gc: journal noted")
        with catalogue.transaction() as connection:
            for column in columns:
                connection.execute(f"DELETE FROM rows AS r WHERE r.column_id = ? {_unwanted(vanished_only)}", (column,))
            connection.executemany(
                "UPDATE shard_columns SET live = live - ? WHERE column_id = ? AND shard_id = ?",
                [(count, column, shard) for (column, shard), count in losses.items()],
            )
            empty = connection.execute("SELECT shard_id FROM shard_columns GROUP BY shard_id HAVING sum(live) = 0")
            for (shard,) in empty.fetchall():
                forget_shard(connection, shard)
            if vanished_only:
                connection.execute("DELETE FROM departed")
            reach("gc: rows deleted")
        reach("gc: committed")
        remove_unnamed(catalogue, paths.values(), "gc: file removed")
    except BaseException:
        writer.leave_to_the_next()
        raise


def _forget_space(catalogue: Catalogue, space: Space) -> None:
    """Take a space without rows out of the catalogue, with what was quarantined for it."""
    ((number,),) = catalogue.query("i", "SELECT id FROM spaces WHERE fingerprint = ?", (space.fingerprint,))
    with catalogue.transaction() as connection:
        for table in ("quarantine", "columns"):
            connection.execute(f"DELETE FROM {table} WHERE space_id = ?", (number,))
        connection.execute("DELETE FROM spaces WHERE id = ?", (number,))
