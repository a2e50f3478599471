"""A process killed at any step of any work on a store loses nothing and leaves nothing that hinders another."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import featcache as fc
from featcache.core import failpoints
from featcache.store import FeatureStore
from tests.store import scenarios

WORK = {"seal": "append", "backup": "append", "compact": "compact", "gc": "gc", "repair": "repair"}
# Checkpoints of a training, and stores of format 1, are killed in their own tests.
POINTS = [point for point in failpoints.POINTS if not point.startswith(("checkpoint", "migrate"))]
CASES = [(WORK[point.split(":")[0]], point) for point in POINTS if not point.startswith("adopt")]
# What another process left is adopted by the next writer, which may be killed in its turn.
ADOPTIONS = [
    ("append", "seal: renamed", "adopt: file checked"),
    ("append", "seal: renamed", "adopt: committed"),
    ("compact", "compact: renamed", "adopt: file checked"),
    ("compact", "compact: committed", "adopt: dropped file removed"),
    ("gc", "gc: committed", "adopt: dropped file removed"),
]


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("begun") / "s.fcache"
    scenarios.start(path)
    return path


@pytest.fixture(scope="module")
def finished(begun: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, object]]:
    """What each work leads to when nothing interrupts it."""
    found = {}
    for work, do in scenarios.WORK.items():
        path = tmp_path_factory.mktemp(work) / "s.fcache"
        shutil.copytree(begun, path)
        if work == "repair":
            scenarios.damage(path)
        do(path)
        assert fc.verify(path, progress=False).ok
        found[work] = scenarios.contents(path)
    return found


def nothing_lies_about(path: Path) -> None:
    report = fc.verify(path, progress=False)
    assert report.ok, report.damaged
    assert report.unnamed == []
    assert [p for p in (path / "tmp").iterdir() if p.is_dir()] == []
    assert len(list((path / "shards").rglob("*.h5"))) == report.shards


@pytest.mark.slow
@pytest.mark.parametrize(("work", "point"), CASES, ids=[point for _, point in CASES])
def test_killed_and_done_again(
    begun: Path, finished: dict[str, dict[str, object]], tmp_path: Path, work: str, point: str
) -> None:
    path = tmp_path / "s.fcache"
    shutil.copytree(begun, path)
    before = scenarios.contents(path)
    if work == "repair":
        scenarios.damage(path)
    assert scenarios.run(work, path, point) == -signal.SIGKILL
    if work != "repair":
        report = fc.verify(path, progress=False)
        assert report.ok, report.damaged
        assert scenarios.is_right(path)
        if work != "gc":
            held = scenarios.contents(path)
            assert before["pooled"].items() <= held["pooled"].items()
    assert scenarios.run(work, path) == 0
    assert scenarios.contents(path) == finished[work]
    assert scenarios.is_right(path)
    nothing_lies_about(path)


@pytest.mark.slow
@pytest.mark.parametrize(("work", "first", "second"), ADOPTIONS)
def test_killed_while_finishing_for_another(
    begun: Path, finished: dict[str, dict[str, object]], tmp_path: Path, work: str, first: str, second: str
) -> None:
    path = tmp_path / "s.fcache"
    shutil.copytree(begun, path)
    assert scenarios.run(work, path, first) == -signal.SIGKILL
    assert scenarios.run(work, path, second) == -signal.SIGKILL
    assert fc.verify(path, progress=False).ok
    assert scenarios.is_right(path)
    assert scenarios.run(work, path) == 0
    assert scenarios.contents(path) == finished[work]
    nothing_lies_about(path)


def test_every_point_of_the_list_is_killed_at() -> None:
    assert {point for _, point in CASES} | {second for *_, second in ADOPTIONS} == set(POINTS)


def test_the_points_cost_nothing_and_nobody_reaches_them() -> None:
    assert failpoints.on_reach is None
    words = [sys.executable, "-c", "import featcache.core.failpoints as f, os; assert f.on_reach is None"]
    assert subprocess.run(words, check=False, env={"FEATCACHE_FAILPOINTS": "1"}).returncode == 0


def test_repair_says_what_it_did(begun: Path, tmp_path: Path) -> None:
    path = tmp_path / "s.fcache"
    shutil.copytree(begun, path)
    scenarios.damage(path)
    report = fc.repair(path, progress=False)
    assert report.catalogue == "taken from the backup"
    assert [lost["reason"] for lost in report.lost] == ["its bytes are not those that were sealed"]
    assert report.rows_lost == 20
    assert report.adopted == 6
    assert {(lack["layer"], lack["images"]) for lack in report.to_compute} == {("pooled", 10), ("blocks.1:mean", 10)}
    assert sorted(p.suffix for p in (path / "damaged").iterdir()) == [".h5", ".sqlite"]
    scenarios.append(path)
    fc.repair(path, progress=False)
    assert not fc.repair(path, progress=False).changed
    assert len(FeatureStore.open(path).items()) == 35
