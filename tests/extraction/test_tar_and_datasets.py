"""Extraction from tar files and from datasets given in Python."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

import featcache as fc
from featcache.backbones import Backbone, tiny_backbone
from featcache.core.errors import UnusableImageError
from featcache.core.progress import Silent
from featcache.images.tar import TarSource
from tests.images.making_datasets import ImageFeature, Pairs, Table
from tests.images.tars import image_bytes, write_tar

if TYPE_CHECKING:
    from featcache.extraction import ExtractReport
    from featcache.images.entry import Entry


@pytest.fixture(scope="module")
def net() -> Backbone:
    return tiny_backbone()


def extract(source: Any, store: Path, net: Backbone, **options: Any) -> ExtractReport:
    return fc.extract(source, store, backbone=net, progress=False, **options)


def members(count: int = 8) -> list[tuple[str, bytes | str]]:
    found: list[tuple[str, bytes | str]] = []
    for i in range(count):
        found += [(f"{i:02}.png", image_bytes(i)), (f"{i:02}.cls", b"cat" if i % 2 else b"dog")]
    return found


def test_a_tar_gives_the_vectors_of_its_files(tmp_path: Path, net: Backbone) -> None:
    for i in range(8):
        (tmp_path / "files").mkdir(exist_ok=True)
        (tmp_path / "files" / f"{i:02}.png").write_bytes(image_bytes(i))
    write_tar(tmp_path / "a.tar", members())
    store = tmp_path / "s.fcache"
    report = extract(tmp_path / "a.tar", store, net)
    assert (report.items, report.computed, report.quarantined) == (8, 8, 0)
    X, y, items = fc.open(store).arrays()
    assert [item.uri for item in items] == [f"a.tar/{i:02}.png" for i in range(8)]
    assert list(y) == ["dog", "cat"] * 4
    again = extract(tmp_path / "files", store, net)
    assert (again.computed, again.reused) == (0, 8)
    np.testing.assert_array_equal(fc.open(store).arrays(source="files")[0], X)


class Slow(TarSource):
    """Lists nothing before a person is told that it is being listed."""

    def __init__(self, tar: Path, told: threading.Event) -> None:
        super().__init__([tar], name="a")
        self.told = told

    def entries(self) -> list[Entry]:
        assert self.told.wait(30)
        return super().entries()


class Phases(Silent):
    def __init__(self) -> None:
        self.calls: list[str] = []
        self.listing = threading.Event()

    def start(self, what: str, total: int | None, unit: str) -> None:
        self.calls.append(what)
        self.listing.set()

    def finish(self) -> None:
        self.calls.append("finish")


def test_a_long_listing_is_told(tmp_path: Path, net: Backbone) -> None:
    shown = Phases()
    source = Slow(write_tar(tmp_path / "a.tar", members()), shown.listing)
    report = fc.extract(source, tmp_path / "s.fcache", backbone=net, progress=shown)
    assert report.computed == 8
    assert shown.calls[:3] == ["list", "finish", "extract"]


def test_of_an_unchanged_tar_no_image_is_read(tmp_path: Path, net: Backbone) -> None:
    path = write_tar(tmp_path / "a.tar", members())
    store = tmp_path / "s.fcache"
    opened: list[str] = []
    sys.addaudithook(lambda event, args: opened.append(event) if event == "open" and args[0] == str(path) else None)
    time.sleep(2.1)  # what was written a moment ago is read again
    extract(path, store, net)
    listing = len(opened) - 8
    opened.clear()
    report = extract(path, store, net)
    assert (report.computed, report.reused, report.quarantined) == (0, 8, 0)
    assert len(opened) == listing


def test_of_a_tar_that_was_cut_off_nothing_is_forgotten(tmp_path: Path, net: Backbone) -> None:
    path = write_tar(tmp_path / "a.tar", members())
    whole = path.read_bytes()
    store = tmp_path / "s.fcache"
    extract(path, store, net)
    path.write_bytes(whole[: len(whole) // 3])
    report = extract(path, store, net)
    assert report.removed == 0
    assert report.computed == 0
    reasons = dict(report.quarantine)
    assert "cut off" in reasons["a.tar"]
    assert len(fc.open(store).items()) >= 7
    with pytest.raises(UnusableImageError, match="cut off"):
        extract(path, tmp_path / "t.fcache", net, config=fc.ExtractionConfig(strict=True))
    path.write_bytes(whole)
    report = extract(path, store, net)
    assert (report.computed, report.quarantined, report.items) == (0, 0, 8)
    write_tar(path, members(4))
    assert extract(path, store, net).removed == 4


@pytest.mark.parametrize("named", ["train-{000..001}.tar", "train-00[01].tar", "train-001.tar"])
def test_of_tars_that_are_not_named_nothing_is_forgotten(tmp_path: Path, net: Backbone, named: str) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    for i in range(3):
        inside: list[tuple[str, bytes | str]] = [("a.png", image_bytes(2 * i)), ("b.png", image_bytes(2 * i + 1))]
        write_tar(shards / f"train-{i:03}.tar", [*inside, ("bad.png", b"no image")])
    store = tmp_path / "s.fcache"
    assert extract(shards / "train-{000..002}.tar", store, net, name="shards").quarantined == 3
    write_tar(shards / "train-001.tar", [("a.png", image_bytes(2))])
    (shards / "train-002.tar").unlink()  # whoever extracts in portions may have no room for all
    assert extract(shards / named, store, net, name="shards").removed == 1
    kept = [f"train-000.tar/{name}.png" for name in ("a", "b", "bad")]
    missing = [f"train-002.tar/{name}.png" for name in ("a", "b", "bad")]
    assert [item.uri for item in fc.open(store).items()] == [*kept, "train-001.tar/a.png", *missing]
    assert [uri for uri, _ in fc.open(store).quarantine()] == [kept[2], missing[2]]
    assert extract(shards, store, net).removed == 2  # the folder is all there is
    assert [uri for uri, _ in fc.open(store).quarantine()] == [kept[2]]


def test_one_shard_and_all_of_them_are_one_source(tmp_path: Path, net: Backbone) -> None:
    (tmp_path / "shards").mkdir()
    for i in range(2):
        write_tar(tmp_path / "shards" / f"train-{i:03}.tar", members()[8 * i : 8 * i + 8])
    store = tmp_path / "s.fcache"
    extract(tmp_path / "shards", store, net)
    report = extract(tmp_path / "shards" / "train-000.tar", store, net)
    assert (report.computed, report.reused, report.removed) == (0, 4, 0)
    assert list(fc.open(store).sources()) == ["shards"]
    assert len(fc.open(store).items()) == 8


def test_a_second_source_of_the_same_images_is_told(
    tmp_path: Path, net: Backbone, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "shards").mkdir()
    write_tar(tmp_path / "shards" / "pets.tar", members())
    write_tar(tmp_path / "shards" / "cars.tar", [("a.png", image_bytes(50))])
    store = tmp_path / "s.fcache"
    for source, said in (("pets.tar", ""), ("cars.tar", ""), ("", "8 images of shards are also in the source pets")):
        fc.extract(tmp_path / "shards" / source, store, backbone=net, progress=True)
        assert ("are also in the source" in (told := capsys.readouterr().err)) == bool(said)
        assert said in told
    assert "--name pets" in told
    fc.extract(tmp_path / "shards", store, backbone=net, progress=True)
    assert "are also in the source" not in capsys.readouterr().err


def test_a_dataset_of_images(tmp_path: Path, net: Backbone) -> None:
    pictures = [np.random.default_rng(i).integers(0, 256, (20, 30, 3), dtype=np.uint8) for i in range(6)]
    dataset = Pairs([(Image.fromarray(p), i % 3) for i, p in enumerate(pictures)], classes=["a", "b", "c"])
    store = tmp_path / "s.fcache"
    report = extract(dataset, store, net, name="six")
    assert (report.items, report.computed) == (6, 6)
    X, y, items = fc.open(store).arrays()
    assert [item.uri for item in items] == [f"{i:08}" for i in range(6)]
    assert list(y) == ["a", "b", "c"] * 2
    layers = net.resolve_layers(["pooled"])
    expected = net.forward(np.stack([net.prepare(Image.fromarray(p)) for p in pictures]), layers)["pooled"]
    np.testing.assert_allclose(X, expected, rtol=1e-4, atol=1e-6)
    again = extract(dataset, store, net, name="six")
    assert (again.computed, again.reused, again.removed) == (0, 6, 0)
    assert fc.gc(store).doubtful == []


def test_a_table_gives_the_vectors_of_its_files(tmp_path: Path, net: Backbone) -> None:
    (tmp_path / "files").mkdir()
    rows = []
    for i in range(6):
        path = tmp_path / "files" / f"{i}.png"
        path.write_bytes(image_bytes(i))
        rows.append({"image": {"bytes": None, "path": str(path)} if i % 2 else {"bytes": image_bytes(i), "path": None}})
    store = tmp_path / "s.fcache"
    extract(tmp_path / "files", store, net)
    report = extract({"train": Table(rows, {"image": ImageFeature()})}, store, net, name="table", split="0.5/0.5")
    assert (report.items, report.computed, report.reused) == (6, 0, 6)


def test_one_bad_item_does_not_stop_a_dataset(tmp_path: Path, net: Backbone) -> None:
    good = Image.fromarray(np.zeros((20, 30, 3), np.uint8))
    report = extract(Pairs([(good, 0), ("no image", 1), (None, 0)]), tmp_path / "s.fcache", net, name="some")
    assert (report.computed, report.quarantined) == (1, 2)
    assert "gives a str" in dict(report.quarantine)["00000001"]
    rows: list[dict[str, Any]] = [{"image": None}, {"image": {"bytes": b"", "path": None}}]
    rows.append({"image": {"bytes": image_bytes(0), "path": "x"}})
    report = extract(Table(rows, {"image": ImageFeature()}), tmp_path / "t.fcache", net, name="table")
    assert (report.computed, report.quarantined) == (1, 2)


class Own:
    """A dataset of 6 images that fails at some places, as one does whose files are damaged."""

    def __init__(self, failing: dict[int, BaseException], targets: list[int] | None = None) -> None:
        self.failing = failing
        if targets is not None:
            self.targets = targets

    def __len__(self) -> int:
        return 6

    def __getitem__(self, place: int) -> tuple[Image.Image, int]:
        if place in self.failing:
            raise self.failing[place]
        return Image.fromarray(np.full((20, 30, 3), 40 * place, np.uint8)), place % 2


@pytest.mark.parametrize("targets", [None, [0, 1] * 3])
def test_whatever_an_item_raises_the_others_are_used(tmp_path: Path, net: Backbone, targets: list[int] | None) -> None:
    store, failing = tmp_path / "s.fcache", {3: OSError("image file is truncated"), 4: MemoryError()}
    for _ in range(2):
        report = extract(Own(failing, targets), store, net, name="own")
        assert report.computed + report.reused == 4
        assert dict(report.quarantine) == {
            "00000003": "the dataset fails: OSError('image file is truncated')",
            "00000004": "there was not enough memory to load it",
        }
    assert set(fc.open(store).arrays()[1]) == {"0", "1"}
    mended = extract(Own({}, targets), store, net, name="own")
    assert (mended.computed, mended.reused, mended.quarantined) == (2, 4, 0)
    assert list(fc.open(store).arrays()[1]) == ["0", "1"] * 3


def test_an_item_that_exits_does_not_end_the_run(tmp_path: Path, net: Backbone) -> None:
    report = extract(Own({2: SystemExit(3)}, [0, 1] * 3), tmp_path / "s.fcache", net, name="own")
    assert report.computed == 5
    assert report.quarantine == [("00000002", "the source fails: SystemExit(3)")]


@pytest.mark.parametrize("kind", ["pairs", "table"])
def test_an_item_that_hangs_takes_no_other_with_it(tmp_path: Path, net: Backbone, kind: str) -> None:
    gate = threading.Event()

    def slow(i: int) -> None:
        if i == 5:
            gate.wait(60)

    class SlowTable(Table):
        def select_columns(self, columns: list[str]) -> Table:
            return SlowTable(self.rows, super().select_columns(columns).features)

        def __getitem__(self, key: int | str) -> Any:
            if isinstance(key, int):
                slow(key)
            return super().__getitem__(key)

        def with_format(self, kind: str | None) -> Table:
            return self

        def cast_column(self, column: str, feature: Any) -> Table:
            return SlowTable(self.rows, self.features | {column: feature})

    class SlowPairs(Pairs):
        targets = [0] * 30

        def __getitem__(self, place: int) -> tuple[Any, Any]:
            slow(place)
            return super().__getitem__(place)

    dataset: Any
    if kind == "pairs":
        dataset = SlowPairs([(Image.fromarray(np.full((20, 30, 3), 8 * i, np.uint8)), 0) for i in range(30)])
    else:
        rows = [{"image": {"bytes": image_bytes(i), "path": None}} for i in range(30)]
        dataset = SlowTable(rows, {"image": ImageFeature()})
    report = extract(
        dataset, tmp_path / "s.fcache", net, name="slow", config=fc.ExtractionConfig(image_timeout=1, workers=4)
    )
    gate.set()
    assert [uri for uri, _ in report.quarantine] == ["00000005"]
    assert report.computed == 29


def test_a_folder_with_a_loader_of_its_own_and_a_cut_off_file(tmp_path: Path, net: Backbone) -> None:
    from torchvision.datasets import ImageFolder

    for i in range(6):
        path = tmp_path / "files" / ("cats" if i % 2 else "dogs") / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((140, 130), 40 + i).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    def load(path: str) -> Image.Image:
        with Image.open(path) as image:
            return image.convert("RGB")

    dataset = ImageFolder(str(tmp_path / "files"), loader=load)
    report = extract(dataset, tmp_path / "s.fcache", net, name="own")
    assert (report.computed, report.quarantined) == (5, 1)
    assert "truncated" in report.quarantine[0][1]
