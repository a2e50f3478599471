"""Every call that changes a file fails once, is cut short, or is the last: nothing that was stored is lost."""

from __future__ import annotations

import errno
import multiprocessing
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from pathlib import Path

import pytest

from tests.store import sweeping, syscalls

WORK = ("append", "compact", "gc", "repair")
# A folder in memory where there is one: what a process that dies had written is the same on any disk.
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(syscalls.SUPPORTED), reason=syscalls.SUPPORTED or "supported")]


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Executor]:
    """A process that has loaded no more than a store needs."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


@pytest.fixture(scope="module")
def begun(elsewhere: Executor, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The store on which each work begins."""
    found = {work: tmp_path_factory.mktemp(work) / "s.fcache" for work in WORK}
    for work, path in found.items():
        elsewhere.submit(sweeping.begin, path, work).result()
    return found


def each_fault(
    elsewhere: Executor, begun: Path, work: str, *, step: int = 1, **fault: object
) -> list[tuple[str, str, str]]:
    """The struck calls, with status and error of the work; what they left has been looked at.

    With *step*, only every so many calls are struck, since each costs some hundredths of a second; every work begins
    at another one.
    """
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        first = 1 + WORK.index(work) % step
        sweep = elsewhere.submit(sweeping.sweep, begun, Path(folder), work, fault, first, step)
        outcomes = sweep.result()
    assert len(outcomes) > 60 / step
    return outcomes


@pytest.mark.parametrize("work", WORK)
def test_killed_before_every_single_call(elsewhere: Executor, begun: dict[str, Path], work: str) -> None:
    for _, status, error in each_fault(elsewhere, begun[work], work, kind="kill"):
        assert (status, error) == ("killed", "")
    assert elsewhere.submit(sweeping.looked_at, begun[work]).result() > 10


@pytest.mark.parametrize("work", WORK)
def test_a_full_disk_at_every_write(elsewhere: Executor, begun: dict[str, Path], work: str) -> None:
    for call, status, error in each_fault(elsewhere, begun[work], work, kind="error"):
        if status == "raised":
            # SQLite does not say why it cannot make its journal.
            full = "no room is left" in error
            assert full or "unable to open database file" in error, (call, error)
            assert error.startswith("DiskFullError: " if full else "StoreError: "), (call, error)


@pytest.mark.parametrize("lasting", [False, True], ids=["once", "for good"])
@pytest.mark.parametrize("work", WORK)
def test_a_disk_that_fails_at_every_call(elsewhere: Executor, begun: dict[str, Path], work: str, lasting: bool) -> None:
    fault = {"kind": "error", "errno": errno.EIO, "lasting": lasting}
    for call, status, error in each_fault(elsewhere, begun[work], work, step=3, **fault):
        if status == "raised":
            assert error.partition(":")[0] in ("StoreError", "DamagedStoreError", "StoreBusyError"), (call, error)


@pytest.mark.parametrize("work", WORK)
def test_a_write_that_is_cut_short_goes_on(elsewhere: Executor, begun: dict[str, Path], work: str) -> None:
    for call, status, error in each_fault(elsewhere, begun[work], work, step=3, kind="short"):
        if status == "raised":
            # SQLite takes a short write for a full disk.
            assert error.startswith("DiskFullError: "), (call, error)
