"""Tar files as a source: what is listed, that bytes are those of the members, and what is refused or told."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featcache.core.errors import SourceError, UnusableImageError, UsageError
from featcache.images.entry import Entry, Unusable
from featcache.images.sources import open_source
from featcache.images.tar import Member, TarSource
from tests.images.tars import image_bytes, write_tar


def listed(path: Path) -> dict[str, Entry]:
    return {entry.uri: entry for entry in open_source(path).entries()}


def reason(entry: Entry) -> str:
    assert isinstance(entry.content, Unusable)
    with pytest.raises(UnusableImageError) as caught:
        entry.read()
    return str(caught.value)


def test_members_are_read_where_they_are(tmp_path: Path) -> None:
    inside = {f"train/{i:03}.jpg": image_bytes(i, "JPEG") for i in range(5)} | {
        "z/" + "long" * 60 + ".png": image_bytes(9)
    }
    for layout in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        path = write_tar(tmp_path / "a.tar", inside.items(), layout)
        source = open_source(path)
        assert (source.name, source.root) == ("a", str(tmp_path))
        entries = source.entries()
        assert [entry.uri for entry in entries] == [f"a.tar/{name}" for name in inside]
        for entry, data in zip(entries, inside.values(), strict=True):
            assert entry.read()[0] == data
            assert entry.state() == entry.read()[1]
            assert entry.place == str(path)


def test_labels_lie_beside_the_images(tmp_path: Path) -> None:
    described = {"label": ["red", "round"], "split": "test", "group": 7, "caption": "x"}
    path = write_tar(
        tmp_path / "a.tar",
        [
            ("a.cls", b"3\n"), ("d/b.jpg", b"x"), ("a.jpg", b"x"), ("d/b.txt", b"cat"), ("d/b.json", b'{"label": 5}'),
            ("c.png", b"x"), ("c.json", json.dumps(described).encode()), ("e.JPG", b"x"), ("e.txt", "kočka".encode()),
            ("f.jpg", b"x"), ("f.json", b'{"width": 4}'), ("b.jpg", b"x"), ("notes.md", b"x"), ("._a.jpg", b"x"),
        ],
    )  # fmt: skip
    source = open_source(path)
    entries = {e.uri.removeprefix("a.tar/"): (e.label, e.split, e.group) for e in source.entries()}
    assert entries == {
        "d/b.jpg": ("5", None, None),
        "a.jpg": ("3", None, None),
        "c.png": ("red|round", "test", "7"),
        "e.JPG": ("kočka", None, None),
        "f.jpg": (None, None, None),
        "b.jpg": (None, None, None),
    }
    assert source.ignored == 2
    assert {entry.label for entry in open_source(path, labels="none").entries()} == {None}


def test_a_sample_is_its_plain_image_or_all_it_has(tmp_path: Path) -> None:
    names = ["a.jpg", "a.seg.png", "b.left.jpg", "b.right.jpg", "2024.01.02.jpg", "c.jpg", "c.png"]
    source = open_source(write_tar(tmp_path / "a.tar", [(name, b"x") for name in names]))
    assert [e.uri.removeprefix("a.tar/") for e in source.entries()] == [n for n in names if n != "a.seg.png"]
    assert source.ignored == 1


def test_of_two_files_of_one_name_the_later_counts(tmp_path: Path) -> None:
    source = open_source(write_tar(tmp_path / "a.tar", [("a.jpg", b"old"), ("b.jpg", b"x"), ("./a.jpg", b"new")]))
    assert [(e.uri, e.read()[0]) for e in source.entries()] == [("a.tar/b.jpg", b"x"), ("a.tar/a.jpg", b"new")]
    assert source.ignored == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jpg", "/etc/passwd", "it is a link"),
        ("../a.jpg", b"x", "leads out"),
        ("d/../../a.jpg", b"x", "leads out"),
        ("/etc/a.jpg", b"x", "leads out"),
        ("a.jpg", b"", "empty"),
    ],
)
def test_members_that_are_not_taken(tmp_path: Path, name: str, content: bytes | str, message: str) -> None:
    entries = listed(write_tar(tmp_path / "a.tar", [("ok.jpg", b"x"), (name, content)]))
    (bad,) = (entry for entry in entries.values() if entry.uri != "a.tar/ok.jpg")
    assert message in reason(bad)
    assert ".." not in bad.uri.split("/")
    assert not os.path.isabs(bad.uri.removeprefix("a.tar/"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b"{", "a.json is no JSON"),
        ("a.json", b"[" * 100_000, "a.json is no JSON"),
        ("a.json", b'{"label": {"x": 1}}', "label that is neither text nor a whole number"),
        ("a.json", b'{"label": 0.5}', "neither text"),
        ("a.json", b'{"label": "\\ud800"}', "a.json is no JSON"),
        ("a.cls", b"caf\xe9", "a.cls is no text"),
        ("a.txt", b"x" * (1 << 20 | 1), "too much for a label"),
    ],
)
def test_a_label_that_cannot_be_read_is_no_missing_label(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    entries = listed(write_tar(tmp_path / "a.tar", [("ok.jpg", b"x"), ("a.jpg", b"x"), (name, content)]))
    assert message in reason(entries["a.tar/a.jpg"])
    assert entries["a.tar/ok.jpg"].read()[0] == b"x"


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.txt", b"caf\xe9"), ("a.cls", b"caf\xe9"), ("a.txt", b"x" * (1 << 20 | 1)),
     ("a.json", b'{"label": 0.73, "split": "test"}')],
)  # fmt: skip
def test_a_label_that_is_not_wanted_harms_no_image(tmp_path: Path, name: str, content: bytes) -> None:
    path = write_tar(tmp_path / "a.tar", [("a.jpg", b"x"), (name, content)])
    (tmp_path / "labels.csv").write_text("path,label\na.tar/a.jpg,cat\n")
    for labels, expected in (("none", None), (str(tmp_path / "labels.csv"), "cat")):
        (entry,) = open_source(path, labels=labels).entries()
        assert (entry.label, entry.split) == (expected, "test" if name == "a.json" else None)
        assert entry.read()[0] == b"x"


def test_a_caption_beside_a_label_harms_no_image(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [("a.txt", b"caf\xe9"), ("a.jpg", b"x"), ("a.cls", b"3")])
    (entry,) = open_source(path).entries()
    assert (entry.label, entry.read()[0]) == ("3", b"x")


@pytest.mark.parametrize("content", [b"{", b'{"split": 0.5}', b'{"label": 0.5, "group": {}}'])
def test_a_split_that_cannot_be_read_is_no_missing_split(tmp_path: Path, content: bytes) -> None:
    path = write_tar(tmp_path / "a.tar", [("ok.jpg", b"x"), ("a.jpg", b"x"), ("a.json", content)])
    entries = {entry.uri: entry for entry in open_source(path, labels="none").entries()}
    assert "a.json" in reason(entries["a.tar/a.jpg"])


def test_of_two_labels_of_one_name_the_later_counts(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [("a.cls", b"caf\xe9"), ("a.jpg", b"x"), ("a.cls", b"3")])
    (entry,) = open_source(path).entries()
    assert (entry.label, entry.read()[0]) == ("3", b"x")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(length=st.integers(1, 6 * 1536))
def test_of_a_tar_cut_off_anywhere_what_is_whole_counts_and_the_rest_is_told(tmp_path: Path, length: int) -> None:
    """Six members of 600 bytes: a header and two blocks each."""
    inside = {f"{i}.jpg": bytes([i]) * 600 for i in range(6)}
    path = write_tar(tmp_path / "a.tar", inside.items())
    path.write_bytes(path.read_bytes()[:length])
    whole = sum(1536 * i + 512 + 600 <= length for i in range(6))
    source = TarSource([path], name="a")
    if not whole:
        with pytest.raises(SourceError, match=r"No image was found .*a\.tar"):
            source.entries()
        return
    entries = source.entries()
    good = [entry for entry in entries if isinstance(entry.content, Member)]
    assert [(entry.uri, entry.read()[0]) for entry in good] == [
        (f"a.tar/{name}", data) for name, data in list(inside.items())[:whole]
    ]
    assert entries[-1].uri == "a.tar"
    headers = sum(1536 * i + 512 <= length for i in range(6))
    assert f"cut off after {headers} member" in reason(entries[-1])
    assert len(entries) == headers + 1
    assert source.incomplete == ("a.tar/",)


def zeroed(content: bytes, start: int, length: int) -> bytes:
    return content[:start] + bytes(length) + content[start + length :]


SIX = {f"{i}.jpg": bytes([i + 1]) * 600 for i in range(6)}


@pytest.mark.parametrize(
    ("change", "left"),
    [
        (lambda content: zeroed(content, 2 * 1536, 512), 2),
        (lambda content: zeroed(content, 2 * 1536, len(content) - 2 * 1536), 2),
        (lambda content: content + content, 6),
        (lambda content: content + b"\0" * 9999 + b"x", 6),
    ],
    ids=["a header", "the rest", "two tars in one", "a byte"],
)
def test_zeros_in_the_midst_are_not_the_end(tmp_path: Path, change: Callable[[bytes], bytes], left: int) -> None:
    filled = SIX | {"big.jpg": b"x" * 20_000}
    path = write_tar(tmp_path / "a.tar", (filled if left == 2 else SIX).items())
    path.write_bytes(change(path.read_bytes()))
    source = open_source(path)
    *good, last = source.entries()
    assert [entry.uri for entry in good] == [f"a.tar/{i}.jpg" for i in range(left)]
    assert last.uri == "a.tar"
    assert f"something follows its end after {left} members" in reason(last)
    assert source.incomplete == ("a.tar/",)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.integers(1, 6000), min_size=1, max_size=12), unfilled=st.booleans())
def test_a_whole_tar_is_not_damaged(tmp_path: Path, sizes: list[int], unfilled: bool) -> None:
    """Filled up to a record, as Python and GNU tar leave it, or with the two blocks alone, as Go does."""
    path = write_tar(tmp_path / "a.tar", [(f"{i}.jpg", b"x" * size) for i, size in enumerate(sizes)])
    if unfilled:
        path.write_bytes(path.read_bytes().rstrip(b"\0") + bytes(-len(path.read_bytes().rstrip(b"\0")) % 512 + 1024))
    source = open_source(path)
    assert len(source.entries()) == len(sizes)
    assert source.incomplete == ()


def test_a_pipe_is_no_tar(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("a.jpg", b"x")])
    os.mkfifo(tmp_path / "b.tar")
    assert list(listed(tmp_path)) == ["a.tar/a.jpg"]
    os.unlink(tmp_path / "a.tar")
    with pytest.raises(SourceError, match="No image was found"):
        open_source(tmp_path).entries()


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_stands_in_a_header_nothing_but_ours_is_raised(tmp_path: Path, data: st.DataObject) -> None:
    path = write_tar(tmp_path / "a.tar", [(f"{i}.jpg", bytes([i]) * 100) for i in range(4)], tarfile.GNU_FORMAT)
    content = bytearray(path.read_bytes())
    start = data.draw(st.integers(0, 3)) * 1024
    place = start + data.draw(st.sampled_from([0, 100, 124, 136, 148, 156, 157, 257, 345, 482]))
    new = data.draw(st.binary(min_size=1, max_size=12))
    content[place : place + len(new)] = new
    if data.draw(st.booleans()):  # with a checksum that holds, the library believes the rest
        block = content[start : start + 512]
        block[148:156] = b" " * 8
        content[start + 148 : start + 156] = b"%06o\0 " % sum(block)
    path.write_bytes(content)
    try:
        entries = TarSource([path], name="a").entries()
    except SourceError:
        return
    for entry in entries:
        if isinstance(entry.content, Member):
            got = entry.read()[0]
            assert bytes(content[entry.content.offset : entry.content.offset + entry.content.length]) == got
            assert entry.uri.startswith("a.tar/")


def test_a_tar_that_was_changed_since_it_was_listed_is_not_read(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [("a.jpg", b"one"), ("b.jpg", b"two")])
    entry, _ = open_source(path).entries()
    write_tar(tmp_path / "b.tar", [("b.jpg", b"two"), ("a.jpg", b"one")]).replace(path)
    assert entry.state() != entry.content.listed  # type: ignore[union-attr]
    with pytest.raises(UnusableImageError, match="changed"):
        entry.read()
    path.unlink()
    assert entry.state() is None
    with pytest.raises(UnusableImageError, match="cannot be read: No such file"):
        entry.read()


def test_several_tars(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    for i in (8, 9, 10):
        write_tar(folder / f"s-{i:03}.tar", [("a.jpg", b"x")])
    (folder / "about.txt").write_text("x")
    expected = ["s-008.tar/a.jpg", "s-009.tar/a.jpg", "s-010.tar/a.jpg"]
    for given_path in (folder, folder / "s-*.tar", folder / "s-{008..010}.tar", folder / "s-{008,0{09,10}}.tar"):
        source = open_source(given_path)
        assert [entry.uri for entry in source.entries()] == expected
        assert (source.name, source.root) == ("shards", str(folder))
    assert [e.uri for e in open_source(folder / "s-00{8..9}.tar").entries()] == expected[:2]
    with pytest.raises(SourceError, match=r"2 of 5 names .*s-011\.tar, s-012\.tar"):
        open_source(folder / "s-{008..012}.tar")
    for nothing in ("nope-*.tar", "nope-{000..002}.tar"):
        with pytest.raises(SourceError, match=r"No file in .*shards has a name like nope-"):
            open_source(folder / nothing)
    for many in ("s-{0..99999999}.tar", "{0..9}{0..99}{0..999}.tar", "{a,b}" * 20 + ".tar"):
        with pytest.raises(SourceError, match="stands for more than"):
            open_source(folder / many)
    with pytest.raises(SourceError, match="not closed"):
        open_source(folder / "s-{008..010}{.tar")
    with pytest.raises(SourceError, match="There is nothing at"):
        open_source(folder / "t.tar")


@pytest.mark.parametrize("option", ["labels", "split"])
def test_folders_inside_a_tar_are_not_asked_for(tmp_path: Path, option: Any) -> None:
    path = write_tar(tmp_path / "a.tar", [("train/cats/a.jpg", b"x")])
    for given_path in (path, tmp_path, tmp_path / "*.tar", [path]):
        with pytest.raises(UsageError, match=rf"inside a tar file are no {option}.*--{option}"):
            open_source(given_path, **{option: "folder"})


def test_a_list_of_tars_is_one_source(tmp_path: Path) -> None:
    folder, other = tmp_path / "shards", tmp_path / "other"
    for place in (folder, other):
        place.mkdir()
        for i in range(3):
            write_tar(place / f"s-{i:03}.tar", [("a.jpg", b"x")])
    chosen = [str(folder / "s-002.tar"), folder / "s-000.tar", folder / ".." / "shards" / "s-000.tar"]
    source = open_source(chosen)
    assert (source.name, source.root, source.within) == ("shards", str(folder), ("s-000.tar/", "s-002.tar/"))
    assert [entry.uri for entry in source.entries()] == ["s-000.tar/a.jpg", "s-002.tar/a.jpg"]
    assert open_source(tuple(chosen), name="mine").name == "mine"
    with pytest.raises(SourceError, match=r"1 of 2 tar files are missing: .*s-009"):
        open_source([folder / "s-000.tar", folder / "s-009.tar"])
    with pytest.raises(UsageError, match="in one folder, these are in 2"):
        open_source([folder / "s-000.tar", other / "s-000.tar"])
    with pytest.raises(UsageError, match=r"'cats/a\.jpg' is not.* CSV file"):
        open_source(["cats/a.jpg", "cats/b.jpg"], name="cats")


@pytest.mark.parametrize(
    ("tar", "name"),
    [
        ("train-000.tar", "shards"),
        ("train-017.tar", "shards"),
        ("00012.tar", "shards"),
        ("val-123456.tar", "shards"),
        ("data-00003-of-00010.tar", "shards"),
        ("pets.tar", "pets"),
        ("photos-2024.tar", "photos-2024"),
        ("backup-20240131.tar", "backup-20240131"),
        ("v2.tar", "v2"),
    ],
)
def test_one_of_several_tars_is_of_the_source_of_all(tmp_path: Path, tar: str, name: str) -> None:
    (tmp_path / "shards").mkdir()
    path = write_tar(tmp_path / "shards" / tar, [("a.jpg", b"x")])
    assert open_source(path).name == name
    assert open_source(tmp_path / "shards").name == "shards"


def test_one_bad_tar_does_not_stop_the_others(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("a.jpg", b"x")])
    (tmp_path / "b.tar").write_bytes(b"")
    (tmp_path / "c.tar").write_bytes(b"\x1f\x8b\x08\x00 and so on")
    source = open_source(tmp_path)
    entries = {entry.uri: entry for entry in source.entries()}
    assert list(entries) == ["a.tar/a.jpg", "b.tar", "c.tar"]
    assert "no tar file" in reason(entries["b.tar"])
    assert "compressed" in reason(entries["c.tar"])
    assert source.incomplete == ("b.tar/", "c.tar/")


def test_a_folder_that_holds_anything_else_is_a_folder_of_images(tmp_path: Path) -> None:
    write_tar(tmp_path / "backup.tar", [("a.jpg", b"x")])
    (tmp_path / "cats").mkdir()
    (tmp_path / "cats" / "b.jpg").write_bytes(b"x")
    assert list(listed(tmp_path)) == ["cats/b.jpg"]


def test_what_holds_no_image_is_refused(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [("a.txt", b"x"), ("b.bin", b"x")])
    with pytest.raises(SourceError, match=r"No image was found in the tar files .*\(1 other files\)"):
        open_source(path).entries()


def test_the_listing_keeps_no_image_in_memory(tmp_path: Path) -> None:
    import tracemalloc

    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for i in range(64):
            member = tarfile.TarInfo(f"{i}.jpg")
            member.size = 1 << 20
            tar.addfile(member, io.BytesIO(bytes(1 << 20)))
    tracemalloc.start()
    try:
        entries = open_source(path).entries()
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert len(entries) == 64
