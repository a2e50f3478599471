"""Tables: no cell is lost, each path finds the image it means, and one missing file does not stop a run."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import featcache as fc
from featcache.core.errors import SourceError
from featcache.images.sources import open_source, read_labels
from featcache.images.table_paths import by_uri
from tests.doors import FACES, entries
from tests.images.tars import image_bytes

NFC, NFD = (unicodedata.normalize(form, "Grün.png") for form in ("NFC", "NFD"))


def folder(root: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image_bytes(number))
    return root


def manifest(root: Path, text: str) -> dict[str, str | None]:
    (root / "t.csv").write_text("path,label\n" + text, encoding="utf-8")
    return {e.uri: e.label for e in open_source(root / "t.csv").entries()}


def labels(root: Path, text: str) -> dict[str, str | None]:
    (root / "labels.csv").write_text("path,label\n" + text, encoding="utf-8")
    return {e.uri: e.label for e in open_source(root, labels=root / "labels.csv").entries() if e.label}


def splits(root: Path, text: str) -> dict[str, str | None]:
    (root / "split.csv").write_text("path,split\n" + text, encoding="utf-8")
    return {e.uri: e.split for e in open_source(root, split=root / "split.csv").entries() if e.split}


TABLES = [manifest, labels, splits]


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("written", ["a\\b.png", "a/b.png", "{root}/a/b.png", "{root}/a\\b.png", "./a/./b.png"])
def test_a_path_means_the_image_that_is_there(
    tmp_path: Path, table: Callable[[Path, str], dict[str, str | None]], written: str
) -> None:
    assert table(folder(tmp_path, "a/b.png"), f"{written.format(root=tmp_path)},x\n") == {"a/b.png": "x"}


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize(
    "written", ["link/../b.png", "{root}/link/../b.png", "real/deep/../b.png", "./link/.././b.png"]
)
def test_two_dots_behind_a_link_lead_above_what_it_leads_to(
    tmp_path: Path, table: Callable[[Path, str], dict[str, str | None]], written: str
) -> None:
    folder(tmp_path, "b.png", "real/b.png", "real/deep/c.png")
    (tmp_path / "link").symlink_to("real/deep")
    assert table(tmp_path, f"{written.format(root=tmp_path)},x\n") == {"real/b.png": "x"}


def test_two_dots_behind_a_link_out_of_the_folder_name_no_image_in_it(tmp_path: Path) -> None:
    folder(tmp_path, "in/b.png", "out/b.png", "out/deep/c.png")
    (tmp_path / "in" / "link").symlink_to(tmp_path / "out" / "deep")
    given = {"link/../b.png": "x"}
    assert by_uri(given, ["b.png"], str(tmp_path / "in")) == ({}, ["link/../b.png"])
    assert by_uri(given, ["b.png"], "python:images") == ({"b.png": "x"}, [])
    (tmp_path / "in" / "t.csv").write_text("path,label\nlink/../b.png,x\n")
    (entry,) = open_source(tmp_path / "in" / "t.csv").entries()
    assert entry.read()[0] == (tmp_path / "out" / "b.png").read_bytes()


@pytest.mark.parametrize("table", TABLES)
def test_a_backslash_in_a_name_that_is_there_is_one(
    tmp_path: Path, table: Callable[[Path, str], dict[str, str | None]]
) -> None:
    assert table(folder(tmp_path, "a\\b.png", "a/b.png"), "a\\b.png,x\na/b.png,y\n") == {
        "a\\b.png": "x",
        "a/b.png": "y",
    }


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize(("written", "real"), [(NFC, NFD), (NFD, NFC), (f"{NFC}/x.png", f"{NFD}/x.png")])
def test_both_unicode_forms_of_a_name_are_one(
    tmp_path: Path, table: Callable[[Path, str], dict[str, str | None]], written: str, real: str
) -> None:
    assert table(folder(tmp_path, real), f"{written},x\n") == {real: "x"}


@pytest.mark.parametrize("table", TABLES)
def test_two_rows_of_one_image_are_refused(tmp_path: Path, table: Callable[[Path, str], dict[str, str | None]]) -> None:
    with pytest.raises(SourceError, match=r"line 2 and again in line 3|are the same image"):
        table(folder(tmp_path, "a/b.png"), "a\\b.png,x\na/b.png,x\n")


@pytest.mark.parametrize("table", TABLES)
def test_a_row_with_more_fields_than_the_heading_is_refused(
    tmp_path: Path, table: Callable[[Path, str], dict[str, str | None]]
) -> None:
    with pytest.raises(SourceError, match="line 3: the row has 3 fields, the heading 2"):
        table(folder(tmp_path, "a.png", "b.png"), "a.png,x\nb.png,glass, broken\n")


@pytest.mark.slow
@pytest.mark.parametrize(("door", "parameter"), entries("labels"), ids=str)
def test_every_door_that_takes_labels_refuses_such_a_row(door, parameter, world_for) -> None:
    world = world_for(door)
    (world.folder / "wrong.csv").write_text("path,label\ncats/cat-00.jpg,glass, broken\n")
    try:
        outcome = world.call(door, labels=world["wrong.csv"])
        code, said = outcome.code, outcome.err
    except fc.FeatcacheError as error:
        code, said = error.exit_code, str(error)
    assert code
    assert "line 2: the row has 3 fields, the heading 2" in " ".join(said.split())


@pytest.mark.slow
@pytest.mark.parametrize(("door", "parameter"), [(d, p) for d, p in entries("labels") if d.name not in FACES], ids=str)
def test_every_door_that_takes_labels_takes_backslashes(door, parameter, world_for) -> None:
    world = world_for(door)
    text = world["labels.csv"].read_text().replace("/", "\\")
    world["labels.csv"].write_text(text)
    outcome = world.call(door, labels=world["labels.csv"])
    assert outcome.code == 0, outcome.err


@pytest.mark.parametrize("written", ["", " ", "nan", "NaN"])
@pytest.mark.parametrize("table", [manifest, labels])
def test_an_empty_cell_and_nan_are_no_label(
    tmp_path: Path, table: Callable[[Path, str], dict[str, str | None]], written: str
) -> None:
    found = table(folder(tmp_path, "a.png", "b.png"), f"a.png,x\nb.png,{written}\n")
    assert {uri for uri, label in found.items() if label} == {"a.png"}


def test_labels_by_paths_that_no_image_has_are_named(tmp_path: Path) -> None:
    assert by_uri({"a\\b.png": "x", "c.png": "y"}, ["a/b.png"], "/r") == ({"a/b.png": "x"}, ["c.png"])
    # Two files that look the same: neither is meant by a third spelling, each by its own.
    assert by_uri({NFC: "x"}, [NFC, NFD], "/r") == ({NFC: "x"}, [])
    (tmp_path / "labels.csv").write_text("path,label\n" + f"{NFC},x\n", encoding="utf-8")
    assert read_labels(tmp_path / "labels.csv") == {NFC: "x"}


def test_images_outside_the_tables_folder_are_taken(tmp_path: Path) -> None:
    folder(tmp_path, "lists/in.png", "other/out.png", "far.png")
    place = tmp_path / "lists" / "t.csv"
    place.write_text(f"path,label\nin.png,a\n../far.png,b\n{tmp_path}/other/out.png,c\n")
    source = open_source(place)
    found = source.entries()
    root = tmp_path.resolve()
    assert source.root == str(root)
    assert [(e.uri, e.label) for e in found] == [("far.png", "b"), ("lists/in.png", "a"), ("other/out.png", "c")]
    assert all((root / entry.uri).read_bytes() == entry.read()[0] for entry in found)
    assert open_source(place).entries() == found
    place.write_text("path,label\nin.png,a\n")
    inside = open_source(place)
    assert [entry.uri for entry in inside.entries()] == ["in.png"]
    assert inside.root == str(root / "lists")


def test_a_missing_file_elsewhere_does_not_move_the_root(tmp_path: Path) -> None:
    folder(tmp_path, "in.png")
    (tmp_path / "t.csv").write_text("path\nin.png\n/home/somebody/else.png\n")
    source = open_source(tmp_path / "t.csv")
    assert {e.uri for e in source.entries()} == {"in.png", "home/somebody/else.png"}
    assert source.root == str(tmp_path.resolve())


def test_a_missing_file_goes_to_quarantine_and_comes_back(tmp_path: Path, small_network: str) -> None:
    folder(tmp_path, "a.png", "b.png")
    text = "path,label\na.png,x\nb.png,y\nlost.png,x\n"
    (tmp_path / "t.csv").write_text(text)
    store = tmp_path / "s.fcache"
    report = fc.extract(tmp_path / "t.csv", store, backbone=small_network, progress=False)
    assert (report.items, report.computed, report.quarantined) == (3, 2, 1)
    ((uri, reason),) = report.quarantine
    assert uri == "lost.png"
    assert "no file" in reason
    assert "line 4" in reason
    assert "lost.png (line 4)" in report.notes[0]
    (tmp_path / "lost.png").write_bytes(image_bytes(9))
    mended = fc.extract(tmp_path / "t.csv", store, backbone=small_network, progress=False)
    assert (mended.items, mended.computed, mended.reused, mended.quarantined) == (3, 1, 2, 0)


def test_images_outside_are_found_again(tmp_path: Path, small_network: str) -> None:
    folder(tmp_path, "lists/in.png", "other/out.png")
    (tmp_path / "lists" / "t.csv").write_text("path\nin.png\n../other/out.png\n")
    fc.extract(tmp_path / "lists" / "t.csv", tmp_path / "s.fcache", backbone=small_network, progress=False)
    report = fc.check_live(tmp_path / "s.fcache", progress=False)
    assert (report.compared, report.gone) == (2, 0)


def test_the_row_of_the_users_own_file_is_named(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    y = np.repeat([0.0, 1.0], 40)
    X = rng.normal(size=(80, 8)) + y[:, None]
    y[::5] = np.nan
    X[55] = np.nan  # has no label, so nobody reads it
    np.savez(tmp_path / "f.npz", features=X, labels=y)
    bundle = fc.train(tmp_path / "f.npz", head="ridge", progress=False)
    assert bundle.classes == ("0.0", "1.0")
    X[57, 3] = np.inf
    np.savez(tmp_path / "f.npz", features=X, labels=y)
    with pytest.raises(SourceError, match="Row 57 "):
        fc.train(tmp_path / "f.npz", head="ridge", progress=False)


@pytest.mark.parametrize(
    ("written", "person"), [(f"a/{NFC}", "Müll"), (f"a\\{NFD}", unicodedata.normalize("NFD", "Müll"))]
)
def test_a_list_of_pairs_finds_images_as_tables_do(tmp_path: Path, written: str, person: str) -> None:
    from featcache.faces.pairs_file import read_pairs

    name = unicodedata.normalize("NFC", "Müll")
    uris = [f"a/{NFD}", f"{name}_0001.png", f"{name}_0002.png", "b.png"]
    (tmp_path / "pairs.txt").write_text(f"1\n{person}\t1\t2\n{person}\t{written}\tother\tb.png\n", encoding="utf-8")
    assert read_pairs(tmp_path / "pairs.txt", uris).images.tolist() == [[1, 2], [0, 3]]
