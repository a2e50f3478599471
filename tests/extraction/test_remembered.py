"""A rerun of `extract` goes on with what the store was told: labels, split, spaces, layers, views."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import featcache as fc
from featcache.backbones import Backbone, tiny_backbone
from featcache.cli.app import app
from featcache.core.errors import UsageError
from featcache.core.progress import Silent
from featcache.extraction import ExtractionInterrupted
from featcache.store.writer import StoreWriter
from tests.extraction.test_stopping import StopAfter

ROOT = Path(__file__).parents[2]


class Notes(Silent):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)


@pytest.fixture(scope="module")
def net() -> Backbone:
    return tiny_backbone()


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """Twelve images in one folder, with labels and splits in two tables beside it."""
    folder = tmp_path / "flat"
    folder.mkdir()
    labels, splits = ["path,label"], ["path,split"]
    for i in range(12):
        paint(folder / f"{i:02}.png", i)
        labels.append(f"{i:02}.png,{'ab'[i % 2]}")
        splits.append(f"{i:02}.png,{'test' if i % 3 else 'train'}")
    (tmp_path / "labels.csv").write_text("\n".join(labels))
    (tmp_path / "split.csv").write_text("\n".join(splits))
    return folder


def paint(path: Path, i: int) -> None:
    Image.new("RGB", (40, 30), (10 * i, 200 - i, 99)).save(path)


def described(store: Path) -> dict[str, tuple[str | None, str | None]]:
    return {item.uri: (item.label, item.split) for item in fc.open(store).items()}


def extract(*args: Any, **options: Any) -> list[str]:
    notes = Notes()
    fc.extract(*args, progress=notes, **options)
    return [text for text in notes.texts if not text.startswith("Convert ")]


# Labels and splits.


def test_tables_are_read_again(flat: Path, tmp_path: Path, net: Backbone) -> None:
    store = tmp_path / "s.fcache"
    fc.extract(flat, store, backbone=net, labels=tmp_path / "labels.csv", split=tmp_path / "split.csv", progress=False)
    before = described(store)
    assert None not in {value for pair in before.values() for value in pair}
    fc.extract(flat, store, backbone=net, layers=["body.0:mean"], progress=False)
    assert described(store) == before
    paint(flat / "new.png", 20)
    (flat / "00.png").unlink()  # the tables still name it
    with (tmp_path / "labels.csv").open("a") as file:
        file.write("\nnew.png,a")
    fc.extract(flat, store, backbone=net, progress=False)
    del before["00.png"]
    assert described(store) == before | {"new.png": ("a", None)}


def test_a_table_that_is_gone_is_told_and_known_images_keep_what_they_had(
    flat: Path, tmp_path: Path, net: Backbone
) -> None:
    store = tmp_path / "s.fcache"
    fc.extract(flat, store, backbone=net, labels=tmp_path / "labels.csv", split=tmp_path / "split.csv", progress=False)
    before = described(store)
    (tmp_path / "labels.csv").unlink()
    paint(flat / "new.png", 20)
    notes = extract(flat, store, backbone=net)
    assert any("labels.csv is gone" in note and "--labels" in note for note in notes)
    assert described(store) == before | {"new.png": (None, None)}


def test_labels_change_when_it_is_said(flat: Path, tmp_path: Path, net: Backbone) -> None:
    store = tmp_path / "s.fcache"
    fc.extract(flat, store, backbone=net, labels=tmp_path / "labels.csv", progress=False)
    fc.extract(flat, store, backbone=net, labels="none", progress=False)
    assert {label for label, _ in described(store).values()} == {None}
    fc.extract(flat, store, backbone=net, progress=False)
    assert {label for label, _ in described(store).values()} == {None}
    fc.extract(flat, store, backbone=net, labels=tmp_path / "labels.csv", progress=False)
    assert {label for label, _ in described(store).values()} == {"a", "b"}


@pytest.mark.parametrize("split", ["0.5/0.5", {"train": 0.5, "test": 0.5}])
def test_fractions_give_new_images_a_side_and_known_ones_keep_theirs(
    flat: Path, tmp_path: Path, net: Backbone, split: Any
) -> None:
    store = tmp_path / "s.fcache"
    fc.extract(flat, store, backbone=net, split=split, progress=False)
    before = described(store)
    for i in range(20, 29):
        paint(flat / f"0-{i}.png", i)
    fc.extract(flat, store, backbone=net, progress=False)
    after = described(store)
    assert before.items() <= after.items()
    assert {side for _, side in after.values()} == {"train", "test"}
    fc.extract(flat, store, backbone=net, split="0.9/0.1", progress=False)
    assert [side for _, side in described(store).values()].count("test") == 2


def test_a_store_of_before_keeps_labels_layers_and_views(flat: Path, tmp_path: Path, net: Backbone) -> None:
    """Its catalogue does not know what was asked for, but it shows in what it holds."""
    store = tmp_path / "s.fcache"
    options: dict[str, Any] = {"backbone": net, "progress": False}
    fc.extract(flat, store, labels=tmp_path / "labels.csv", split=tmp_path / "split.csv", views=2, **options)
    fc.extract(flat, store, layers=["body.0:none"], views=1, **options)
    before = described(store)
    with StoreWriter(store) as writer, writer.catalogue.transaction() as connection:
        connection.execute("DELETE FROM requests")
        connection.execute("UPDATE sources SET settings = '{}'")
    paint(flat / "new.png", 20)
    notes = extract(flat, store, backbone=net)
    assert any("12 images keep the label" in note for note in notes)
    assert described(store) == before | {"new.png": (None, None)}
    assert fc.open(store).arrays(layers="pooled+body.0:none", views=True)[0].shape[0] == 26


# Spaces, layers and views.


def test_a_rerun_serves_all_layers_and_views(photos: Path, tmp_path: Path, net: Backbone) -> None:
    store = tmp_path / "s.fcache"
    fc.extract(photos, store, backbone=net, progress=False)
    fc.extract(photos, store, backbone=net, layers=["body.0:mean"], progress=False)
    fc.extract(photos, store, backbone=net, views=3, progress=False)
    fc.extract(photos, store, backbone=net, layers=["body.1:mean"], progress=False)  # in all views, as the others
    paint(photos / "cats" / "new.png", 3)
    assert fc.extract(photos, store, backbone=net, progress=False).computed == 3
    opened = fc.open(store)
    assert opened.arrays(layers="pooled+body.0:mean+body.1:mean", views=True)[0].shape[0] == 75
    fc.train(store, "ridge", layers="pooled+body.0:mean+body.1:mean", progress=False)


def test_a_rerun_serves_all_spaces_and_says_so(flat: Path, tmp_path: Path) -> None:
    store = tmp_path / "s.fcache"
    plain = fc.backbones.get("bundled:efficientnet_lite0")
    fc.extract(flat, store, backbone=plain, progress=False)
    notes = extract(flat, store, backbone=plain.scaled(), layers=["blocks.1:mean"])
    assert any("one more space" in note for note in notes)
    paint(flat / "new.png", 30)
    notes = Notes()
    report = fc.extract(flat, store, progress=notes)
    assert [one.computed for one in (report, *report.others)] == [1, 1]
    assert any("2 spaces are brought up to date" in note for note in notes.texts)
    opened = fc.open(store)
    assert [sorted(space.layers) for space in opened.spaces] == [["pooled"], ["blocks.1:mean"]]
    assert [len(opened.arrays(space=space.fingerprint)[0]) for space in opened.spaces] == [13, 13]


def test_a_network_given_in_python_is_asked_for(flat: Path, tmp_path: Path, net: Backbone) -> None:
    store = tmp_path / "s.fcache"
    fc.extract(flat, store, backbone=net, progress=False)
    with pytest.raises(UsageError, match=r"backbone=.*--backbone"):
        fc.extract(flat, store, progress=False)
    fc.extract(flat, store, backbone="bundled:efficientnet_lite0", progress=False)
    paint(flat / "new.png", 30)
    notes = extract(flat, store)
    assert any("given in Python" in note for note in notes)
    spaces = fc.open(store).spaces
    assert [space.layers["pooled"].rows for space in spaces] == [12, 13]


def test_what_gc_takes_away_is_not_computed_again(photos: Path, tmp_path: Path, net: Backbone) -> None:
    store = tmp_path / "s.fcache"
    fc.extract(photos, store, backbone=net, layers=["pooled", "body.0:mean"], progress=False)
    fc.gc(store, layers="body.0:mean", apply=True)
    assert fc.extract(photos, store, backbone=net, progress=False).computed == 0
    assert list(fc.open(store).space().layers) == ["pooled"]


# What was listed and not done.


def accounted(store: Path, source: Path) -> tuple[int, int, int]:
    """Pending, done, in quarantine: together all that is listed; what is done has its vectors."""
    opened = fc.open(store)
    pending = {one.uri for one in opened.pending("photos")}
    quarantined = {uri for uri, _ in opened.quarantine("photos")}
    items = {item.uri: item.sha256 for item in opened.items()}
    done = items.keys() - quarantined
    listed = {str(p.relative_to(source)) for p in source.rglob("*") if p.is_file()}
    assert pending | done | quarantined == listed
    assert len(pending) + len(done) + len(quarantined) == len(listed)
    assert opened.has([items[uri] for uri in done]).all()
    told = opened.status()
    assert (told["pending"], told["items"], told["quarantined"]) == (len(pending), len(done), len(quarantined))
    return len(pending), len(done), len(quarantined)


def test_an_interrupted_run_is_told_until_it_is_done(photos: Path, tmp_path: Path, net: Backbone) -> None:
    (photos / "cats" / "bad.jpg").write_bytes(b"no image")
    store = tmp_path / "s.fcache"
    stop = StopAfter(9, signal.SIGINT)
    with pytest.raises(ExtractionInterrupted) as stopped:
        fc.extract(photos, store, backbone=net, config=fc.ExtractionConfig(batch_size=4), progress=stop)
    pending, done, _ = accounted(store, photos)
    assert pending > 0
    assert done == stopped.value.report.computed
    (sentence,) = [text for text in fc.open(store).incomplete() if "listed images" in text]
    assert sentence.startswith(
        f"{pending} of 25 listed images are not extracted yet: run `featcache extract {photos} -o"
    )
    assert fc.open(store).status()["pending"] == pending
    for words in (["status", str(store)], ["export", str(store), "-o", str(tmp_path / "x.h5")]):
        assert "listed images are not extracted yet" in " ".join(CliRunner().invoke(app, words).output.split())
    fc.extract(photos, store, backbone=net, progress=False)
    assert accounted(store, photos) == (0, 24, 1)
    assert fc.open(store).incomplete() == []


def test_limit_leaves_the_others_pending_and_training_says_it(photos: Path, tmp_path: Path, net: Backbone) -> None:
    store = tmp_path / "s.fcache"
    for i in range(3):
        path = photos / "birds" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        paint(path, 30 + i)
    report = fc.extract(photos, store, backbone=net, limit=2, progress=False)
    assert report.pending == 25
    fc.extract(photos, store, backbone=net, limit=18, progress=False)
    notes = Notes()
    bundle = fc.train(store, "ridge", progress=notes)
    assert any("9 of 27 listed images are not extracted yet" in note for note in notes.texts)
    for again in (
        lambda bar: fc.evaluate(bundle, store, progress=bar),
        lambda bar: fc.sweep(store, heads=["ridge"], progress=bar),
    ):
        notes = Notes()
        again(notes)
        assert any("listed images are not extracted yet" in note for note in notes.texts)
    fc.extract(photos, store, backbone=net, progress=False)
    assert fc.open(store).incomplete() == []


def test_classes_without_a_usable_image_are_named(photos: Path, tmp_path: Path, net: Backbone) -> None:
    store = tmp_path / "s.fcache"
    (photos / "torn").mkdir()
    (photos / "torn" / "0.png").write_bytes(b"")
    (photos / "torn" / "1.png").write_bytes(b"no image")
    fc.extract(photos, store, backbone=net, progress=False)
    assert fc.open(store).incomplete() == ["No image of the class 'torn' can be used: all are in quarantine."]
    shutil.rmtree(photos / "torn")
    fc.extract(photos, store, backbone=net, progress=False)
    assert fc.open(store).incomplete() == []


def test_what_one_space_lacks_is_told_of_that_space(photos: Path, tmp_path: Path, net: Backbone) -> None:
    store, other = tmp_path / "s.fcache", tiny_backbone(1)
    paint(photos / "cats" / "one.png", 40)
    (photos / "birds").mkdir()
    paint(photos / "birds" / "0.png", 41)
    fc.extract(photos, store, backbone=net, progress=False)
    fc.extract(photos, store, backbone=other, limit=2, progress=False)
    opened = fc.open(store)
    whole, part = (space.fingerprint for space in opened.spaces)
    (sentence,) = opened.incomplete()
    assert sentence.startswith(f"24 of 26 listed images lack vectors of module:tiny1 (space {part[:12]}), among them ")
    assert opened.incomplete(space=part) == [sentence]
    assert opened.incomplete(space=whole) == []
    assert sentence in CliRunner().invoke(app, ["status", str(store)]).output
    for fingerprint, said in ((whole, False), (part, True)):
        out = str(tmp_path / f"{fingerprint}.h5")
        answer = CliRunner().invoke(app, ["export", str(store), "-o", out, "--space", fingerprint])
        assert (sentence in answer.output) == said
    notes = Notes()
    fc.train(store, "ridge", space=whole, progress=notes)
    assert not any("lack" in note for note in notes.texts)
    fc.extract(photos, store, backbone=other, limit=20, progress=False)
    fc.train(store, "ridge", space=part, progress=notes)
    assert any("6 of 26 listed images lack vectors" in note for note in notes.texts)
    fc.extract(photos, store, backbone=other, progress=False)
    assert opened.incomplete() == []


def test_a_class_that_one_space_lacks_is_named(photos: Path, tmp_path: Path, net: Backbone) -> None:
    store, other = tmp_path / "s.fcache", tiny_backbone(1)
    fc.extract(photos, store, backbone=net, progress=False)
    (photos / "dogs").rename(tmp_path / "dogs")
    fc.extract(photos, store, backbone=other, progress=False)
    (tmp_path / "dogs").rename(photos / "dogs")
    fc.extract(photos, store, backbone=net, progress=False)
    (sentence,) = fc.open(store).incomplete()
    assert ", among them all of the class 'dogs': " in sentence


def test_layers_and_views_that_a_run_did_not_come_to_are_told(photos: Path, tmp_path: Path, net: Backbone) -> None:
    store = tmp_path / "s.fcache"
    fc.extract(photos, store, backbone=net, progress=False)
    fc.extract(photos, store, backbone=net, layers=["body.0:mean"], limit=4, progress=False)
    (sentence,) = fc.open(store).incomplete()
    assert sentence.startswith("20 of 24 listed images lack vectors of module:tiny0 (space ")
    assert ", body.0:mean), among them all of" not in sentence
    assert ", body.0:mean): " in sentence
    fc.extract(photos, store, backbone=net, progress=False)
    assert fc.open(store).incomplete() == []
    fc.extract(photos, store, backbone=net, layers=["pooled"], views=3, limit=4, progress=False)
    (sentence,) = fc.open(store).incomplete()
    assert ", augmented views of pooled): " in sentence
    fc.gc(store, layers="pooled", apply=True)
    assert fc.open(store).incomplete() == []


def test_what_cannot_be_computed_is_not_lacking(photos: Path, tmp_path: Path, net: Backbone) -> None:
    (photos / "cats" / "bad.png").write_bytes(b"no image")
    (photos / "torn").mkdir()
    (photos / "torn" / "0.png").write_bytes(b"no image either")
    store = tmp_path / "s.fcache"
    for backbone in (net, tiny_backbone(1)):
        fc.extract(photos, store, backbone=backbone, layers=["pooled", "body.0:mean"], progress=False)
    assert fc.open(store).incomplete() == ["No image of the class 'torn' can be used: all are in quarantine."]


def test_a_class_that_one_network_alone_cannot_use_is_named_with_its_space(
    photos: Path, tmp_path: Path, net: Backbone
) -> None:
    def fussy(image: Image.Image) -> np.ndarray:
        if image.size == (9, 9):
            raise ValueError("too small")
        return np.asarray(image.resize((16, 16)), np.float32).transpose(2, 0, 1)

    (photos / "tiny").mkdir()
    Image.new("RGB", (9, 9)).save(photos / "tiny" / "0.png")
    store = tmp_path / "s.fcache"
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    other = Backbone.from_module(module, transform=fussy, name="fussy", version="1")
    fc.extract(photos, store, backbone=net, progress=False)
    fc.extract(photos, store, backbone=other, progress=False)
    opened = fc.open(store)
    whole, part = (space.fingerprint for space in opened.spaces)
    assert opened.incomplete() == [
        f"No image of the class 'tiny' can be used by module:fussy (space {part[:12]}): all are in quarantine."
    ]
    assert opened.incomplete(space=whole) == []
    assert opened.incomplete(space=part) == ["No image of the class 'tiny' can be used: all are in quarantine."]


@pytest.mark.slow
@pytest.mark.parametrize("passes", [0, 1, 3])
@pytest.mark.parametrize("point", ["seal: file written", "seal: renamed", "seal: rows inserted", "seal: committed"])
def test_after_a_kill_all_that_is_listed_is_accounted_for(
    photos: Path, tmp_path: Path, net: Backbone, point: str, passes: int
) -> None:
    store = tmp_path / "s.fcache"
    (photos / "cats" / "bad.jpg").write_bytes(b"no image")
    code = f"""
        import os, signal, sys
        sys.path.insert(0, {str(ROOT)!r})
        import featcache as fc
        from featcache.backbones import tiny_backbone
        from featcache.core import failpoints
        from featcache.store import writer
        writer.SEAL_SECONDS = 0.0
        left = {passes}
        def kill(point):
            global left
            left -= point == {point!r}
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
        failpoints.on_reach = kill
        fc.extract({str(photos)!r}, {str(store)!r}, backbone=tiny_backbone(),
                   config=fc.ExtractionConfig(batch_size=4), progress=False)
    """
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False)
    assert ended.returncode == -signal.SIGKILL
    StoreWriter(store, create=False).close()  # adopts what was renamed
    assert fc.open(store).verify().ok
    pending, _, _ = accounted(store, photos)
    assert pending
    fc.extract(photos, store, backbone=net, progress=False)
    assert accounted(store, photos) == (0, 24, 1)
