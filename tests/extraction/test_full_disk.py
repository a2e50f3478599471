"""A disk that is really full: the run stops with what is sealed intact, and says how much room is needed."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

import featcache as fc
from featcache.backbones import tiny_backbone
from featcache.core import failpoints
from featcache.core.progress import Silent
from featcache.store import writer
from tests.small_disk import IN_A_NAMESPACE, skip_where_there_is_none

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]

SCRIPT = """
import json, subprocess, sys
from pathlib import Path
import featcache as fc
from featcache.backbones import tiny_backbone
from featcache.core.errors import DiskFullError
from featcache.store import writer

photos = Path(sys.argv[1])
writer.SEAL_SECONDS = 0.0

def mount(disk, *options):
    subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(disk)], check=True)

def run(disk, size):
    store = disk / "s.fcache"

    def extract():
        config = fc.ExtractionConfig(batch_size=4)
        return fc.extract(
            photos, store, backbone=tiny_backbone(), layers=["stem:none"], config=config, progress=False
        )

    disk.mkdir()
    mount(disk, "size=" + size)
    try:
        extract()
        message = None
    except DiskFullError as error:
        message = str(error)
    found = {"message": message}
    if (store / "catalog.sqlite").exists() and (store / "catalog.sqlite").stat().st_size:
        report = fc.verify(store, progress=False)
        opened = fc.open(store)
        left = sorted(p.name for p in (store / "tmp").glob("*/*.h5"))
        found |= {"ok": report.ok, "unnamed": report.unnamed, "rows": report.rows, "left": left}
    mount(disk, "remount", "size=64m")
    again = extract()
    vectors = fc.open(store).arrays(layers="stem:none")[0]
    return found | {"computed": again.computed, "whole": fc.verify(store, progress=False).ok, "n": len(vectors)}

print(json.dumps({size: run(Path(sys.argv[2]) / size, size) for size in sys.argv[3:]}))
"""


@pytest.fixture(scope="module")
def can_mount() -> None:
    skip_where_there_is_none()


def run(photos: Path, disks: Path, *sizes: str) -> dict[str, dict[str, object]]:
    """What came of an extraction onto a disk of each size, one after the other in one process."""
    disks.mkdir()
    words = [*IN_A_NAMESPACE, sys.executable, "-c", textwrap.dedent(SCRIPT), str(photos), str(disks), *sizes]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, object]] = json.loads(done.stdout)
    return found


def test_full_in_the_middle(can_mount: None, tmp_path: Path, draw_images: Callable[..., Path]) -> None:
    photos = draw_images(tmp_path / "photos", each=60)
    found = run(photos, tmp_path / "disks", "512k")["512k"]
    message = str(found["message"])
    assert "no room is left on its disk" in message
    assert f"What was sealed is kept ({found['rows']:,} images of this run)" in message
    assert "MB more" in message
    assert "run the same command again" in message
    assert found["ok"]
    assert found["unnamed"] == []
    assert found["left"] == []
    assert 4 <= found["rows"] < 120
    # The last shard may have been written when its transaction found no room: the next run adopts it.
    assert found["computed"] in (120 - found["rows"], 120 - found["rows"] - 4)
    assert found["whole"]
    assert found["n"] == 120


def test_a_disk_too_full_to_merge_shards_fails_no_run_that_is_done(
    tmp_path: Path, draw_images: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    class Listener(Silent):
        def note(self, text: str) -> None:
            told.append(text)

    def fill_up(point: str) -> None:
        if point == "compact: file written":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(writer, "SEAL_SECONDS", 0.0)
    monkeypatch.setattr(failpoints, "on_reach", fill_up)
    photos, store = draw_images(tmp_path / "photos"), tmp_path / "s.fcache"
    report = fc.extract(
        photos, store, backbone=tiny_backbone(), config=fc.ExtractionConfig(batch_size=2), progress=Listener()
    )
    assert report.computed == 24
    assert [text for text in told if "not merged" in text and "no room" in text and "featcache compact" in text]
    monkeypatch.setattr(failpoints, "on_reach", None)
    assert len(fc.open(store).arrays()[0]) == 24
    assert fc.compact(store, progress=False).shards_after == 1
    assert fc.verify(store, progress=False).ok


SIZES = ("4k", "16k", "64k", "100k", "160k")


@pytest.fixture(scope="module")
def on_small_disks(
    can_mount: None, tmp_path_factory: pytest.TempPathFactory, draw_images: Callable[..., Path]
) -> dict[str, dict[str, object]]:
    """What came of 8 images on a disk of each size."""
    folder = tmp_path_factory.mktemp("small")
    return run(draw_images(folder / "photos", each=4), folder / "disks", *SIZES)


@pytest.mark.parametrize("size", SIZES)
def test_full_from_the_beginning(on_small_disks: dict[str, dict[str, object]], size: str) -> None:
    found = on_small_disks[size]
    assert found["message"] is None or "no room is left" in str(found["message"])
    assert found.get("ok", True)
    assert found["whole"]
    assert found["n"] == 8
