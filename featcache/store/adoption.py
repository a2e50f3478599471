"""What a later writer does for one that died: adopt what was renamed but not committed, sweep the rest."""

from __future__ import annotations

import shutil
from pathlib import Path

from filelock import FileLock, Timeout

from featcache.errors import DamagedStoreError, StoreFormatError
from featcache.store.catalogue import Catalogue, foreign_errors
from featcache.store.commit import column_id, commit_shard, is_committed, shard_folder, space_id
from featcache.store.shard import SealedShard, hash_file, read_layout


def writer_lock(folder: Path) -> FileLock:
    """The lock by which a writer shows that it lives; the system frees it when the process ends."""
    return FileLock(folder / "lock", thread_local=False)


def adopt_orphans(path: Path, catalogue: Catalogue) -> int:
    """Adopt the shards that dead writers renamed but did not commit; remove their folders.

    The caller holds the lock on ``tmp/``, so that no new writer appears meanwhile.

    Returns:
        The number of shards adopted.
    """
    adopted = 0
    with foreign_errors(str(path / "tmp")):
        for folder in sorted((path / "tmp").iterdir()):
            if not folder.is_dir() or folder.is_symlink():
                continue
            lock = writer_lock(folder)
            try:
                lock.acquire(timeout=0)
            except (Timeout, OSError):
                continue
            try:
                adopted += _adopt(path, catalogue, folder / "journal")
            finally:
                lock.release()
            shutil.rmtree(folder, ignore_errors=True)
    return adopted


def _adopt(path: Path, catalogue: Catalogue, journal: Path) -> int:
    adopted = 0
    lines = journal.read_text("utf-8").splitlines() if journal.is_file() else []
    for line in lines:
        name, folder, digest = ([*line.split(" "), "", ""])[:3]
        target = path / "shards" / folder / f"{name}.h5"
        if not (_is_hex(name, 32) and _is_hex(folder, 16) and _is_hex(digest, 64) and target.is_file()):
            continue
        if is_committed(catalogue, name):
            continue
        try:
            layout = read_layout(target)
        except (DamagedStoreError, StoreFormatError):
            continue
        sha256 = hash_file(target)
        if sha256.hex() != digest or shard_folder(layout.recipe.fingerprint) != folder:
            continue
        space = space_id(catalogue, layout.recipe)
        columns = {
            (layer, view): column_id(catalogue, space, layer, view, position)
            for (layer, view), position in layout.positions.items()
        }
        shard = SealedShard(
            target,
            sha256,
            target.stat().st_size,
            layout.rows,
            {column: extent.dtype for column, extent in layout.vectors.items()},
            {column: extent.shape[1:] for column, extent in layout.vectors.items()},
        )
        with target.open("rb") as file:
            file.seek(layout.sha256.offset)
            data = file.read(layout.rows * 32)
        rows = [data[i : i + 32] for i in range(0, len(data), 32)]
        if commit_shard(catalogue, space, name, shard, columns, rows):
            adopted += 1
        else:
            target.unlink()
    return adopted


def _is_hex(text: str, length: int) -> bool:
    return len(text) == length and all(c in "0123456789abcdef" for c in text)
