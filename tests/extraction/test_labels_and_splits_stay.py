"""Labels and splits stay with their images: tables that go or change, images renamed or back, stores of before."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import featcache as fc
from featcache.backbones import Backbone, tiny_backbone
from featcache.cli.app import app
from featcache.core.errors import SourceError, UsageError
from featcache.images.sources import open_source
from featcache.store.writer import StoreWriter
from tests.extraction.test_remembered import Notes
from tests.images.tars import write_tar

MOVED = fc.ExtractionConfig(moved=True)


@pytest.fixture(scope="module")
def net() -> Backbone:
    return tiny_backbone()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Six images in each of the folders a, b and c."""
    folder = tmp_path / "pets"
    for label in "abc":
        for i in range(6):
            paint(folder / label / f"{i}.png", ord(label) * 10 + i)
    return folder


def paint(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 36, 3), dtype=np.uint8)).save(path)


def table(path: Path, column: str, values: dict[str, str]) -> Path:
    path.write_text(f"path,{column}\n" + "".join(f"{uri},{value}\n" for uri, value in values.items()))
    return path


def uris(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))


def tables(folder: Path) -> dict[str, Path]:
    """A label that is not the folder's and a split for each image."""
    values = {uri: uri.split("/")[-2] for uri in uris(folder)}
    return {
        "labels": table(folder.parent / "labels.csv", "label", {uri: f"L-{name}" for uri, name in values.items()}),
        "split": table(
            folder.parent / "split.csv", "split", {uri: ("train", "test")[i % 3 == 0] for i, uri in enumerate(values)}
        ),
    }


def stored(store: Path) -> dict[str, tuple[str | None, str | None]]:
    """Label and split by name."""
    return {item.uri: (item.label, item.split) for item in fc.open(store).items()}


def by_content(store: Path) -> dict[bytes, tuple[str | None, str | None]]:
    return {item.sha256: (item.label, item.split) for item in fc.open(store).items()}


def run(source: Any, store: Path, net: Backbone, **options: Any) -> list[str]:
    notes = Notes()
    fc.extract(source, store, backbone=net, progress=notes, **options)
    return notes.texts


def told(notes: list[str], *words: str) -> bool:
    return any(all(word in note for word in words) for note in notes)


def as_of_before(store: Path) -> None:
    """Make the catalogue know nothing of what was given, as that of an earlier version."""
    with StoreWriter(store) as writer, writer.catalogue.transaction() as connection:
        connection.execute("DELETE FROM requests")
        connection.execute("UPDATE sources SET settings = '{}'")


# A table that is gone.


def test_images_that_a_lost_table_left_out_have_no_label_still(place: Path, tmp_path: Path, net: Backbone) -> None:
    store = tmp_path / "s.fcache"
    labels = table(tmp_path / "labels.csv", "label", {uri: uri[0] for uri in uris(place) if uri[0] != "c"})
    run(place, store, net, labels=labels)
    before = stored(store)
    labels.unlink()
    paint(place / "c" / "new.png", 1)
    assert told(run(place, store, net), "labels.csv is gone", "new ones get none")
    assert stored(store) == before | {"c/new.png": (None, None)}
    run(place, store, net)
    assert stored(store) == before | {"c/new.png": (None, None)}


def test_images_still_to_be_done_have_what_a_lost_table_gave_them(place: Path, tmp_path: Path, net: Backbone) -> None:
    given, store = tables(place), tmp_path / "s.fcache"
    run(place, tmp_path / "all.fcache", net, **given)
    run(place, store, net, limit=6, **given)
    for path in given.values():
        path.unlink()
    run(place, store, net, limit=9)
    run(place, store, net)
    assert stored(store) == stored(tmp_path / "all.fcache")


def test_renamed_images_and_those_that_come_back_have_what_a_lost_table_gave_them(
    place: Path, tmp_path: Path, net: Backbone
) -> None:
    given, store = tables(place), tmp_path / "s.fcache"
    run(place, store, net, **given)
    before = by_content(store)
    for path in given.values():
        path.unlink()
    (place / "a").rename(place / "z")
    (place / "b").rename(tmp_path / "b")
    assert told(run(place, store, net), "6 images are known under another name", "label and split")
    (tmp_path / "b").rename(place / "b")
    run(place, store, net)
    assert by_content(store) == before


# A table that is read again.


def test_a_table_that_fits_no_image_any_more_is_refused(place: Path, tmp_path: Path, net: Backbone) -> None:
    given, store = tables(place), tmp_path / "s.fcache"
    run(place, store, net, **given)
    before = stored(store)
    for label in "abc":
        (place / label).rename(place / f"{label}{label}")
    with pytest.raises(SourceError, match=r"labels\.csv, which an earlier run.*18 paths.*a/0\.png.*--labels again"):
        run(place, store, net)
    assert stored(store) == before
    run(place, store, net, **tables(place))
    assert set(stored(store).values()) == {
        (f"L-{name}", side) for name in ("aa", "bb", "cc") for side in ("train", "test")
    }


def test_rows_of_renamed_images_go_by_content_and_the_others_are_counted(
    place: Path, tmp_path: Path, net: Backbone
) -> None:
    given, store = tables(place), tmp_path / "s.fcache"
    run(place, store, net, **given)
    before = by_content(store)
    (place / "a").rename(place / "z")
    (place / "b" / "0.png").unlink()
    notes = run(place, store, net)
    assert told(notes, "labels.csv", "names 7 paths that are no images of the source any more", "a/0.png")
    assert told(notes, "6 images are known under another name (first: z/0.png)")
    assert len(by_content(store)) == 17
    assert by_content(store).items() <= before.items()
    notes = run(place, store, net)
    assert told(notes, "split.csv", "names 1 path that")
    fc.gc(store, apply=True)
    run(place, store, net)
    assert by_content(store).items() <= before.items()
    table(given["labels"], "label", {uri: f"M-{uri[0]}" for uri in before_uris(given["labels"])})
    run(place, store, net)
    assert {label for label, _ in by_content(store).values()} == {"M-a", "M-b", "M-c"}


def before_uris(path: Path) -> list[str]:
    return [line.split(",")[0] for line in path.read_text().splitlines()[1:]]


def test_a_root_that_moves_with_one_row_of_a_manifest_keeps_splits(tmp_path: Path, net: Backbone) -> None:
    store, folder = tmp_path / "s.fcache", tmp_path / "list"
    for i in range(6):
        paint(folder / "img" / f"{i}.png", i)
    paint(tmp_path / "other" / "x.png", 9)
    manifest = table(folder / "m.csv", "label", {f"img/{i}.png": "ab"[i % 2] for i in range(6)})
    split = table(tmp_path / "split.csv", "split", {f"img/{i}.png": ("train", "test")[i > 3] for i in range(6)})
    run(manifest, store, net, split=split)
    before = by_content(store)
    with manifest.open("a") as file:
        file.write("../other/x.png,b\n")
    with pytest.raises(UsageError, match="--moved"):
        run(manifest, store, net)
    for config in (MOVED, None):
        run(manifest, store, net, config=config)
        assert before.items() <= by_content(store).items()
        assert stored(store)["other/x.png"] == ("b", None)
    manifest.write_text("".join(manifest.read_text().splitlines(keepends=True)[:-1]))
    run(manifest, store, net, config=MOVED)
    assert by_content(store) == before


@pytest.mark.parametrize("how", ["tables", "lost tables", "fractions"])
def test_a_source_with_a_new_root_keeps_labels_and_splits(place: Path, tmp_path: Path, net: Backbone, how: str) -> None:
    """Given by the folder above, whose own labels would be others; then put elsewhere, with other names."""
    given, store = tables(place), tmp_path / "s.fcache"
    above = tmp_path / "above"
    above.mkdir()
    place = place.rename(above / "pets")
    if how == "fractions":
        given["split"] = "0.5/0.5"  # type: ignore[assignment]
    run(place, store, net, **given)
    before = by_content(store)
    if how == "lost tables":
        for path in given.values():
            path.unlink()
    elsewhere = tmp_path / "elsewhere"
    for source in (above, elsewhere):
        if source is elsewhere:
            shutil.copytree(place, elsewhere / "copies" / "of")
        run(source, store, net, name="pets", config=MOVED)
        assert by_content(store) == before
        run(source, store, net, name="pets")
        assert by_content(store) == before


def test_rows_of_tar_files_that_were_not_looked_at_are_not_missed(tmp_path: Path, net: Backbone) -> None:
    store, names = tmp_path / "s.fcache", {}
    (tmp_path / "tars").mkdir()
    for k in range(3):
        members = []
        for i in range(3):
            paint(tmp_path / "x.png", 10 * k + i)
            members.append((f"{i}.png", (tmp_path / "x.png").read_bytes()))
            names[f"t-00{k}.tar/{i}.png"] = f"L{i}"
        write_tar(tmp_path / "tars" / f"t-00{k}.tar", members)
    del names["t-002.tar/0.png"], names["t-002.tar/1.png"], names["t-002.tar/2.png"]
    run(tmp_path / "tars", store, net, labels=table(tmp_path / "labels.csv", "label", names))
    before = stored(store)
    for k in range(3):  # of the last, the table names nothing
        notes = run(tmp_path / "tars" / f"t-00{k}.tar", store, net)
        assert not told(notes, "labels.csv")
        assert stored(store) == before


@pytest.mark.parametrize("how", ["lost tables", "fractions"])
def test_images_that_could_not_be_read_for_a_while_have_what_they_had(
    place: Path, tmp_path: Path, net: Backbone, how: str
) -> None:
    given, store = tables(place), tmp_path / "s.fcache"
    run(place, store, net, **(given if how == "lost tables" else {"split": "0.5/0.5"}))
    before = by_content(store)
    for path in given.values():
        path.unlink()
    away = [place / uri for uri in uris(place) if uri[2] in "024"]
    contents = {path: path.read_bytes() for path in away}
    for path in away:
        path.write_bytes(b"")
    for label in "de":  # so that the draw is another
        for i in range(5):
            paint(place / label / f"{i}.png", ord(label) * 10 + i)
    run(place, store, net)
    assert len(fc.open(store).quarantine()) == 9
    for path, data in contents.items():
        path.write_bytes(data)
    run(place, store, net)
    assert before.items() <= by_content(store).items()


# Fractions.


def halves(store: Path) -> dict[bytes, str | None]:
    return {sha256: split for sha256, (_, split) in by_content(store).items()}


def test_sides_go_with_the_bytes(place: Path, tmp_path: Path, net: Backbone) -> None:
    store = tmp_path / "s.fcache"
    run(place, store, net, split="0.7/0.3")
    before = halves(store)
    for label in "abc":
        for i in range(6):  # every name but the last is that of another image now
            (place / label / f"{i}.png").rename(place / label / f"{i - 1}.png")
    (place / "a").rename(place / "z")
    notes = run(place, store, net, split={"train": 0.7, "test": 0.3})
    assert told(notes, "known under another name", "keep their split")
    assert halves(store) == before
    run(place, store, net)
    assert halves(store) == before


def test_sides_go_with_the_bytes_in_all_spaces(place: Path, tmp_path: Path) -> None:
    store, lite = tmp_path / "s.fcache", fc.backbones.get("bundled:efficientnet_lite0")
    run(place, store, lite, split="0.5/0.5")
    run(place, store, lite.scaled())
    before = halves(store)
    for i in range(6):
        (place / "a" / f"{i}.png").rename(place / "a" / f"{i - 1}.png")
    (place / "b").rename(place / "z")
    report = fc.extract(place, store, progress=False)
    assert len(report.others) == 1
    assert halves(store) == before


@pytest.mark.parametrize("how", ["tables", "lost tables", "fractions", "a store of before"])
def test_a_run_that_ends_early_loses_nothing_of_renamed_images(
    place: Path, tmp_path: Path, net: Backbone, how: str
) -> None:
    given, store, flat = tables(place), tmp_path / "s.fcache", tmp_path / "flat"
    options = {"split": "0.5/0.5"} if how == "fractions" else given
    flat.mkdir()
    for uri in uris(place):  # the source itself says neither label nor split
        (place / uri).rename(flat / uri.replace("/", "-"))
    for path in given.values():
        path.write_text(path.read_text().replace("/", "-"))
    run(flat, store, net, **options)
    before = by_content(store)
    if how == "lost tables":
        for path in given.values():
            path.unlink()
    if how == "a store of before":
        as_of_before(store)
    for uri in uris(flat)[:-1]:
        (flat / uri).rename(flat / f"new-{uri}")
    for limit in (3, 7, None):
        run(flat, store, net, limit=limit)
        assert by_content(store).items() <= before.items()
    assert by_content(store) == before


def test_other_fractions_draw_anew_and_say_how_many_images_change_sides(
    place: Path, tmp_path: Path, net: Backbone
) -> None:
    store = tmp_path / "s.fcache"
    assert not told(run(place, store, net, split="0.5/0.5"), "drawn anew")
    before = halves(store)
    assert not told(run(place, store, net, split="train=0.5,test=0.5"), "drawn anew")
    notes = run(place, store, net, split="0.9/0.1")
    changed = sum(before[sha256] != side for sha256, side in halves(store).items())
    assert told(notes, f"drawn anew, and {changed} images of 18 change sides")


@pytest.mark.parametrize("gone", ["a class", "some"])
def test_images_that_come_back_have_the_side_they_had(place: Path, tmp_path: Path, net: Backbone, gone: str) -> None:
    store = tmp_path / "s.fcache"
    run(place, store, net, split="0.5/0.5")
    before = halves(store)
    away = [uri for uri in uris(place) if (uri[0] == "c" if gone == "a class" else uri[2] in "135")]
    for uri in away:
        (tmp_path / "away" / uri).parent.mkdir(parents=True, exist_ok=True)
        (place / uri).rename(tmp_path / "away" / uri)
    for i in range(5):
        paint(place / "c" / f"new{i}.png", i)
    for _ in range(2):
        run(place, store, net)
    for uri in away:
        (tmp_path / "away" / uri).rename(place / uri[0] / f"back-{uri[2:]}")
    run(place, store, net, limit=4)
    run(place, store, net)
    assert before.items() <= halves(store).items()
    assert len(halves(store)) == 23


def test_a_group_that_is_renamed_or_comes_back_is_whole_and_where_it_was(tmp_path: Path, net: Backbone) -> None:
    store, folder = tmp_path / "s.fcache", tmp_path / "p"
    for i in range(20):
        paint(folder / f"{i:02}.png", i)

    def manifest(groups: dict[int, str]) -> Path:
        rows = "".join(f"{i:02}.png,x,{group}\n" for i, group in groups.items())
        (folder / "m.csv").write_text(f"path,label,group\n{rows}")
        return folder / "m.csv"

    groups = {i: f"g{i // 4}" for i in range(20)}
    run(manifest(groups), store, net, split="0.6/0.4")
    before = halves(store)
    run(manifest({i: group for i, group in groups.items() if i > 7}), store, net)
    for i in range(16):
        (folder / f"{i:02}.png").rename(folder / f"{i + 30}.png")
    paint(folder / "29.png", 29)
    run(
        manifest({29: "h0"} | {i + 30: f"h{i // 4}" for i in range(16)} | dict.fromkeys(range(16, 20), "g4")),
        store,
        net,
    )
    after = fc.open(store).items()
    assert before.items() <= {item.sha256: item.split for item in after}.items()
    sides: dict[str | None, set[str | None]] = {}
    for item in after:
        sides.setdefault(item.group, set()).add(item.split)
    assert {group: len(found) for group, found in sides.items()} == {"h0": 1, "h1": 1, "h2": 1, "h3": 1, "g4": 1}


# A store of before, and sources opened in Python.


def test_a_store_of_before_keeps_corrections_against_the_folders(tmp_path: Path, net: Backbone) -> None:
    store, place = tmp_path / "s.fcache", tmp_path / "pets"
    for seed, (side, label, i) in enumerate(itertools.product(("train", "test"), "ab", range(3))):
        paint(place / side / label / f"{i}.png", seed + 10)
    names = uris(place)
    labels = table(tmp_path / "labels.csv", "label", {u: "fox" if u[-5] == "0" else u[-7] for u in names[:-1]})
    split = table(tmp_path / "split.csv", "split", {u: ("train", "test")[u[-5] == "1"] for u in names})
    run(place, store, net, labels=labels, split=split)
    before = stored(store)
    as_of_before(store)
    notes = run(place, store, net)
    assert told(notes, "5 images keep the label", "--labels")
    assert told(notes, "6 images keep the split", "--split")
    assert stored(store) == before
    paint(place / "test" / "b" / "new.png", 1)
    for _ in range(2):  # for good, not once
        run(place, store, net)
        assert stored(store) == before | {"test/b/new.png": ("b", "test")}
    run(place, store, net, labels="folder", split="folder")
    run(place, store, net)
    assert stored(store) == {u: (u.split("/")[1], u.split("/")[0]) for u in uris(place)}


def test_a_source_opened_in_python_takes_nothing_away(place: Path, tmp_path: Path, net: Backbone) -> None:
    store = tmp_path / "s.fcache"
    run(place, store, net, split="0.5/0.5")
    before = stored(store)
    run(open_source(place), store, net)
    assert stored(store) == before
    settings = fc.open(store).source_settings("pets")
    assert (settings["path"], settings["split"]) == (str(place), "0.5/0.5")
    run(place, store, net)
    assert stored(store) == before


def test_what_a_source_opened_in_python_says_stays_too(place: Path, tmp_path: Path, net: Backbone) -> None:
    store, given = tmp_path / "s.fcache", tables(place)
    run(open_source(place, labels=given["labels"], split=given["split"]), store, net)
    before = stored(store)
    assert {split for _, split in before.values()} == {"train", "test"}
    run(place, store, net)
    assert stored(store) == before

    rows = "".join(f"{uri},{uri[0]},{'test' if '0' in uri else 'train'}\n" for uri in uris(place))
    (place / "all.csv").write_text(f"path,label,split\n{rows}")
    run(open_source(place / "all.csv", name="pets"), store, net)  # now this says both
    before = stored(store)
    assert {uri[0] for uri in before} == {label for label, _ in before.values()}
    run(place, store, net)
    assert stored(store) == before


# What a file changes is told.


def test_what_a_file_of_labels_sets_and_removes_is_told_and_reported(
    place: Path, tmp_path: Path, net: Backbone
) -> None:
    store = tmp_path / "s.fcache"
    run(place, store, net)
    fix = table(tmp_path / "fix.csv", "label", {"a/0.png": "b"})
    result = CliRunner().invoke(app, ["extract", str(place), "-o", str(tmp_path / "new.fcache"), "--labels", str(fix)])
    assert "Labels from fix.csv: 1 image named; 1 set, 17 removed, 0 kept." in " ".join(result.output.split())
    notes = Notes()
    report = fc.extract(place, store, backbone=net, labels=fix, progress=notes)
    assert report.from_file == {"labels": {"named": 1, "set": 1, "removed": 17, "kept": 0}}
    assert told(notes.texts, "Warning: Labels from fix.csv", "17 removed", "--labels folder", "train --labels")
    notes = Notes()
    report = fc.extract(place, store, backbone=net, labels=fix, progress=notes)
    assert report.from_file == {"labels": {"named": 1, "set": 0, "removed": 0, "kept": 1}}
    assert not told(notes.texts, "Warning: Labels")


def test_a_row_taken_from_a_table_that_is_read_again_is_told(place: Path, tmp_path: Path, net: Backbone) -> None:
    store, given = tmp_path / "s.fcache", tables(place)
    run(place, store, net, **given)
    table(given["split"], "split", dict.fromkeys(uris(place)[1:], "train"))
    assert told(run(place, store, net), "Split from split.csv: 17 images named; 5 set, 1 removed, 12 kept")
