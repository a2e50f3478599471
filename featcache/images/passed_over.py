"""Folders and files that lie among images and are none of the user's: of file systems, NAS, archives and featcache."""

from __future__ import annotations

from collections.abc import Collection

_SYSTEM = frozenset(
    {
        "__macosx", "lost+found", "$recycle.bin", "system volume information", "@eadir", "#recycle", "#snapshot",
        "@recycle", "@recently-snapshot", "@sharebin", "network trash folder", "temporary items",
    }
)  # fmt: skip
_FILES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini"})
_CATALOGUES = ("catalog.sqlite", "catalog.backup.sqlite")

STORE_ENDING = ".fcache"


def is_hidden(name: str) -> bool:
    """Whether a file or folder is passed over without a word."""
    return name.startswith(".") or name.casefold() in _FILES


def is_system_folder(name: str) -> bool:
    """Whether a folder of this name is put there by a file system, a NAS or an archive."""
    return name.casefold() in _SYSTEM


def is_store(names: Collection[str]) -> bool:
    """Whether a folder with these names in it is a featcache store."""
    return "shards" in names and any(name in names for name in _CATALOGUES)
