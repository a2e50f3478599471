"""The folder below ``tmp/`` in which one writer works: its lock, and the journal that speaks for it if it crashes.

The journal has one line per file that the writer is about to rename into ``shards/`` (with the file's SHA-256) or to
remove from there. A later writer that finds the lock free reads it (`featcache.store.recovery`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

_LINE = re.compile(r"(?:(seal) ([0-9a-f]{64})|(drop)) ([0-9a-f]{16})/([0-9a-f]{32})")


@dataclass(frozen=True, slots=True)
class Noted:
    """One line of a journal: a shard that was to be sealed, or, without *sha256*, to be removed."""

    folder: str
    name: str
    sha256: bytes | None


def writer_lock(folder: Path) -> FileLock:
    """The lock by which a writer shows that it lives; the system frees it when the process ends."""
    return FileLock(folder / "lock", thread_local=False)


def note_sealed(writer: Path, target: Path, sha256: bytes) -> None:
    """Note, and flush, that the file with this hash will be renamed to *target*."""
    _append(writer, [f"seal {sha256.hex()} {target.parent.name}/{target.stem}"])


def note_dropped(writer: Path, targets: list[Path]) -> None:
    """Note, and flush, that these shards will be removed once the catalogue no longer names them."""
    _append(writer, [f"drop {target.parent.name}/{target.stem}" for target in targets])


def noted(writer: Path) -> Iterator[Noted]:
    """What stands in a writer's journal; a last line that was cut off is passed over."""
    journal = writer / "journal"
    if not journal.is_file():
        return
    for line in journal.read_text("ascii", errors="replace").splitlines():
        match = _LINE.fullmatch(line)
        if match:
            _, digest, _, folder, name = match.groups()
            yield Noted(folder, name, bytes.fromhex(digest) if digest else None)


def _append(writer: Path, lines: list[str]) -> None:
    with (writer / "journal").open("a", encoding="ascii") as file:
        # A line that was cut off by a full disk must not run into this one.
        file.write("".join(f"\n{line}" for line in lines) + "\n")
        file.flush()
        os.fsync(file.fileno())
