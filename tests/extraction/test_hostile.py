"""Images that hang, vanish, change or are no files: each goes into quarantine, and the next one is processed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import featcache as fc
from featcache.backbones import Backbone, tiny_backbone
from featcache.core.errors import UnusableImageError, UsageError
from featcache.core.progress import Silent

ROOT = Path(__file__).parents[2]
LATE = "it took longer than 1 s to read and decode"


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What hanging images wait for; opened at the end of the test."""
    opened = threading.Event()
    yield opened
    opened.set()


@pytest.fixture
def net(gate: threading.Event) -> Backbone:
    """A backbone whose transform hangs on images 77 pixels wide until the gate opens."""

    def transform(image: Image.Image) -> torch.Tensor:
        if image.width == 77:
            gate.wait(600)
        return torch.from_numpy(np.asarray(image.resize((32, 32)), np.float32)).permute(2, 0, 1) / 255

    module = tiny_backbone().module
    return Backbone.from_module(module, transform=transform, name="slow", version="1", input_size=(32, 32))


def hang(path: Path, level: int = 0) -> Path:
    """Put an image there that the transform hangs on."""
    Image.new("RGB", (77, 50), (level, 0, 0)).save(path)
    return path


def state(store: Path) -> tuple[int, set[str]]:
    """How many images have vectors, and the URIs in quarantine; the store is sound."""
    opened = fc.open(store)
    assert opened.verify().ok
    return len(opened.arrays()[0]), {uri for uri, _ in opened.quarantine()}


def test_an_image_that_hangs_goes_to_quarantine_and_the_next_run_tries_it_again(
    photos: Path, tmp_path: Path, net: Backbone, gate: threading.Event
) -> None:
    hang(photos / "cats" / "aa.png")
    store = tmp_path / "s.fcache"
    report = fc.extract(photos, store, backbone=net, config=fc.ExtractionConfig(image_timeout=1), progress=False)
    assert (report.computed, report.quarantined, report.added) == (24, 1, 24)
    assert report.quarantine == [("cats/aa.png", LATE)]
    assert state(store) == (24, {"cats/aa.png"})
    time.sleep(2.1)  # from now on the file's times say that it is the same
    again = fc.extract(photos, store, backbone=net, config=fc.ExtractionConfig(image_timeout=1), progress=False)
    assert (again.computed, again.reused, again.quarantine) == (0, 24, [("cats/aa.png", LATE)])
    gate.set()
    mended = fc.extract(photos, store, backbone=net, config=fc.ExtractionConfig(image_timeout=60), progress=False)
    assert (mended.computed, mended.reused, mended.quarantined) == (1, 24, 0)
    assert state(store) == (25, set())


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 5])
def test_several_that_hang_in_a_row_with_two_workers(photos: Path, tmp_path: Path, net: Backbone, count: int) -> None:
    bad = {f"cats/aa-{i}.png" for i in range(count)}
    for i, uri in enumerate(sorted(bad)):
        hang(photos / uri, i)
    report = fc.extract(
        photos,
        tmp_path / "s.fcache",
        backbone=net,
        config=fc.ExtractionConfig(image_timeout=1, workers=2, batch_size=2),
        progress=False,
    )
    assert (report.computed, report.quarantined) == (24, count)
    assert dict(report.quarantine) == dict.fromkeys(bad, LATE)
    assert state(tmp_path / "s.fcache") == (24, bad)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2, 8])
def test_a_copy_of_an_image_that_hangs_is_not_taken_for_done(
    photos: Path, tmp_path: Path, net: Backbone, gate: threading.Event, workers: int
) -> None:
    first = hang(photos / "cats" / "aa.png")
    for other in ("cats/ab.png", "cats/zz.png", "dogs/zz.png"):
        shutil.copy(first, photos / other)
    bad = {"cats/aa.png", "cats/ab.png", "cats/zz.png", "dogs/zz.png"}
    store = tmp_path / "s.fcache"
    report = fc.extract(
        photos, store, backbone=net, config=fc.ExtractionConfig(image_timeout=1, workers=workers), progress=False
    )
    assert (report.computed, report.reused, report.quarantined) == (24, 0, 4)
    assert dict(report.quarantine) == dict.fromkeys(bad, LATE)
    assert state(store) == (24, bad)
    gate.set()
    mended = fc.extract(photos, store, backbone=net, progress=False)
    assert (mended.computed, mended.quarantined) == (1, 0)
    assert state(store) == (28, set())


@pytest.mark.slow
def test_an_image_given_up_while_its_bytes_are_read_claims_them_for_nobody(
    photos: Path, tmp_path: Path, net: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It wakes up before its copies are read; were they taken for copies of one that is done, they would be lost."""
    really = os.stat
    woken, given_up = threading.Event(), threading.Event()

    def slow_disk(path: object, *rest: object, **more: object) -> os.stat_result:
        if str(path).endswith("aa.png"):
            given_up.wait(600)
            threading.Timer(0.5, woken.set).start()  # by then it has been read, hashed, and has tried to claim
        if str(path).endswith("zz.png"):
            given_up.set()  # with one worker this is read only when another thread took the first one's place
            woken.wait(600)
        return really(path, *rest, **more)  # type: ignore[arg-type]

    Image.new("RGB", (30, 30), (1, 2, 3)).save(photos / "cats" / "aa.png")
    shutil.copy(photos / "cats" / "aa.png", photos / "dogs" / "zz.png")
    monkeypatch.setattr(os, "stat", slow_disk)
    config = fc.ExtractionConfig(image_timeout=1, workers=1)
    report = fc.extract(photos, tmp_path / "s.fcache", backbone=net, config=config, progress=False)
    assert (report.computed, report.reused, report.quarantine) == (25, 0, [("cats/aa.png", LATE)])
    assert state(tmp_path / "s.fcache") == (25, {"cats/aa.png"})
    mended = fc.extract(photos, tmp_path / "s.fcache", backbone=net, progress=False)
    assert (mended.computed, mended.quarantined) == (0, 0)
    assert state(tmp_path / "s.fcache") == (26, set())


def test_strict_does_not_wait_for_it(photos: Path, tmp_path: Path, net: Backbone) -> None:
    hang(photos / "cats" / "aa.png")
    with pytest.raises(UnusableImageError, match=r"aa\.png: it took longer than 1 s"):
        fc.extract(
            photos,
            tmp_path / "s.fcache",
            backbone=net,
            config=fc.ExtractionConfig(image_timeout=1, strict=True),
            progress=False,
        )


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_a_time_out_that_is_none(seconds: float) -> None:
    with pytest.raises(UsageError, match="above 0"):
        fc.ExtractionConfig(image_timeout=seconds)


@pytest.mark.parametrize(("option", "number"), [("workers", -3), ("workers", 0), ("batch_size", 0), ("batch_size", -1)])
def test_numbers_that_are_none(option: str, number: int) -> None:
    with pytest.raises(UsageError, match=rf"{option} is a whole number .*not {number}\."):
        fc.ExtractionConfig(**{option: number})  # type: ignore[arg-type]


def test_a_limit_of_none(photos: Path, tmp_path: Path, net: Backbone) -> None:
    with pytest.raises(UsageError, match=r"limit is a whole number .*not 0\."):
        fc.extract(photos, tmp_path / "s.fcache", backbone=net, limit=0, progress=False)
    assert not (tmp_path / "s.fcache").exists()


def test_the_time_out_is_part_of_no_recipe(photos: Path, tmp_path: Path, net: Backbone) -> None:
    fc.extract(
        photos, tmp_path / "s.fcache", backbone=net, config=fc.ExtractionConfig(image_timeout=20), progress=False
    )
    report = fc.extract(
        photos,
        tmp_path / "s.fcache",
        backbone=net,
        config=fc.ExtractionConfig(image_timeout=float("inf")),
        progress=False,
    )
    assert (report.computed, report.reused) == (0, 24)


def test_a_transform_that_ends_the_process_does_not(photos: Path, tmp_path: Path) -> None:
    Image.new("RGB", (77, 50)).save(photos / "cats" / "aa.png")

    def transform(image: Image.Image) -> torch.Tensor:
        if image.width == 77:
            sys.exit("no")
        return torch.zeros(3, 32, 32)

    module = tiny_backbone().module
    net = Backbone.from_module(module, transform=transform, name="exits", version="1", input_size=(32, 32))
    report = fc.extract(photos, tmp_path / "s.fcache", backbone=net, progress=False)
    assert (report.computed, report.quarantined) == (24, 1)
    assert "SystemExit('no')" in report.quarantine[0][1]


SLEEPS = """
    import sys, threading, time
    import numpy as np, torch
    import featcache as fc
    from featcache.backbones import Backbone, tiny_backbone

    def transform(image):
        if image.width == 77:
            print("hangs", flush=True)
            time.sleep(600)
        return torch.from_numpy(np.asarray(image.resize((32, 32)), np.float32)).permute(2, 0, 1) / 255

    net = Backbone.from_module(
        tiny_backbone().module, transform=transform, name="slow", version="1", input_size=(32, 32)
    )
    timeout = float(sys.argv[3])
    config = fc.ExtractionConfig(image_timeout=timeout)
    report = fc.extract(sys.argv[1], sys.argv[2], backbone=net, config=config, progress=False)
    asleep = [t for t in threading.enumerate() if t.name == "featcache-read"]
    print(report.computed, report.quarantined, len(asleep), flush=True)
"""


def sleeper(photos: Path, store: Path, seconds: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SLEEPS), str(photos), str(store), str(seconds)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip


@pytest.mark.slow
def test_the_process_ends_although_a_thread_sleeps_for_ten_minutes(photos: Path, tmp_path: Path) -> None:
    hang(photos / "cats" / "aa.png")
    with sleeper(photos, tmp_path / "s.fcache", 1) as process:
        out, errors = process.communicate(timeout=120)
    assert (process.returncode, out.split(), errors) == (0, ["hangs", "24", "1", "1"], "")
    assert state(tmp_path / "s.fcache") == (24, {"cats/aa.png"})


@pytest.mark.slow
def test_ctrl_c_does_not_wait_for_it_either(photos: Path, tmp_path: Path) -> None:
    hang(photos / "cats" / "zz.png")
    with sleeper(photos, tmp_path / "s.fcache", 600) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "hangs\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    assert "ExtractionInterrupted" in errors
    opened = fc.open(tmp_path / "s.fcache")
    assert opened.verify().ok
    assert opened.quarantine() == []
    report = fc.extract(photos / "dogs", tmp_path / "dogs.fcache", backbone=tiny_backbone(), progress=False)
    assert report.computed == 12


@pytest.mark.slow
@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="processes cannot be stopped here")
def test_the_time_in_which_the_process_was_stopped_is_not_the_images(photos: Path, tmp_path: Path) -> None:
    """Ctrl-Z, and later `fg`."""
    hang(photos / "cats" / "aa.png")
    with sleeper(photos, tmp_path / "s.fcache", 4) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "hangs\n"
        process.send_signal(signal.SIGSTOP)
        time.sleep(5)
        continued = time.monotonic()
        process.send_signal(signal.SIGCONT)
        out, _ = process.communicate(timeout=120)
    assert out.split() == ["24", "1", "1"]
    assert time.monotonic() - continued > 2


class After(Silent):
    """Does something when so many images are done."""

    def __init__(self, images: int, act: Callable[[], object]) -> None:
        self.left, self.act = images, act

    def advance(self, n: int = 1) -> None:
        self.left -= n
        if self.left == 0:
            self.act()


def test_files_that_are_replaced_or_vanish_during_the_run(photos: Path, tmp_path: Path, net: Backbone) -> None:
    def disturb() -> None:
        (photos / "dogs" / "dog-09.jpg").unlink()
        (photos / "dogs" / "dog-10.jpg").write_text("no image any more")
        (photos / "dogs" / "dog-11.jpg").unlink()
        os.mkfifo(photos / "dogs" / "dog-11.jpg")

    report = fc.extract(
        photos,
        tmp_path / "s.fcache",
        backbone=net,
        config=fc.ExtractionConfig(batch_size=2),
        progress=After(4, disturb),
    )
    reasons = dict(report.quarantine)
    assert (report.items, report.computed, report.quarantined) == (24, 21, 3)
    assert "No such file" in reasons["dogs/dog-09.jpg"]
    assert "not an image" in reasons["dogs/dog-10.jpg"]
    assert "not a regular file" in reasons["dogs/dog-11.jpg"]
    assert state(tmp_path / "s.fcache") == (21, set(reasons))


def test_a_file_that_changes_between_listing_and_reading_is_stored_as_what_was_read(
    photos: Path, tmp_path: Path, net: Backbone
) -> None:
    target, store = photos / "dogs" / "dog-11.jpg", tmp_path / "s.fcache"
    other = Image.fromarray(np.random.default_rng(5).integers(0, 256, (40, 50, 3), dtype=np.uint8))
    report = fc.extract(
        photos,
        store,
        backbone=net,
        config=fc.ExtractionConfig(batch_size=2),
        progress=After(4, lambda: other.save(target, quality=90)),
    )
    assert (report.computed, report.quarantined) == (24, 0)
    X, _, items = fc.open(store).arrays()
    place = [item.uri for item in items].index("dogs/dog-11.jpg")
    with Image.open(target) as image:
        expected = net.forward(net.prepare(image.convert("RGB"))[None], net.resolve_layers(["pooled"]))["pooled"][0]
    np.testing.assert_allclose(X[place], expected, rtol=1e-4, atol=1e-6)


def test_pipes_and_devices_named_like_images(photos: Path, tmp_path: Path, net: Backbone) -> None:
    os.mkfifo(photos / "cats" / "pipe.jpg")
    (photos / "cats" / "zero.jpg").symlink_to("/dev/zero")
    report = fc.extract(photos, tmp_path / "s.fcache", backbone=net, progress=False)
    assert (report.items, report.computed, report.quarantined, report.ignored) == (24, 24, 0, 2)
    # A table names them as images, so there they are bad ones.
    names = ["cats/cat-00.jpg", "cats/pipe.jpg", "cats/zero.jpg", "cats/cat-01.jpg"]
    (photos / "table.csv").write_text("path,label\n" + "".join(f"{name},x\n" for name in names))
    report = fc.extract(photos / "table.csv", tmp_path / "t.fcache", backbone=net, progress=False)
    assert report.computed == 2
    assert dict(report.quarantine) == dict.fromkeys(names[1:3], "it is not a regular file")
    assert state(tmp_path / "t.fcache") == (2, set(names[1:3]))


def test_a_store_is_not_a_folder_of_images(tmp_path: Path, draw_images: Callable[..., Path]) -> None:
    store = tmp_path / "s.fcache"
    fc.extract(draw_images(tmp_path / "photos", each=2), store, backbone=tiny_backbone(), progress=False)
    with pytest.raises(UsageError, match="is a store, not a folder of images"):
        fc.extract(store, tmp_path / "other.fcache", backbone=tiny_backbone(), progress=False)
    assert not (tmp_path / "other.fcache").exists()
