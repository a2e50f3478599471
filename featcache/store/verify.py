"""Whether a store is what it says: shards against their hashes, rows against shards, the catalogue itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from featcache.errors import FeatcacheError
from featcache.progress import Progress, choose
from featcache.store.catalogue import Catalogue
from featcache.store.commit import shard_folder
from featcache.store.shard import hash_file
from featcache.store.shard_map import ShardMaps
from featcache.store.vectors import ColumnReader

_ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class VerifyReport:
    """What `verify` found.

    Attributes:
        shards: shards that the catalogue names.
        rows: vectors that the catalogue names.
        damaged: what is wrong, as ``{"shard": name, "problem": text}``; the catalogue counts as a shard
            called ``catalog.sqlite``.
    """

    shards: int
    rows: int
    damaged: list[dict[str, str]] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.damaged

    def to_dict(self) -> dict[str, object]:
        return {"ok": self.ok, "shards": self.shards, "rows": self.rows, "damaged": self.damaged}


def verify(root: Path, catalogue: Catalogue, maps: ShardMaps, progress: Progress | bool | None = False) -> VerifyReport:
    """Read everything that the catalogue names and compare.

    Args:
        root: the store's folder.
        catalogue: its catalogue.
        maps: its mapped shards.
        progress: True for a bar, or an object that is told.
    """
    damaged = [{"shard": catalogue.path.name, "problem": problem} for problem in catalogue.problems()]
    shards = catalogue.query(
        "SELECT s.id, s.name, s.sha256, p.fingerprint FROM shards s JOIN spaces p ON p.id = s.space_id ORDER BY s.id"
    )
    (rows,) = catalogue.query("SELECT count(*) FROM rows")[0]
    with choose(progress) as shown:
        shown.start("verify", len(shards), "shards")
        for id_, name, sha256, fingerprint in shards:
            try:
                for problem in _shard_problems(root, catalogue, maps, id_, str(name), sha256, str(fingerprint)):
                    damaged.append({"shard": str(name), "problem": problem})
            except (FeatcacheError, OSError) as error:
                damaged.append({"shard": str(name), "problem": str(error)})
            shown.advance()
    return VerifyReport(len(shards), int(rows), damaged)


def _shard_problems(
    root: Path, catalogue: Catalogue, maps: ShardMaps, id_: int, name: str, sha256: bytes, fingerprint: str
) -> list[str]:
    problems = []
    path = root / "shards" / shard_folder(fingerprint) / f"{name}.h5"
    if path.is_file() and hash_file(path) != sha256:
        return ["its bytes are not those that were sealed"]
    for column, layer, view in catalogue.query(
        "SELECT k.id, k.layer, k.view FROM columns k JOIN shard_columns c ON c.column_id = k.id WHERE c.shard_id = ?",
        (id_,),
    ):
        reader = ColumnReader(catalogue, maps, column, fingerprint, layer, view)
        named = catalogue.query("SELECT sha256, row FROM rows WHERE column_id = ? AND shard_id = ?", (column, id_))
        if id_ not in reader.shards:
            if named:
                problems.append(f"{layer}: the catalogue names {len(named)} rows where it counts none")
            continue
        ref, _, _, live = reader.shards[id_]
        if live != len(named):
            problems.append(f"{layer}: {len(named)} rows are named where {live} are counted")
        vectors, keys = reader.shard_array(id_), maps.sha256s(ref)
        wrong = sum(1 for key, row in named if not 0 <= row < ref.rows or keys[row].tobytes() != key)
        if wrong:
            problems.append(f"{layer}: {wrong} rows belong to other images than the catalogue says")
        for start in range(0, ref.rows, _ROWS_AT_ONCE):
            if not np.isfinite(vectors[start : start + _ROWS_AT_ONCE]).all():
                problems.append(f"{layer}: a value is not finite")
                break
    return problems
