"""Activations that do not fit on the disk are refused before anything is written."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.small_disk import IN_A_NAMESPACE, skip_where_there_is_none

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]

SCRIPT = """
import json, subprocess, sys
from pathlib import Path
import featcache as fc
from featcache.backbones import tiny_backbone
from featcache.core.errors import DiskFullError
from featcache.finetuning.config import Schedule
from featcache.finetuning.finetune import activations_needed, finetune

photos, disk = Path(sys.argv[1]), Path(sys.argv[2])
store = disk / "s.fcache"

def mount(*options):
    subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(disk)], check=True)

def files():
    return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in store.rglob("*") if p.is_file()}

def run():
    config = Schedule(epochs=1, batch_size=8)
    return finetune(store, "body.0", views=40, config=config, backbone=tiny_backbone(), progress=False)

mount("size=2m")
fc.extract(photos, store, backbone=tiny_backbone(), progress=False)
before, needed = files(), activations_needed(store, "body.0", views=40, backbone=tiny_backbone())
try:
    run()
    message = None
except DiskFullError as error:
    message = str(error)
found = {"message": message, "same": files() == before, "bytes": needed.bytes, "free": needed.free}
mount("remount", "size=64m")
found["n"] = run().report["n"]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def can_mount() -> None:
    skip_where_there_is_none()


def test_too_little_room_is_told_before_anything_is_written(
    can_mount: None, tmp_path: Path, draw_images: Callable[..., Path]
) -> None:
    photos, disk = draw_images(tmp_path / "photos"), tmp_path / "disk"
    disk.mkdir()
    words = [*IN_A_NAMESPACE, sys.executable, "-c", textwrap.dedent(SCRIPT), str(photos), str(disk)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["bytes"] == 24 * 40 * 8 * 16 * 16 * 2 > found["free"]
    assert "The activations stem:none of 24 images in 40 views need 0.0 GB" not in str(found["message"])
    assert "24 images in 40 views need 3.9 MB, but" in str(found["message"])
    assert "Train fewer layers" in str(found["message"])
    assert found["same"]
    assert found["n"] == 17
