"""Work on a store with a fault at its first call that changes a file, at its second …, and a look at what each leaves.

`sweep` belongs into a small process: it forks at every call, and to fork a large one costs more than the work.
"""

from __future__ import annotations

import hashlib
import itertools
import shutil
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any

import featcache as fc
from featcache.core.errors import FeatcacheError
from featcache.store.catalogue import Catalogue
from tests.store import scenarios, syscalls

_seen: dict[Path, set[bytes]] = {}
_finished: dict[Path, dict[str, object]] = {}


def begin(path: Path, work: str) -> None:
    """Make the store on which the work begins, and note what the work leads to when nothing fails."""
    scenarios.start(path)
    if work == "repair":
        scenarios.damage(path)
    done = path.with_name("done.fcache")
    shutil.copytree(path, done)
    scenarios.WORK[work](done)
    _finished[path], _seen[path] = scenarios.contents(done), set()


def sweep(
    begun: Path, folder: Path, work: str, fault: dict[str, Any], first: int, step: int
) -> list[tuple[str, str, str]]:
    """Do the work on copies of a store until a fault strikes no more.

    Args:
        begun: the store, of `begin`.
        folder: where the copies go.
        work: one of `scenarios.WORK`.
        fault: of `syscalls.Fault`, all but ``at``.
        first: the first call that is struck.
        step: from one struck call to the next.

    Returns:
        For each struck call the call, and status and error of the work.
    """
    outcomes, seen = [], _seen[begun]
    path = folder / "s.fcache"

    def do() -> None:
        _repeatably()
        scenarios.WORK[work](path)

    for at in itertools.count(first, step):
        shutil.copytree(begun, path)
        outcome = syscalls.run(do, syscalls.Fault(at, **fault))
        if not outcome.struck:
            assert outcome.status == "returned", outcome.error
            return outcomes
        outcomes.append((outcome.calls[-1], outcome.status, outcome.error))
        found = _state(path)
        # What is the same to the last byte need not be looked at twice.
        if found not in seen:
            try:
                _look(path, work, _finished[begun])
            except Exception as error:
                raise AssertionError(f"after call {at}, {outcome.calls[-1]}, which {outcome.status}") from error
            seen.add(found)
        shutil.rmtree(path)
    raise AssertionError


def looked_at(begun: Path) -> int:
    """How many different states of this store were looked at."""
    return len(_seen[begun])


def _look(path: Path, work: str, finished: dict[str, object]) -> None:
    """The store is sound, and the work can be done on it again and comes to the same."""
    if work != "repair":
        report = fc.verify(path, progress=False)
        assert report.ok, report.damaged
        assert scenarios.is_right(path)
    scenarios.WORK[work](path)
    assert scenarios.contents(path) == finished
    report = fc.verify(path, progress=False)
    assert report.ok, report.damaged
    assert report.unnamed == []
    assert [p for p in (path / "tmp").iterdir() if p.is_dir()] == []


def _repeatably() -> None:
    """In a child: let names and times follow from what was done before, so that equal ends are equal bytes."""

    class Still(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Still:
            return cls(2026, 1, 1, tzinfo=tz)

    numbers = itertools.count(1)
    uuid.uuid4 = lambda: uuid.UUID(int=next(numbers) << 64, version=4)
    time.strftime = lambda predictor: "20260101-000000"
    time.time_ns = lambda: 1_767_225_600_000_000_000  # of this a shard has its number, or one more than the last one
    for name, module in list(sys.modules.items()):
        if name.startswith("featcache.store.") and getattr(module, "datetime", None) is datetime:
            module.datetime = Still


def _state(path: Path) -> bytes:
    """What the next process finds: a hash of all names and bytes, once SQLite has rolled back what was cut off.

    Of what a dead writer had not sealed only the names count: its journal is read, the rest is swept away. So it is
    with a journal of SQLite that begins with zeros: its header was still to come, and SQLite passes it over.
    """
    with suppress(FeatcacheError):
        Catalogue(path / "catalog.sqlite").close()
    total = hashlib.sha256()
    for name, data in _files(path):
        total.update(f"{name} {'folder' if data is None else len(data)} ".encode() + (data or b""))
    return total.digest()


def _files(path: Path) -> Iterator[tuple[Path, bytes | None]]:
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path)
        if file.is_dir():
            yield name, None
            continue
        data = file.read_bytes()
        unsealed = name.parts[0] == "tmp" and file.name not in ("journal", "lock")
        cold = file.name.endswith("-journal") and data.startswith(b"\0")
        yield name, b"" if unsealed or cold else data
