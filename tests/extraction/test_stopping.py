"""Ctrl-C and kills: what was sealed stays, and the same call goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import featcache as fc
from featcache.backbones import Backbone, tiny_backbone
from featcache.core.progress import Silent
from featcache.extraction import ExtractionInterrupted

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def net() -> Backbone:
    return tiny_backbone()


class StopAfter(Silent):
    """Sends this process Ctrl-C when so many images were done."""

    def __init__(self, images: int, number: int) -> None:
        self.left, self.number = images, number

    def advance(self, n: int = 1) -> None:
        self.left -= n
        if self.left == 0:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_seals_and_the_next_run_goes_on(photos: Path, tmp_path: Path, net: Backbone, number: int) -> None:
    store = tmp_path / "s.fcache"
    handler = signal.getsignal(number)
    with pytest.raises(ExtractionInterrupted) as stopped:
        fc.extract(photos, store, backbone=net, config=fc.ExtractionConfig(batch_size=4), progress=StopAfter(9, number))
    done = stopped.value.report.computed
    assert 8 <= done <= 9
    assert len(fc.open(store).vectors()) == done
    assert fc.open(store).verify().ok
    assert signal.getsignal(number) is handler
    report = fc.extract(photos, store, backbone=net, progress=False)
    assert report.computed == 24 - done
    whole = tmp_path / "whole.fcache"
    fc.extract(photos, whole, backbone=net, progress=False)
    np.testing.assert_allclose(fc.open(store).arrays()[0], fc.open(whole).arrays()[0], rtol=1e-4, atol=1e-6)


SCRIPT = """
import sys
from pathlib import Path
import featcache as fc
from featcache.backbones import tiny_backbone
from featcache.store import writer
writer.SEAL_SECONDS = 0.0
class Tell:
    def start(self, what, total, unit): pass
    def advance(self, n=1): print("x", end="", flush=True)
    def note(self, text): pass
    def finish(self): pass
writer.StoreWriter.__init__.__kwdefaults__["seal_seconds"] = 0.0
config = fc.ExtractionConfig(batch_size=2, workers=2)
fc.extract(sys.argv[1], sys.argv[2], backbone=tiny_backbone(), config=config, progress=Tell())
"""


def start(photos: Path, store: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), str(photos), str(store)],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip


@pytest.mark.slow
def test_a_kill_loses_at_most_what_was_not_sealed(photos: Path, tmp_path: Path, net: Backbone) -> None:
    store = tmp_path / "s.fcache"
    with start(photos, store) as process:
        assert process.stdout is not None
        assert process.stdout.read(14) == b"x" * 14
        process.kill()
    opened = fc.open(store)
    assert opened.verify().ok
    kept = len(opened.vectors())
    assert kept >= 6  # 13 images were read: of the six batches three may still be on their way
    report = fc.extract(photos, store, backbone=net, progress=False)
    assert report.computed == 24 - kept
    whole = tmp_path / "whole.fcache"
    fc.extract(photos, whole, backbone=net, progress=False)
    np.testing.assert_allclose(fc.open(store).arrays()[0], fc.open(whole).arrays()[0], rtol=1e-4, atol=1e-6)
    assert [p for p in (store / "tmp").iterdir() if p.is_dir()] == []


@pytest.mark.slow
def test_the_same_run_twice_at_once_makes_one_store(photos: Path, tmp_path: Path) -> None:
    store = tmp_path / "s.fcache"
    both = [start(photos, store), start(photos, store)]
    for process in both:
        process.communicate(timeout=120)
    assert [process.returncode for process in both] == [0, 0]
    opened = fc.open(store)
    assert len(opened.vectors()) == 24
    assert len(opened.arrays()[0]) == 24
    assert opened.verify().ok


def test_nothing_to_do_imports_neither_torch_nor_a_head(tmp_path: Path, draw_images: Callable[..., Path]) -> None:
    photos = draw_images(tmp_path / "photos", each=2)
    fc.extract(photos, tmp_path / "s.fcache", progress=False)
    time.sleep(2.1)  # younger files would be read again, which needs no torch either
    code = """
        import sys
        import featcache as fc
        report = fc.extract(sys.argv[1], sys.argv[2], progress=False)
        fc.open(sys.argv[2]).arrays()
        assert report.computed == 0, report
        heavy = {"torch", "timm", "torchvision", "sklearn"} & sys.modules.keys()
        assert not heavy, heavy
    """
    arguments = [sys.executable, "-c", textwrap.dedent(code), str(photos), str(tmp_path / "s.fcache")]
    subprocess.run(arguments, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
