"""The hold-out that was drawn for a source: kept, so that all heads are scored on the same items."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from featcache.store.catalogue import Catalogue
from featcache.store.writer import StoreWriter


def kept(catalogue: Catalogue, source: str) -> dict[bytes, str]:
    """The part, ``train`` or ``test``, of each SHA-256 for which it was decided."""
    rows = catalogue.query(
        "ht",
        "SELECT h.sha256, h.part FROM holdout h JOIN sources s ON s.id = h.source_id WHERE s.name = ?",
        (source,),
    )
    return {bytes(sha256): str(part) for sha256, part in rows}


def keep(path: Path, source: str, parts: Mapping[bytes, str]) -> None:
    """Keep these parts; what was decided before gives way.

    Raises:
        NotAStoreError: the store is gone.
        StoreError: the store cannot be written.
    """
    with StoreWriter(path, create=False) as writer, writer.catalogue.transaction() as connection:
        connection.executemany(
            "INSERT INTO holdout (source_id, sha256, part) SELECT id, ?, ? FROM sources WHERE name = ? "
            "ON CONFLICT DO UPDATE SET part = excluded.part",
            ((sha256, part, source) for sha256, part in parts.items()),
        )
