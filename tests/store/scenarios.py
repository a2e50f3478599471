"""Work on a store that tests cut off, in a process of its own with `run`.

Each piece of work can be done again from wherever it was cut off, and then ends in the same state.
"""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np

import featcache as fc
from featcache.core import failpoints
from featcache.store import FeatureStore, StoreWriter
from featcache.store.sources import Record, SourceRecords
from tests.fork_server import fork_server
from tests.store.making import fill, keys, recipe, values

ITEMS = 20
_CONTEXT = fork_server("tests.store.scenarios")


def start(path: Path) -> None:
    """20 items in two shards of two layers; five more vectors that no item refers to."""
    fill(path, ITEMS, layers={"pooled": 8, "blocks.1:mean": 3})
    with StoreWriter(path) as writer:
        space = writer.space(recipe())
        space.declare("pooled", "0", 0)
        space.append(keys(5, 1000), {("pooled", "0"): values(5, start=1000)})


def append(path: Path) -> None:
    """20 items, some of whose vectors are there already."""
    fill(path, 20, start=15, layers={"pooled": 8, "blocks.1:mean": 3})


def compact(path: Path) -> None:
    fc.compact(path, progress=False)


def gc(path: Path) -> None:
    """The vectors without an item, and one layer, go."""
    fc.gc(path, apply=True, force=True)
    if "blocks.1:mean" in FeatureStore.open(path).space().layers:
        fc.gc(path, layers="blocks.1:mean", apply=True)


def repair(path: Path) -> None:
    fc.repair(path, progress=False)


def migrate(path: Path) -> None:
    """What every writer does first with a store of format 1."""
    StoreWriter(path, create=False).close()


WORK: dict[str, Callable[[Path], None]] = {
    "append": append, "compact": compact, "gc": gc, "repair": repair, "migrate": migrate,
}  # fmt: skip


def damage(path: Path) -> None:
    """What `repair` mends: a lost catalogue, a flipped bit in a shard, a shard that the backup does not name."""
    backup = path / "catalog.backup.sqlite"
    kept = backup.read_bytes()
    with StoreWriter(path) as writer:
        space = writer.space(recipe())
        space.declare("pooled", "0", 0)
        space.append(keys(6, 2000), {("pooled", "0"): values(6, start=2000)})
    backup.write_bytes(kept)
    catalogue = path / "catalog.sqlite"
    catalogue.write_bytes(b"\x00" * 200 + catalogue.read_bytes()[200:])
    # One with both layers: these files are the largest.
    shard = max((path / "shards").rglob("*.h5"), key=lambda p: p.stat().st_size)
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)


def contents(path: Path) -> dict[str, object]:
    """All that a store answers: vectors by layer and content, items with labels."""
    store = FeatureStore.open(path)
    found: dict[str, object] = {}
    for space in store.spaces:
        for layer in space.layers:
            number = store.column(layer, space.fingerprint).column
            rows = store.catalogue.query("h", "SELECT sha256 FROM rows WHERE column_id = ?", (number,))
            hashes = sorted(sha256 for (sha256,) in rows)
            vectors = store.gather(hashes, [layer], space.fingerprint)[0]
            found[layer] = {sha256: vector.tolist() for sha256, vector in zip(hashes, vectors, strict=True)}
    for source in store.sources():
        found[f"items of {source}"] = [(i.uri, i.sha256, i.label, i.split) for i in store.items(source=source)]
    return found


def is_right(path: Path) -> bool:
    """Whether every vector that the store gives is that of its image."""
    return are_right(contents(path))


def are_right(held: dict[str, object]) -> bool:
    """Whether every vector of a store's contents is that of its image."""
    number = _numbers()
    for layer, vectors in held.items():
        if isinstance(vectors, dict):
            for sha256, vector in vectors.items():
                expected = values(1, len(vector), number[sha256])[0]
                if not np.array_equal(np.float32(vector), expected):
                    raise AssertionError(f"{layer} of image {number[sha256]} is wrong")
    return True


@functools.cache
def _numbers() -> dict[bytes, int]:
    return {sha256: i for i, sha256 in enumerate(keys(3000))}


def relabel(path: Path, label: str) -> None:
    """Give the first item another label."""
    with StoreWriter(path) as writer:
        records = SourceRecords(writer.catalogue, "images", "/nowhere")
        records.save([Record("00000.jpg", keys(1)[0], label, None, None, 1, 2, 3, 4, 5)])


def run(work: str, path: Path, point: str = "") -> int:
    """Do the work in another process, which dies where it reaches *point*; its exit code."""
    process = _CONTEXT.Process(target=_work, args=(work, path, point))
    process.start()
    process.join(120)
    assert process.exitcode is not None, f"{work} goes on and on"
    return process.exitcode


def _work(work: str, path: Path, point: str) -> None:
    def on_reach(reached: str) -> None:
        if reached == point:
            os.kill(os.getpid(), signal.SIGKILL)

    failpoints.on_reach = on_reach
    WORK[work](path)
