"""`gc`: remove the vectors of images that no source lists. Without ``apply`` it only reports what it would remove."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featcache.core.arguments import checked
from featcache.core.errors import UsageError
from featcache.core.failpoints import reach
from featcache.core.html import HtmlTable
from featcache.core.names import GIVEN, IN_PYTHON
from featcache.store import spaces as layer_names
from featcache.store.catalogue import Catalogue, foreign_errors
from featcache.store.commit import forget_shard, remove_unnamed, shard_path
from featcache.store.feature_store import FeatureStore
from featcache.store.folder import FORMER
from featcache.store.journal import note_dropped
from featcache.store.spaces import parsed
from featcache.store.writer import StoreWriter

if TYPE_CHECKING:
    from featcache.store.spaces import Space

# Which rows r of a column are spoken of, beyond all of them.
_VANISHED = "AND NOT EXISTS (SELECT 1 FROM items i WHERE i.sha256 = r.sha256)"
# Images d that departed, and whose source lists them under no other name.
_NOWHERE = "NOT EXISTS (SELECT 1 FROM items i WHERE i.sha256 = d.sha256 AND i.source_id = d.source_id)"
_OF_SOURCE = (
    "AND r.sha256 IN (SELECT sha256 FROM items WHERE source_id = {source} "
    "UNION SELECT sha256 FROM departed WHERE source_id = {source}) "
    "AND NOT EXISTS (SELECT 1 FROM items i WHERE i.sha256 = r.sha256 AND i.source_id <> {source})"
)


@dataclass
class GcReport(HtmlTable):
    """What `gc` did, or would do.

    Attributes:
        store: the store's path.
        applied: whether it was done.
        vectors: rows taken away, over all layers and views.
        kept: rows that stay.
        forgotten: images of the source that is forgotten, where one was named.
        layers: ``{"fingerprint", "backbone", "layer", "vectors"}`` for each layer that loses rows, of all
            its views together.
        bytes: size of the shards that go altogether.
        bytes_in_part: about what ``compact`` frees in shards that keep some of their rows.
        doubtful: sources that are absent or more than half gone, with the reason; they need *force*.
        former: the catalogue that was kept when the store became one of the present format, which goes too.
        notes: that this run made the store one of the present format.
    """

    store: str
    applied: bool = False
    vectors: int = 0
    kept: int = 0
    forgotten: int = 0
    layers: list[dict[str, Any]] = field(default_factory=list)
    bytes: int = 0
    bytes_in_part: int = 0
    doubtful: list[dict[str, str]] = field(default_factory=list)
    former: str | None = None
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values."""
        return asdict(self)


@checked
def gc(
    store: str | Path,
    *,
    space: str | None = None,
    layers: str | Sequence[str] | None = None,
    source: str | None = None,
    apply: bool = False,
    force: bool = False,
) -> GcReport:
    """Take away vectors: those of images that no source holds any more, or all of a space, of layers, or of a source.

    With *apply* the catalogue goes too that was kept when an earlier run made the store one of the present format.
    The sources ``memory`` and ``paths``, of images that were given in Python, lose images only when they are named.

    Args:
        store: the store's folder.
        space: a space's fingerprint (or its beginning) or backbone: all its vectors go.
        layers: names or globs of stored layers: all their vectors go, in *space* or in every space.
        source: a source's name: it is forgotten, and the vectors of its images that no other source holds go.
        apply: do it; otherwise the report says what would be done.
        force: do it even where a source is absent or more than half gone.

    Raises:
        NotAStoreError: there is no store.
        UnknownNameError: no such space, layer or source.
        UsageError: a source together with a space or layers; or, with *apply*, a source is absent or more than
            half gone and *force* is off.
        StoreBusyError: another process is writing.

    Example:
        >>> report = fc.gc("pets.fcache", source="photos")
        >>> report.applied, report.vectors
        (False, 24)
    """
    report = GcReport(str(store))
    if source is not None and (space is not None or layers is not None):
        raise UsageError("Take away a source, or a space or layers, but not both in one go.")
    former = Path(store) / FORMER
    is_left = former.is_file()  # one that this run makes is for the user to see first
    with StoreWriter(Path(store), create=False, alone=True) as writer:
        report.notes, report.former = writer.notes, str(former) if is_left else None
        # Only now is it settled what there is: the writer has finished what dead ones left.
        opened = FeatureStore.open(store)
        chosen = opened.spaces if space is None else [opened.space(space)]
        columns = _columns(writer.catalogue, chosen, layers)
        unwanted = "" if space is not None or layers is not None else _VANISHED
        if source is not None:
            report.forgotten = len(opened.items(source=source))
            ((number,),) = writer.catalogue.query(
                "i", "SELECT id FROM sources WHERE name = ?", (opened.source(source),)
            )
            unwanted = _OF_SOURCE.format(source=number)
        losses = _losses(writer.catalogue, columns, unwanted)
        _describe(writer.catalogue, columns, losses, report)
        if unwanted == _VANISHED:
            report.doubtful = _doubtful(writer.catalogue)
        if not apply:
            return report
        if report.doubtful and not force:
            listed = "; ".join(f"{source['source']}: {source['reason']}" for source in report.doubtful)
            raise UsageError(
                f"Sources of {store} are missing or more than half gone ({listed}). Bring them back and run "
                "`featcache extract` first; if the images are gone for good, say --force."
            )
        _delete(writer, columns, losses, unwanted)
        if layers is not None:
            _forget_layers(writer.catalogue, columns)
        if source is not None:
            _forget_source(writer.catalogue, number)
        if space is not None and layers is None:
            _forget_space(writer.catalogue, chosen[0])
        if is_left:
            with foreign_errors(str(former)):
                former.unlink(missing_ok=True)
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


def _losses(catalogue: Catalogue, columns: Iterable[int], unwanted: str) -> dict[tuple[int, int], int]:
    """How many rows go, by (column, shard)."""
    return {
        (column, shard): count
        for column in columns
        for shard, count in catalogue.query(
            "ii",
            f"SELECT r.shard_id, count(*) FROM rows r WHERE r.column_id = ? {unwanted} GROUP BY r.shard_id",
            (column,),
        )
    }


def _describe(
    catalogue: Catalogue,
    columns: Mapping[int, tuple[Space, str]],
    losses: Mapping[tuple[int, int], int],
    report: GcReport,
) -> None:
    report.vectors = sum(losses.values())
    ((rows,),) = catalogue.query("i", "SELECT count(*) FROM rows")
    report.kept = rows - report.vectors
    counts: dict[tuple[str, str, str], int] = {}  # a layer has a column for each of its views
    for (column, _), n in losses.items():
        space, layer = columns[column]
        key = space.fingerprint, space.recipe.backbone, layer
        counts[key] = counts.get(key, 0) + n
    report.layers += [
        {"fingerprint": fingerprint, "backbone": backbone, "layer": layer, "vectors": n}
        for (fingerprint, backbone, layer), n in counts.items()
        if n
    ]
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
        f"(SELECT count(*) FROM departed AS d WHERE d.source_id = s.id AND {_NOWHERE}) FROM sources s ORDER BY s.name",
    ):
        if name in GIVEN:
            continue
        if not root.startswith(IN_PYTHON) and not os.path.exists(root):
            found.append({"source": name, "reason": f"there is nothing at {root}"})
        elif gone > present:
            found.append({"source": name, "reason": f"{gone:,} of its {gone + present:,} images are gone"})
    return found


def _delete(
    writer: StoreWriter,
    columns: Iterable[int],
    losses: Mapping[tuple[int, int], int],
    unwanted: str,
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
                connection.execute(f"DELETE FROM rows AS r WHERE r.column_id = ? {unwanted}", (column,))
            connection.executemany(
                "UPDATE shard_columns SET live = live - ? WHERE column_id = ? AND shard_id = ?",
                [(count, column, shard) for (column, shard), count in losses.items()],
            )
            empty = connection.execute("SELECT shard_id FROM shard_columns GROUP BY shard_id HAVING sum(live) = 0")
            for (shard,) in empty.fetchall():
                forget_shard(connection, shard)
            if unwanted == _VANISHED:
                # Of an image that was renamed, tables that an earlier `extract` was given still have the old name.
                connection.execute(f"DELETE FROM departed AS d WHERE {_NOWHERE}")
                for source, text in connection.execute("SELECT id, settings FROM sources").fetchall():
                    if (settings := parsed(text)).pop("departed", None) is not None:
                        values = (json.dumps(settings, sort_keys=True), source)
                        connection.execute("UPDATE sources SET settings = ? WHERE id = ?", values)
            reach("gc: rows deleted")
        reach("gc: committed")
        remove_unnamed(catalogue, paths.values(), "gc: file removed")
    except BaseException:
        writer.leave_to_the_next()
        raise


def _forget_layers(catalogue: Catalogue, columns: Mapping[int, tuple[Space, str]]) -> None:
    """Let the next `extract` not compute again what was taken away."""
    going = {(space.fingerprint, layer) for space, layer in columns.values()}
    with catalogue.transaction() as connection:
        for source, space, fingerprint, text in catalogue.query(
            "iitt", "SELECT r.source_id, r.space_id, p.fingerprint, r.request FROM requests r "
            "JOIN spaces p ON p.id = r.space_id",
        ):  # fmt: skip
            wanted = parsed(text)
            wanted["layers"] = {
                name: views for name, views in wanted.get("layers", {}).items() if (fingerprint, name) not in going
            }
            connection.execute(
                "UPDATE requests SET request = ? WHERE source_id = ? AND space_id = ?",
                (json.dumps(wanted, sort_keys=True), source, space),
            )


def _forget_space(catalogue: Catalogue, space: Space) -> None:
    """Take a space without rows out of the catalogue, with what was quarantined for it."""
    ((number,),) = catalogue.query("i", "SELECT id FROM spaces WHERE fingerprint = ?", (space.fingerprint,))
    with catalogue.transaction() as connection:
        for table in ("quarantine", "requests", "columns"):
            connection.execute(f"DELETE FROM {table} WHERE space_id = ?", (number,))
        connection.execute("DELETE FROM spaces WHERE id = ?", (number,))


def _forget_source(catalogue: Catalogue, number: int) -> None:
    """Take a source out of the catalogue, with its images and labels."""
    with catalogue.transaction() as connection:
        for table in ("items", "pending", "quarantine", "requests", "departed"):
            connection.execute(f"DELETE FROM {table} WHERE source_id = ?", (number,))
        connection.execute("DELETE FROM sources WHERE id = ?", (number,))
