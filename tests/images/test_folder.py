"""A folder as a source: what is listed, with which label and split, and what is passed over."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from featcache.core.errors import SourceError, UnusableImageError
from featcache.images.entry import Entry
from featcache.images.folder import FolderSource
from featcache.images.sources import open_source


def touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return root


def listed(root: Path) -> dict[str, tuple[str | None, str | None]]:
    return {entry.uri: (entry.label, entry.split) for entry in FolderSource(root).entries()}


def test_folders_are_classes(tmp_path: Path) -> None:
    touch(tmp_path / "pets", "dogs/b.JPG", "cats/a.png", "cats/c.webp")
    source = open_source(tmp_path / "pets")
    assert (source.name, source.root) == ("pets", str((tmp_path / "pets").resolve()))
    assert source.entries() == [
        Entry("cats/a.png", str(tmp_path / "pets/cats/a.png"), "cats", None, None),
        Entry("cats/c.webp", str(tmp_path / "pets/cats/c.webp"), "cats", None, None),
        Entry("dogs/b.JPG", str(tmp_path / "pets/dogs/b.JPG"), "dogs", None, None),
    ]
    assert open_source(tmp_path / "pets", name="mine").name == "mine"


def test_splits_stand_above_classes(tmp_path: Path) -> None:
    touch(tmp_path, "train/cats/a.jpg", "val/cats/b.jpg", "test/dogs/c.jpg", "test/d.jpg")
    assert listed(tmp_path) == {
        "test/d.jpg": (None, "test"),
        "test/dogs/c.jpg": ("dogs", "test"),
        "train/cats/a.jpg": ("cats", "train"),
        "val/cats/b.jpg": ("cats", "val"),
    }


def test_other_names_of_splits(tmp_path: Path) -> None:
    touch(tmp_path, "training/a/1.jpg", "validation/a/2.jpg", "testing/a/3.jpg", "valid/a/4.jpg")
    assert [split for _, split in listed(tmp_path).values()] == ["test", "train", "val", "val"]


def test_folders_are_splits_only_if_all_are(tmp_path: Path) -> None:
    touch(tmp_path, "train/a/1.jpg", "test/a/2.jpg", "cats/z.jpg")
    assert listed(tmp_path) == {
        "cats/z.jpg": ("cats", None),
        "test/a/2.jpg": ("test", None),
        "train/a/1.jpg": ("train", None),
    }


def test_neither_a_loose_image_nor_a_folder_without_images_makes_classes_of_splits(tmp_path: Path) -> None:
    touch(tmp_path, "train/a/1.jpg", "test/a/2.jpg", "sample.jpg", "annotations/all.json")
    assert listed(tmp_path) == {
        "sample.jpg": (None, None),
        "test/a/2.jpg": ("a", "test"),
        "train/a/1.jpg": ("a", "train"),
    }


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    touch(tmp_path, "b.jpg", "a.jpg")
    assert listed(tmp_path) == {"a.jpg": (None, None), "b.jpg": (None, None)}


def test_the_label_is_the_first_folder(tmp_path: Path) -> None:
    touch(tmp_path / "n", "cats/young/a.jpg", "cats/old/deep/b.jpg", "c.jpg")
    assert listed(tmp_path / "n") == {
        "c.jpg": (None, None),
        "cats/old/deep/b.jpg": ("cats", None),
        "cats/young/a.jpg": ("cats", None),
    }
    touch(tmp_path / "s", "train/cats/young/a.jpg")
    assert listed(tmp_path / "s") == {"train/cats/young/a.jpg": ("cats", "train")}


def test_a_loop_of_links_ends(tmp_path: Path) -> None:
    touch(tmp_path, "cats/a.jpg", "cats/inner/b.jpg")
    (tmp_path / "cats/inner/up").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "cats/self").symlink_to(tmp_path / "cats", target_is_directory=True)
    assert list(listed(tmp_path)) == ["cats/a.jpg", "cats/inner/b.jpg"]


def test_a_folder_linked_twice_is_listed_once(tmp_path: Path) -> None:
    touch(tmp_path / "elsewhere", "a.jpg")
    (tmp_path / "root").mkdir()
    for name in ("cats", "dogs"):
        (tmp_path / "root" / name).symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert listed(tmp_path / "root") == {"cats/a.jpg": ("cats", None)}


def test_a_link_does_not_take_the_label_of_the_folder_it_leads_to(tmp_path: Path) -> None:
    touch(tmp_path, "cats/young/a.jpg")
    (tmp_path / "a-link").symlink_to(tmp_path / "cats", target_is_directory=True)
    (tmp_path / "another").symlink_to(tmp_path / "cats/young", target_is_directory=True)
    assert listed(tmp_path) == {"cats/young/a.jpg": ("cats", None)}


def test_a_link_to_an_image_is_an_image_and_so_is_one_that_leads_nowhere(tmp_path: Path) -> None:
    touch(tmp_path / "elsewhere", "a.jpg")
    root = touch(tmp_path / "root", "real.jpg")
    (root / "linked.jpg").symlink_to(tmp_path / "elsewhere/a.jpg")
    (root / "lost.jpg").symlink_to(tmp_path / "gone.jpg")
    (root / "round.jpg").symlink_to(root / "round.jpg")
    assert list(listed(root)) == ["linked.jpg", "lost.jpg", "real.jpg", "round.jpg"]


def test_unicode_spaces_and_very_long_names(tmp_path: Path) -> None:
    long = "é" * 125 + ".jpg"
    names = ["猫 и ß/a b\tc.jpg", f"猫 и ß/{long}", "猫 и ß/new\nline.png"]
    touch(tmp_path, *names)
    assert sorted(names) == list(listed(tmp_path))
    assert {label for label, _ in listed(tmp_path).values()} == {"猫 и ß"}


def test_bytes_that_are_no_text_become_text(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(folder)
    for name in (b"\xff\xfe.jpg", b"gut-\xc3\xa9.jpg"):
        with open(folder + b"/" + name, "wb") as file:
            file.write(b"x")
    entries = FolderSource(tmp_path).entries()
    assert [(entry.uri, entry.label) for entry in entries] == [
        ("caf%E9/%FF%FE.jpg", "caf%E9"),
        ("caf%E9/gut-é.jpg", "caf%E9"),
    ]
    for entry in entries:
        entry.uri.encode("utf-8")
        assert entry.path.read_bytes() == b"x"


def test_a_root_whose_name_is_no_text(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(folder)
    with open(folder + b"/a.jpg", "wb") as file:
        file.write(b"x")
    with open(folder + b"/list.csv", "wb") as file:
        file.write(b"path\na.jpg\n")
    for place in (folder, folder + b"/list.csv"):
        source = open_source(os.fsdecode(place))
        assert source.root == f"{tmp_path.resolve()}/caf%E9"
        assert source.name == ("caf%E9" if place == folder else "list")
        assert [entry.path.read_bytes() for entry in source.entries()] == [b"x"]


def test_two_names_that_would_become_one(tmp_path: Path) -> None:
    for name in (b"a\xff.jpg", b"a%FF.jpg"):
        with open(os.fsencode(tmp_path) + b"/" + name, "wb") as file:
            file.write(b"x")
    with pytest.raises(SourceError, match=r"would both be called a%FF\.jpg.*Rename"):
        FolderSource(tmp_path).entries()


def test_what_is_no_image_is_counted(tmp_path: Path) -> None:
    touch(tmp_path, "cats/a.jpg", "cats/notes.txt", "labels.csv", "cats/film.mp4")
    os.mkfifo(tmp_path / "cats" / "pipe.jpg")
    source = FolderSource(tmp_path)
    for _ in range(2):
        assert [entry.uri for entry in source.entries()] == ["cats/a.jpg"]
        assert source.ignored == 4


def test_hidden_files_and_stores_are_passed_over(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "a.jpg",
        ".b.jpg",
        ".hidden/c.jpg",
        "pets.fcache/shards/d.jpg",
        "__MACOSX/e.jpg",
        "cats/s.fcache/f.jpg",
    )
    source = FolderSource(tmp_path)
    assert [entry.uri for entry in source.entries()] == ["a.jpg"]
    assert source.ignored == 0


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"No image was found in .*\(0 other files\).*\.jpeg"):
        FolderSource(tmp_path).entries()
    touch(tmp_path, "deep/er/notes.txt")
    with pytest.raises(SourceError, match=r"\(1 other files\)"):
        FolderSource(tmp_path).entries()


def make_unlistable(folder: Path) -> None:
    """Fill a folder with folders so deep that the last path is too long for the system: no permission is asked for."""
    at = os.open(folder, os.O_RDONLY)
    for _ in range(4096 // 250 + 1):
        os.mkdir("x" * 250, dir_fd=at)
        below = os.open("x" * 250, os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)


@pytest.mark.skipif(os.mkdir not in os.supports_dir_fd, reason="folders so deep cannot be made")
def test_a_folder_that_cannot_be_listed_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    touch(tmp_path, "cats/a.jpg", "dogs/b.jpg")
    make_unlistable(tmp_path / "cats")
    source = FolderSource(tmp_path)
    good, bad, other = source.entries()
    assert (good.uri, other.uri) == ("cats/a.jpg", "dogs/b.jpg")
    assert source.incomplete == (f"{bad.uri}/",)
    assert bad.uri.startswith("cats/xxx")
    with pytest.raises(UnusableImageError, match="the folder cannot be listed: File name too long"):
        bad.read()
    for path in ("cats/a.jpg", "dogs/b.jpg"):
        (tmp_path / path).unlink()
    with pytest.raises(SourceError, match=r"No image was found in .*: the folder cannot be listed: .*permissions"):
        source.entries()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is forbidden to this user")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    touch(tmp_path, "cats/a.jpg", "dogs/b.jpg")
    (tmp_path / "cats").chmod(0)
    try:
        assert [entry.uri for entry in FolderSource(tmp_path).entries()] == ["cats", "dogs/b.jpg"]
    finally:
        (tmp_path / "cats").chmod(0o755)


def test_what_can_be_no_source(tmp_path: Path) -> None:
    for name in ("none", "x" * 5000, "a\0b"):
        with pytest.raises(SourceError, match="nothing at"):
            open_source(tmp_path / name)
    touch(tmp_path, "a.jpg")
    with pytest.raises(SourceError, match="neither a folder"):
        open_source(tmp_path / "a.jpg")
