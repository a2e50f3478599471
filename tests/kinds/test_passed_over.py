"""Folders of the system, of NAS and of featcache among images, at every door that lists images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import featcache as fc
from featcache.core.errors import FeatcacheError, SourceError
from featcache.extraction.embed import listed, name_of
from featcache.extraction.stored_source import images_of
from featcache.images.entry import Entry
from featcache.images.folder import FolderSource
from featcache.images.sources import images_below, open_source
from tests.doors import run
from tests.images.tars import image_bytes, write_tar

FOLDERS = [
    "@eaDir", "#recycle", "@Recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found", ".Trash-1000",
    ".AppleDouble", "__MACOSX", "#snapshot", "SYSTEM VOLUME INFORMATION", "Network Trash Folder",
]  # fmt: skip


def by_source(root: Path) -> list[str]:
    return [entry.uri for entry in open_source(root).entries()]


def by_path(root: Path) -> list[str]:
    return [Path(name_of(image, 0)).relative_to(root).as_posix() for image in listed(root)]


def by_images_below(root: Path) -> list[str]:
    return [entry.uri for entry in images_below(root) or ()]


@pytest.mark.parametrize("door", [by_source, by_path, by_images_below])
def test_folders_of_the_system_are_passed_over(door: Callable[[Path], list[str]], tmp_path: Path) -> None:
    for place in (*FOLDERS, *(f"cats/{name}" for name in FOLDERS), "cats/@eaDir/a.png"):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        (tmp_path / place / "x.jpg").write_bytes(image_bytes(1))
    (tmp_path / "cats" / "a.png").write_bytes(image_bytes(0))
    (tmp_path / "cats" / "Thumbs.db").write_bytes(b"x")
    assert door(tmp_path) == ["cats/a.png"]


def test_they_are_told_and_their_files_not_counted_as_others(tmp_path: Path) -> None:
    for place in ("@eaDir/x.jpg", "lost+found/y.txt", "cats/a.png", "cats/Thumbs.db", "cats/readme.txt"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_bytes(image_bytes(0))
    source = FolderSource(tmp_path)
    source.entries()
    assert source.ignored == 1
    assert source.notes == ("Passed over, as the system or a NAS made these folders: @eaDir, lost+found.",)


def test_in_tar_files_and_beside_them(tmp_path: Path) -> None:
    members = [(f"{name}/x.png", image_bytes(1)) for name in ("@eaDir", "a/__MACOSX", "lost+found")]
    write_tar(tmp_path / "t.tar", [("a/0.png", image_bytes(0)), *members])
    (tmp_path / "@eaDir").mkdir()
    assert by_source(tmp_path) == ["t.tar/a/0.png"]


@pytest.fixture
def store(tmp_path: Path, draw_images, small_network: str) -> Path:
    photos = draw_images(tmp_path / "photos")
    place = photos / "cats" / "my-store"  # without the usual ending
    fc.extract(photos, place, backbone=small_network, progress=False)
    (place / "runs").mkdir(exist_ok=True)
    (place / "runs" / "plot.png").write_bytes(image_bytes(0))
    return place


def test_a_store_among_the_images_is_passed_over_with_a_note(store: Path, small_network: str) -> None:
    photos = store.parent.parent
    report = fc.extract(photos, store, backbone=small_network, progress=False)
    assert (report.items, report.computed, report.reused) == (24, 0, 24)
    assert report.notes == ["Passed over, as these are featcache stores: cats/my-store."]


def test_a_store_given_as_images_stands_for_its_images(store: Path) -> None:
    entries = images_of(store)
    assert entries is not None
    assert len(entries) == 24
    assert {Path(entry.place).parent.name for entry in entries} == {"cats", "dogs"}
    assert len(listed(store)) == 24
    gone = Path(entries[0].place)
    gone.unlink()
    (lost,) = [one for one in listed(store) if isinstance(one, Entry) and one.place == str(gone)]
    with pytest.raises(FeatcacheError, match="not where the store"):
        lost.read()


def test_a_file_that_two_sources_list_is_one_image_of_their_store(store: Path, small_network: str) -> None:
    photos = store.parent.parent
    fc.extract(photos / "cats", store, backbone=small_network, labels="none", progress=False)
    assert len(fc.open(store).sources()) == 2
    assert len(fc.open(store).items(source="photos") + fc.open(store).items(source="cats")) == 36
    entries = images_of(store)
    assert entries is not None
    assert len(entries) == len({entry.place for entry in entries}) == 24


def test_predict_answers_for_the_images_of_a_store(store: Path, tmp_path: Path) -> None:
    fc.train(store, "ridge", progress=False).save(tmp_path / "h.fch")
    found = run("predict", str(tmp_path / "h.fch"), str(store), "--json")
    assert found.code == 0, found.err
    assert "plot.png" not in found.out
    assert found.out.count('"uri"') == 24


@pytest.mark.parametrize("door", [by_source, images_below, "extract"])
def test_a_store_is_no_folder_of_images(store: Path, tmp_path: Path, door: Callable[[Path], object] | str) -> None:
    if isinstance(door, str):
        outcome = run(door, str(store), "-o", str(tmp_path / "t.fcache"))
        assert outcome.code == 2
        assert "is a store, not a folder of images" in " ".join(outcome.err.split())
        return
    with pytest.raises(SourceError, match="is a store, not a folder of images"):
        door(store)
