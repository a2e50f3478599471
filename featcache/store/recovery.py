"""After a writer crashed, a later one adopts the shards that it renamed but did not commit, and removes the rest."""

from __future__ import annotations

import shutil
from pathlib import Path

from filelock import Timeout

from featcache.core.errors import StoreError
from featcache.core.failpoints import reach
from featcache.store.catalogue import Catalogue, foreign_errors
from featcache.store.commit import column_id, commit_shard, is_committed, remove_unnamed, shard_folder, space_id
from featcache.store.journal import Noted, noted, writer_lock
from featcache.store.shard import ShardLayout, hash_file, read_layout
from featcache.store.shard_file import SealedShard


def active_writers(store: Path) -> list[Path]:
    """The folders below ``tmp/`` whose writers are active."""
    active = []
    for folder in sorted((store / "tmp").iterdir()):
        if folder.is_dir() and not folder.is_symlink():
            lock = writer_lock(folder)
            try:
                lock.acquire(timeout=0)
                lock.release()
            except (Timeout, OSError):
                active.append(folder)
    return active


def recover_crashed_writers(store: Path, catalogue: Catalogue) -> list[Path]:
    """Do what stands in the journals of crashed writers, and remove their folders.

    The caller holds the lock on ``tmp/``, so that no new writer appears meanwhile.

    Returns:
        The folders whose writers are active.
    """
    with foreign_errors(str(store / "tmp")):
        active = active_writers(store)
        for folder in sorted((store / "tmp").iterdir()):
            if folder.is_dir() and not folder.is_symlink() and folder not in active:
                for entry in noted(folder):
                    _finish(store, catalogue, entry)
                shutil.rmtree(folder, ignore_errors=True)
    return active


def _finish(store: Path, catalogue: Catalogue, entry: Noted) -> None:
    target = store / "shards" / entry.folder / f"{entry.name}.h5"
    if not target.is_file() or is_committed(catalogue, entry.name):
        return
    if entry.sha256 is None:
        remove_unnamed(catalogue, [target], "adopt: dropped file removed")
        return
    try:
        layout = read_layout(target)
    except StoreError:
        return
    if hash_file(target) != entry.sha256 or shard_folder(layout.recipe.fingerprint) != entry.folder:
        return
    reach("adopt: file checked")
    adopt_shard(catalogue, target, layout, entry.sha256)
    reach("adopt: committed")


def adopt_shard(catalogue: Catalogue, target: Path, layout: ShardLayout, sha256: bytes) -> int:
    """Commit a shard that lies in its place already; one whose rows all exist elsewhere is removed.

    Returns:
        The number of rows that were new.
    """
    space = space_id(catalogue, layout.recipe)
    columns = {
        (layer, view): column_id(catalogue, space, layer, view, position)
        for (layer, view), position in layout.positions.items()
    }
    shard = SealedShard(
        target.stem,
        sha256,
        target.stat().st_size,
        layout.rows,
        layout.sha256,
        layout.vectors,
    )
    with target.open("rb") as file:
        file.seek(layout.sha256.offset)
        data = file.read(layout.rows * 32)
    new = commit_shard(catalogue, space, shard, columns, [data[i : i + 32] for i in range(0, len(data), 32)])
    if not new:
        target.unlink()
    return new
