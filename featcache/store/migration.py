"""A store of format 1 becomes one of format 2 when it is first written to.

A copy of the catalogue that passes all checks becomes the backup, and is kept under a name of its own too, since the
next backup is of format 2. Then the tables change in one transaction. So a kill at any moment leaves a store of one
format or the other, whole.
"""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path

from featcache.core.errors import DamagedStoreError
from featcache.core.failpoints import reach
from featcache.core.files import sync
from featcache.store.catalogue import Catalogue, foreign_errors, migrate
from featcache.store.folder import BACKUP, CATALOGUE, FORMER, another_writer
from featcache.store.journal import writer_lock
from featcache.store.recovery import active_writers
from featcache.store.schema import STORE_FORMAT


def bring_up_to_date(store: Path, own: Path | None = None) -> list[str]:
    """Make the catalogue one of the present format, if it is not.

    Args:
        store: the store's folder. The caller holds the lock on ``tmp/``, so that no new writer appears meanwhile.
        own: the caller's folder below ``tmp/``, where it has one.

    Returns:
        What a person has to be told: earlier versions can no longer open the store. Nothing where nothing was changed.

    Raises:
        DamagedStoreError: the catalogue does not pass its checks; then nothing is changed.
        StoreBusyError: a writer that knows only the earlier format is at work.
        StoreFormatError: the format is newer.
    """
    catalogue = Catalogue(store / CATALOGUE)
    try:
        if catalogue.format == STORE_FORMAT:
            return []
        if set(active_writers(store)) - {own}:
            raise another_writer(store)
        folder = store / "tmp" / uuid.uuid4().hex
        lock = writer_lock(folder)
        with foreign_errors(str(folder)):
            folder.mkdir()
            lock.acquire(timeout=0)
            try:
                _back_up(store, catalogue, folder)
            finally:
                lock.release()
                shutil.rmtree(folder, ignore_errors=True)
    finally:
        catalogue.close()
    migrate(store / CATALOGUE)
    reach("migrate: committed")
    return [
        f"{store} is now a store of format {STORE_FORMAT}, which earlier versions of featcache cannot open. Its former "
        f"catalogue is kept beside the new one, as {FORMER}."
    ]


def _back_up(store: Path, catalogue: Catalogue, folder: Path) -> None:
    """Keep a copy of the catalogue, as the backup and as the former catalogue, if it passes all checks."""
    copy = folder / BACKUP
    catalogue.copy_to(copy)
    copied = Catalogue(copy)
    try:
        problems = copied.problems()
    finally:
        copied.close()
    if problems:
        raise DamagedStoreError(
            f"{store / CATALOGUE} is damaged, so nothing was written ({problems[0]}). "
            f"Run `featcache repair {store}` first."
        )
    reach("migrate: copy checked")
    former = folder / FORMER
    shutil.copyfile(copy, former)
    sync(former)
    os.replace(former, store / FORMER)
    reach("migrate: former catalogue kept")
    os.replace(copy, store / BACKUP)
    sync(store)
    reach("migrate: backup in its place")
