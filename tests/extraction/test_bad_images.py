"""What cannot be used goes into quarantine with the reason; the rest goes on."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image

import featcache as fc
from featcache.backbones import Backbone, tiny_backbone
from featcache.core.errors import SourceError, TransientImageError, UnusableImageError
from featcache.core.recipe import StandardTransform
from featcache.extraction import ExtractReport, NothingUsableError
from featcache.extraction.pipeline import ReadImage
from featcache.extraction.run import Run
from featcache.images.entry import Entry
from featcache.images.formats import READS_HEIC
from featcache.images.sources import open_source
from featcache.store import StoreWriter
from featcache.store.sources import Record, SourceRecords

if TYPE_CHECKING:
    from featcache.images.decode import Decoded


@pytest.fixture(scope="module")
def net() -> Backbone:
    return tiny_backbone()


@pytest.fixture
def mixed(photos: Path) -> Path:
    """24 good images, and one of each kind of bad file."""
    whole = (photos / "cats" / "cat-00.jpg").read_bytes()
    (photos / "cats" / "empty.jpg").write_bytes(b"")
    (photos / "cats" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (photos / "dogs" / "text.jpg").write_text("this is no image")
    os.symlink(photos / "nowhere.jpg", photos / "dogs" / "dangling.jpg")
    (photos / "dogs" / "notes.txt").write_text("ignored")
    return photos


BAD = {"cats/empty.jpg", "cats/cut.jpg", "dogs/text.jpg", "dogs/dangling.jpg"}


def test_what_cannot_be_used_is_no_item_until_it_is_mended(mixed: Path, tmp_path: Path, net: Backbone) -> None:
    """Whether or not its bytes could be read, and whether or not an equal image stands beside it."""
    shutil.copy(mixed / "dogs" / "text.jpg", mixed / "dogs" / "text-again.jpg")
    store = tmp_path / "s.fcache"
    assert fc.extract(mixed, store, backbone=net, progress=False).added == 24
    (mixed / "dogs" / "text-again.jpg").unlink()
    for path in (mixed / "dogs" / "text.jpg", mixed / "cats" / "empty.jpg"):
        Image.new("RGB", (40, 40), (len(path.name), 2, 3)).save(path)
    report = fc.extract(mixed, store, backbone=net, progress=False)
    assert (report.items, report.added, report.changed, report.removed, report.quarantined) == (28, 2, 0, 0, 2)
    status = fc.open(store).status()
    assert (status["items"], status["quarantined"]) == (26, 2)
    assert status["sources"][0]["classes"] == {"cats": 13, "dogs": 13}


def test_bad_images_are_quarantined_with_the_reason(mixed: Path, tmp_path: Path, net: Backbone) -> None:
    report = fc.extract(mixed, tmp_path / "s.fcache", backbone=net, progress=False)
    assert (report.items, report.computed, report.quarantined, report.ignored) == (28, 24, 4, 1)
    reasons = dict(report.quarantine)
    assert set(reasons) == BAD
    assert "empty" in reasons["cats/empty.jpg"]
    assert "cut off" in reasons["cats/cut.jpg"]
    assert "not an image" in reasons["dogs/text.jpg"]
    assert "cannot be read" in reasons["dogs/dangling.jpg"]
    store = fc.open(tmp_path / "s.fcache")
    assert dict(store.quarantine()) == reasons
    status = store.status()
    assert (status["items"], status["quarantined"], report.added) == (24, 4, 24)
    assert status["sources"][0]["classes"] == {"cats": 12, "dogs": 12}
    heic = f"; pi-heif {version('pi_heif')}" if READS_HEIC else ""
    # Another release of these may read what this one refuses, and tries again.
    assert set(store.catalogue.query("t", "SELECT versions FROM quarantine")) == {
        (f"featcache {version('featcache')}; pillow {version('pillow')}{heic}",)
    }
    assert len(store.arrays()[0]) == 24
    assert store.verify().ok


def test_a_second_run_still_counts_them(mixed: Path, tmp_path: Path, net: Backbone) -> None:
    fc.extract(mixed, tmp_path / "s.fcache", backbone=net, progress=False)
    report = fc.extract(mixed, tmp_path / "s.fcache", backbone=net, progress=False)
    assert (report.computed, report.reused, report.quarantined) == (0, 24, 4)
    assert {uri for uri, _ in report.quarantine} == BAD


def test_a_mended_image_leaves_the_quarantine(mixed: Path, tmp_path: Path, net: Backbone) -> None:
    fc.extract(mixed, tmp_path / "s.fcache", backbone=net, progress=False)
    Image.new("RGB", (50, 50), (200, 10, 10)).save(mixed / "dogs" / "text.jpg")
    (mixed / "dogs" / "dangling.jpg").unlink()
    report = fc.extract(mixed, tmp_path / "s.fcache", backbone=net, progress=False)
    assert (report.computed, report.quarantined) == (1, 2)
    assert {uri for uri, _ in fc.open(tmp_path / "s.fcache").quarantine()} == {"cats/empty.jpg", "cats/cut.jpg"}


def test_a_limited_run_keeps_what_it_did_not_look_at(mixed: Path, tmp_path: Path, net: Backbone) -> None:
    fc.extract(mixed, tmp_path / "s.fcache", backbone=net, progress=False)
    fc.extract(mixed, tmp_path / "s.fcache", backbone=net, limit=2, progress=False)
    assert {uri for uri, _ in fc.open(tmp_path / "s.fcache").quarantine()} == BAD


def test_a_copy_of_a_bad_image_is_bad_too(mixed: Path, tmp_path: Path, net: Backbone) -> None:
    shutil.copy(mixed / "cats" / "cut.jpg", mixed / "dogs" / "cut-too.jpg")
    report = fc.extract(mixed, tmp_path / "s.fcache", backbone=net, progress=False)
    assert report.quarantined == 5
    assert "cut off" in dict(report.quarantine)["dogs/cut-too.jpg"]


def test_what_says_little_of_the_file_is_tried_again(photos: Path, tmp_path: Path) -> None:
    """Memory that was short, a disk that was full: the files and the transform are the same in the next run."""
    shutil.copy(photos / "cats" / "cat-00.jpg", photos / "cats" / "copy.jpg")
    time.sleep(2.1)  # from now on the times of the files vouch for them
    failing = [True]

    def transform(image: Image.Image) -> torch.Tensor:
        if failing[0]:
            raise OSError("no room is left for what the transform keeps")
        return torch.from_numpy(np.asarray(image.resize((20, 20)), np.float32)).permute(2, 0, 1)

    module = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    backbone = Backbone.from_module(module, transform=transform, name="mine", version="1")
    with pytest.raises(NothingUsableError, match="no room"):
        fc.extract(photos, tmp_path / "s.fcache", backbone=backbone, progress=False)
    failing[0] = False
    report = fc.extract(photos, tmp_path / "s.fcache", backbone=backbone, progress=False)
    assert (report.computed, report.reused, report.quarantined) == (24, 1, 0)
    assert fc.open(tmp_path / "s.fcache").quarantine() == []


def test_strict_stops_and_names_the_file(mixed: Path, tmp_path: Path, net: Backbone) -> None:
    with pytest.raises(UnusableImageError, match=r"cats/cut\.jpg"):
        fc.extract(mixed, tmp_path / "s.fcache", backbone=net, config=fc.ExtractionConfig(strict=True), progress=False)
    assert fc.open(tmp_path / "s.fcache").verify().ok
    report = fc.extract(mixed, tmp_path / "s.fcache", backbone=net, progress=False)
    assert report.quarantined == 4


def test_strict_keeps_the_books_of_copies_too(mixed: Path, tmp_path: Path, net: Backbone) -> None:
    """A copy may be read before the image whose turn it is for the bytes: it is judged when the run ends."""
    with StoreWriter(tmp_path / "s.fcache") as writer:
        records, space = SourceRecords(writer.catalogue, "mixed", str(mixed)), writer.space(net.recipe)
        layers, report = net.resolve_layers(["pooled"]), ExtractReport("", "", "")
        space.declare("pooled", "0", layers[0].position)
        run = Run(net, layers, records, space, report, config=fc.ExtractionConfig(strict=True))
        copy, bad = (Entry(name, mixed / "cats" / "cut.jpg", None, None, None) for name in ("copy.jpg", "bad.jpg"))
        record = Record("copy.jpg", bytes(32), None, None, None, 1, 2, 3, 4, 5)
        run._settle(ReadImage(copy, record, duplicate=True))
        with pytest.raises(UnusableImageError, match=r"bad\.jpg"):
            run._settle(ReadImage(bad, replace(record, uri="bad.jpg"), reason="the file is cut off"))
        run.finish()
    store = fc.open(tmp_path / "s.fcache")
    assert {uri for uri, _ in store.quarantine()} == {"copy.jpg", "bad.jpg"}
    assert len(store.items()) == 2


def test_a_run_in_which_nothing_could_be_used_fails(tmp_path: Path, net: Backbone) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"x")
    with pytest.raises(NothingUsableError, match=r"a\.jpg"):
        fc.extract(tmp_path / "photos", tmp_path / "s.fcache", backbone=net, progress=False)


def test_an_empty_folder_says_what_is_looked_for(tmp_path: Path, net: Backbone) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(SourceError, match=r"\.jpg"):
        fc.extract(tmp_path / "photos", tmp_path / "s.fcache", backbone=net, progress=False)
    assert not (tmp_path / "s.fcache").exists()


def test_an_image_that_vanishes_or_turns_bad_is_no_item_any_more(photos: Path, tmp_path: Path, net: Backbone) -> None:
    fc.extract(photos, tmp_path / "s.fcache", backbone=net, progress=False)
    target = photos / "cats" / "cat-00.jpg"
    target.unlink()
    os.symlink(tmp_path / "gone.jpg", target)
    report = fc.extract(photos, tmp_path / "s.fcache", backbone=net, progress=False)
    assert (report.items, report.computed, report.quarantined) == (24, 0, 1)
    assert "cats/cat-00.jpg" not in [item.uri for item in fc.open(tmp_path / "s.fcache").items()]


class NaNForDark(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean((2, 3))
        return torch.where(mean < -0.9, torch.nan, mean)


def test_a_network_that_gives_nan_for_one_image(photos: Path, tmp_path: Path) -> None:
    Image.new("RGB", (40, 40)).save(photos / "cats" / "dark.png")
    transform = StandardTransform((32,), (32, 32), "bilinear", (0.5,) * 3, (0.5,) * 3)
    net = Backbone.from_module(NaNForDark(), transform=transform, name="nan")
    report = fc.extract(photos, tmp_path / "s.fcache", backbone=net, progress=False)
    assert (report.computed, report.quarantined) == (24, 1)
    assert report.quarantine[0][0] == "cats/dark.png"
    assert "not finite" in report.quarantine[0][1]
    assert fc.open(tmp_path / "s.fcache").verify().ok
    again = fc.extract(photos, tmp_path / "s.fcache", backbone=net, progress=False)
    assert (again.computed, again.quarantined) == (0, 1)


def test_a_transform_that_fails_or_changes_its_shape(photos: Path, tmp_path: Path, net: Backbone) -> None:
    Image.new("RGB", (40, 41)).save(photos / "cats" / "other-size.png")
    Image.new("RGB", (1, 1)).save(photos / "cats" / "tiny.png")

    def odd(image: Image.Image) -> torch.Tensor:
        if image.size == (1, 1):
            raise ZeroDivisionError("too small for me")
        size = (30, 30) if image.size == (40, 41) else (32, 32)
        return torch.from_numpy(np.asarray(image.resize(size), np.float32)).permute(2, 0, 1) / 255

    mine = Backbone.from_module(net.module, transform=odd, name="odd", version="1", input_size=(32, 32))
    report = fc.extract(photos, tmp_path / "s.fcache", backbone=mine, progress=False)
    reasons = dict(report.quarantine)
    assert report.computed == 24
    assert "too small for me" in reasons["cats/tiny.png"]
    assert "shape (3, 30, 30)" in reasons["cats/other-size.png"]


def test_an_image_of_absurd_shape_is_one_like_others(photos: Path, tmp_path: Path, net: Backbone) -> None:
    Image.new("1", (60_000_000, 1)).save(photos / "cats" / "horizon.png")
    report = fc.extract(photos, tmp_path / "s.fcache", backbone=net, progress=False)
    assert (report.computed, report.quarantined) == (25, 0)


class Choosy:
    """A backbone that refuses images for reasons of its own."""

    def __init__(self, inner: Backbone, refuse: UnusableImageError | None, conditions: str = "") -> None:
        self.inner, self.refuse, self.quarantine_key = inner, refuse, conditions
        self.name, self.recipe, self.resolve_layers = inner.name, inner.recipe, inner.resolve_layers
        self.load, self.decode, self.forward = inner.load, inner.decode, inner.forward
        self.seen: set[bytes | None] = set()

    def prepare(self, image: Image.Image | Decoded, sha256: bytes | None = None) -> np.ndarray:
        self.seen.add(sha256)
        if self.refuse is not None:
            raise self.refuse
        return self.inner.prepare(image)


@pytest.fixture
def settled(photos: Path) -> Path:
    time.sleep(2.1)  # from now on the times of the files vouch for them
    return photos


def test_whoever_prepares_an_image_knows_its_hash(photos: Path, tmp_path: Path, net: Backbone) -> None:
    choosy = Choosy(net, None)
    fc.extract(photos, tmp_path / "s.fcache", backbone=choosy, progress=False)
    assert choosy.seen == {item.sha256 for item in fc.open(tmp_path / "s.fcache").items()}


def test_other_conditions_try_again_what_is_in_quarantine(settled: Path, tmp_path: Path, net: Backbone) -> None:
    refused = UnusableImageError("it shows nobody")
    with pytest.raises(NothingUsableError, match="it shows nobody"):
        fc.extract(settled, tmp_path / "s.fcache", backbone=Choosy(net, refused), progress=False)
    again = Choosy(net, None)
    with pytest.raises(NothingUsableError, match="it shows nobody"):
        fc.extract(settled, tmp_path / "s.fcache", backbone=again, progress=False)
    assert not again.seen
    report = fc.extract(settled, tmp_path / "s.fcache", backbone=Choosy(net, None, "nobody will do"), progress=False)
    assert (report.computed, report.quarantined) == (24, 0)
    assert fc.open(tmp_path / "s.fcache").quarantine() == []


def test_a_reason_that_may_pass_is_tried_again(settled: Path, tmp_path: Path, net: Backbone) -> None:
    with pytest.raises(NothingUsableError, match="not now"):
        fc.extract(settled, tmp_path / "s.fcache", backbone=Choosy(net, TransientImageError("not now")), progress=False)
    assert fc.extract(settled, tmp_path / "s.fcache", backbone=Choosy(net, None), progress=False).computed == 24


def test_a_source_that_is_open_already(photos: Path, tmp_path: Path, net: Backbone) -> None:
    source = open_source(photos, labels="none")
    assert fc.extract(source, tmp_path / "s.fcache", backbone=net, progress=False).computed == 24
    (photos / "cats" / "cat-00.jpg").unlink()
    assert fc.extract(source, tmp_path / "s.fcache", backbone=net, progress=False).removed == 1
    assert {item.label for item in fc.open(tmp_path / "s.fcache").items()} == {None}
