"""What lies in a store's folder, who may write there, and the backup of the catalogue."""

from __future__ import annotations

import os
from pathlib import Path

from filelock import FileLock, Timeout

from featcache.core.errors import DamagedStoreError, NotAStoreError, StoreBusyError
from featcache.core.failpoints import reach
from featcache.core.files import sync
from featcache.store.catalogue import BUSY_SECONDS, Catalogue, foreign_errors

CATALOGUE = "catalog.sqlite"
BACKUP = "catalog.backup.sqlite"
FORMER = "catalog.format-1.sqlite"
"""The catalogue as it was before the store became one of the present format."""
SET_ASIDE = "damaged"


def renew_backup(store: Path, catalogue: Catalogue, folder: Path) -> None:
    """Copy the catalogue aside in *folder*, then put the copy in the place of the last backup."""
    copy = folder / BACKUP
    catalogue.copy_to(copy)
    reach("backup: copied")
    with foreign_errors(str(copy)):
        os.replace(copy, store / BACKUP)
        reach("backup: renamed")
        sync(store)


def lock_out_writers(store: Path) -> FileLock:
    """Take the lock under which writers begin; while it is held, no new one does.

    Raises:
        StoreBusyError: somebody holds it for too long.
    """
    lock = FileLock(store / "tmp" / "lock", thread_local=False)
    try:
        lock.acquire(timeout=BUSY_SECONDS)
    except Timeout as error:
        raise another_writer(store) from error
    return lock


def another_writer(store: Path) -> StoreBusyError:
    """The error of who has to be alone, or of who meets somebody that is."""
    return StoreBusyError(
        f"Another process is at work on {store}. Wait for it to finish, or end it, and run the command again."
    )


def no_store(path: Path) -> NotAStoreError:
    """The error for a path that should be a store and is none."""
    if not path.exists():
        return NotAStoreError(f"There is no store at {path}. Make one with `featcache extract SOURCE -o {path}`.")
    return NotAStoreError(
        f"{path} is not a featcache store: it holds no {CATALOGUE}. Give the folder that `featcache extract` wrote."
    )


def make_folders(path: Path, *, create: bool) -> None:
    """See to it that *path* is the folder of a store, or an empty one that may become one.

    Raises:
        NotAStoreError: it is something else, or is not there and *create* is off.
        DamagedStoreError: it is a store that lost its catalogue.
        StoreFormatError: it is a store of a newer format.
    """
    if path.exists() and not path.is_dir():
        raise NotAStoreError(f"{path} is a file, so it cannot be a store. Give a folder, for example {path}.fcache.")
    if not create and not path.is_dir():
        raise no_store(path)
    refuse_links(path)
    if has_catalogue(path):
        Catalogue(path / CATALOGUE).close()  # one of a newer format is left as it is
    elif path.is_dir():
        if lost_catalogue(path):
            raise DamagedStoreError(f"{path} has lost its {CATALOGUE}. Run `featcache repair {path}`.")
        # Another process may be making the store at this moment.
        begun = ("shards", "tmp", CATALOGUE, f"{CATALOGUE}-journal")
        foreign = sorted(p.name for p in path.iterdir() if p.name not in begun)
        if not create:
            raise no_store(path)
        if foreign:
            raise NotAStoreError(
                f"{path} is a folder that holds other things ({foreign[0]} …) and no featcache store. Give the name "
                "of a new folder, for example photos.fcache."
            )
    for folder in (path, path / "shards", path / "tmp"):
        folder.mkdir(parents=folder == path, exist_ok=True)


def refuse_links(path: Path) -> None:
    """See to it that what a writer renames and removes is the store's own.

    Raises:
        DamagedStoreError: the catalogue or one of the folders is a link, so what is in it may be anybody's.
    """
    for name in (CATALOGUE, "shards", "tmp", SET_ASIDE):
        if (path / name).is_symlink():
            raise DamagedStoreError(
                f"{path / name} is a link, and a store is written to only where all of it lies in one folder. "
                "Move what it leads to into its place, or remove the link and run `featcache repair` on the store."
            )


def has_catalogue(path: Path) -> bool:
    """Whether there is a catalogue; an empty file is what is left where making one was cut off."""
    file = path / CATALOGUE
    return file.is_file() and file.stat().st_size > 0


def lost_catalogue(path: Path) -> bool:
    """Whether a folder without a catalogue was a store: its backup or sealed shards are there."""
    return (path / BACKUP).is_file() or next((path / "shards").glob("*/*.h5"), None) is not None
