"""Every call that changes a file fails once, is cut short, or is the last: nothing that was stored is lost."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import featcache as fc
from tests.store import scenarios, syscalls

ROOT = Path(__file__).parents[2]
WORK = ("append", "compact", "gc", "repair")
pytestmark = pytest.mark.skipif(bool(syscalls.SUPPORTED), reason=syscalls.SUPPORTED or "supported")


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The store on which each work begins."""
    found = {}
    for work in WORK:
        path = tmp_path_factory.mktemp(work) / "s.fcache"
        scenarios.start(path)
        if work == "repair":
            scenarios.damage(path)
        found[work] = path
    return found


@pytest.fixture(scope="module")
def finished(begun: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, object]]:
    """What each work leads to when nothing fails."""
    found = {}
    for work, origin in begun.items():
        path = tmp_path_factory.mktemp(f"{work}-done") / "s.fcache"
        shutil.copytree(origin, path)
        scenarios.WORK[work](path)
        found[work] = scenarios.contents(path)
    return found


def doing(work: str, path: Path) -> Callable[[], None]:
    return lambda: scenarios.WORK[work](path)


def each_fault(
    begun: Path, tmp_path: Path, work: str, fault: Callable[[int], syscalls.Fault], step: int = 1
) -> list[tuple[Path, syscalls.Outcome]]:
    """Do the work on fresh copies, with the fault at the first call, the second … until it strikes none.

    With *step*, only at every so many calls, since each costs a tenth of a second; every work begins
    at another one.
    """
    found = []
    for at in range(1 + WORK.index(work) % step, 1000, step):
        path = tmp_path / f"{at}.fcache"
        shutil.copytree(begun, path)
        outcome = syscalls.run(doing(work, path), fault(at))
        if not outcome.struck:
            assert outcome.status == "returned", outcome.error
            assert at > 20
            return found
        found.append((path, outcome))
    raise AssertionError("the work does not end")


def sound_and_repeatable(path: Path, work: str, finished: dict[str, object]) -> None:
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


@pytest.mark.parametrize("work", WORK)
def test_killed_before_every_single_call(
    begun: dict[str, Path], finished: dict[str, dict[str, object]], tmp_path: Path, work: str
) -> None:
    for path, outcome in each_fault(begun[work], tmp_path, work, lambda at: syscalls.Fault(at, "kill")):
        assert (outcome.status, outcome.error) == ("killed", "")
        sound_and_repeatable(path, work, finished[work])


@pytest.mark.parametrize("work", WORK)
def test_a_full_disk_at_every_write(
    begun: dict[str, Path], finished: dict[str, dict[str, object]], tmp_path: Path, work: str
) -> None:
    for path, outcome in each_fault(begun[work], tmp_path, work, lambda at: syscalls.Fault(at, "error")):
        if outcome.status == "raised":
            # SQLite does not say why it cannot make its journal.
            full = "no room is left" in outcome.error
            assert full or "unable to open database file" in outcome.error, outcome
            assert outcome.error.startswith("DiskFullError: " if full else "StoreError: "), outcome
        sound_and_repeatable(path, work, finished[work])


@pytest.mark.parametrize("lasting", [False, True], ids=["once", "for good"])
@pytest.mark.parametrize("work", WORK)
def test_a_disk_that_fails_at_every_call(
    begun: dict[str, Path], finished: dict[str, dict[str, object]], tmp_path: Path, work: str, lasting: bool
) -> None:
    fault = lambda at: syscalls.Fault(at, "error", errno.EIO, lasting)  # noqa: E731
    for path, outcome in each_fault(begun[work], tmp_path, work, fault, step=3):
        if outcome.status == "raised":
            kind = outcome.error.partition(":")[0]
            assert kind in ("StoreError", "DamagedStoreError", "StoreBusyError"), outcome
        sound_and_repeatable(path, work, finished[work])


@pytest.mark.parametrize("work", WORK)
def test_a_write_that_is_cut_short_goes_on(
    begun: dict[str, Path], finished: dict[str, dict[str, object]], tmp_path: Path, work: str
) -> None:
    for path, outcome in each_fault(begun[work], tmp_path, work, lambda at: syscalls.Fault(at, "short"), 3):
        if outcome.status == "raised":
            # SQLite takes a short write for a full disk.
            assert outcome.error.startswith("DiskFullError: "), outcome
        sound_and_repeatable(path, work, finished[work])
