"""The files that a sweep writes, below the folder ``runs`` of the store."""

from __future__ import annotations

import os
import uuid
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file aside, flush it, and rename it into its place.

    Raises:
        OSError: it cannot be written; nothing is left of it then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def free_stem(folder: Path) -> str:
    """``sweep-`` and the time in UTC, and a number where another sweep ended in the same second."""
    stem = name = datetime.now(timezone.utc).strftime("sweep-%Y%m%dT%H%M%SZ")
    number = 1
    while (folder / f"{name}.json").exists():
        number += 1
        name = f"{stem}-{number}"
    return name
