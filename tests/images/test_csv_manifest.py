"""CSV manifests, and CSV files and fractions that give labels and splits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from featcache.core.errors import SourceError, UsageError
from featcache.images.csv_manifest import ManifestSource
from featcache.images.entry import Entry
from featcache.images.sources import open_source, read_labels


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("cats/1.jpg", "cats/2.jpg", "dogs/3.jpg"):
        path = tmp_path / "pets" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return tmp_path / "pets"


def manifest(folder: Path, text: str | bytes) -> ManifestSource:
    path = folder / "list.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    source = open_source(path)
    assert isinstance(source, ManifestSource)
    return source


def test_all_columns(folder: Path) -> None:
    source = manifest(
        folder, "path,label,split,group\ndogs/3.jpg,dog,test,g2\n\n./cats/1.jpg,cat,train,g1\ncats/2.jpg,,,\n"
    )
    assert (source.name, source.root) == ("list", str(folder))
    assert source.entries() == [
        Entry("cats/1.jpg", str(folder / "cats/1.jpg"), "cat", "train", "g1"),
        Entry("cats/2.jpg", str(folder / "cats/2.jpg"), None, None, None),
        Entry("dogs/3.jpg", str(folder / "dogs/3.jpg"), "dog", "test", "g2"),
    ]


def test_only_the_path_is_needed_and_other_columns_are_left_alone(folder: Path) -> None:
    entries = manifest(folder, " price , path\n3,cats/1.jpg\n").entries()
    assert entries == [Entry("cats/1.jpg", str(folder / "cats/1.jpg"), None, None, None)]


def test_short_rows_quotes_and_windows_line_ends(folder: Path) -> None:
    text = 'path,label,split\r\ncats/1.jpg\r\n"cats/2.jpg","a, ""b""\nc",train\r\n'
    assert [(e.label, e.split) for e in manifest(folder, text).entries()] == [(None, None), ('a, "b"\nc', "train")]


def test_an_absolute_path_inside(folder: Path) -> None:
    assert [e.uri for e in manifest(folder, f"path\n{folder}/dogs/3.jpg\n").entries()] == ["dogs/3.jpg"]


def test_an_absolute_path_by_way_of_a_link_to_the_folder(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(folder, target_is_directory=True)
    manifest(folder, f"path\n{tmp_path}/alias/dogs/3.jpg\n")
    for place in (folder, tmp_path / "alias"):
        assert [e.uri for e in open_source(place / "list.csv").entries()] == ["dogs/3.jpg"]


def test_a_name_that_begins_with_dots_is_inside(folder: Path) -> None:
    (folder / "..a.jpg").write_bytes(b"x")
    assert [e.uri for e in manifest(folder, "path\n..a.jpg\n").entries()] == ["..a.jpg"]


def test_a_byte_order_mark(folder: Path) -> None:
    assert len(manifest(folder, "\ufeffpath,label\ncats/1.jpg,kočka\n").entries()) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\ncats/1.jpg,a\n", "no column path; its first line is file,label"),
        ("", "no column path; its first line is empty"),
        ("path,label\n", "lists no image"),
        ("path,label\n,cat\n", "line 2: the path is empty"),
        ("path\ncats/9.jpg\nno.jpg\n", r"names 2 files .*, which are all: cats/9\.jpg \(line 2\), no\.jpg \(line 3\)"),
        ("path\ncats/1.jpg\ndogs/3.jpg\ncats/../cats/1.jpg\n", r"cats/1\.jpg is listed in line 2 and again in line 4"),
        ("path\n..\n", "line 2: .. is a folder"),
        ("path;label\ncats/1.jpg;a\n", "its first line is path;label.*commas"),
        ("path,label,label\ncats/1.jpg,a,b\n", "column label more than once"),
        (f"path\n{'n' * 6000}.jpg\n", "names 1 files"),
        (b"path,label\ncats/1.jpg,caf\xe9\n", "line 2: not UTF-8.*Save it as UTF-8"),
        ("path\ncats/1.jpg\n".encode("utf-16"), "line 1: not UTF-8"),
        ('path\n"cats/1.jpg\n', r"cannot be read as CSV \(.* in line 2\).*quotation mark"),
    ],
)
def test_what_is_refused(folder: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(SourceError, match=f"(?s){message}"):
        manifest(folder, text).entries()


def test_the_line_that_is_no_text_is_found_far_down(folder: Path) -> None:
    lines = b"".join(b"%06d.jpg,x\n" % i for i in range(3000))
    with pytest.raises(SourceError, match="line 3002: not UTF-8"):
        manifest(folder, b"path,label\n" + lines + b"a.jpg,caf\xe9\n").entries()


def test_of_many_missing_files_five_are_named(folder: Path) -> None:
    text = "path\n" + "".join(f"{i}.jpg\n" for i in range(9))
    with pytest.raises(SourceError, match=r"names 9 files .*: 0\.jpg \(line 2\), .*4\.jpg \(line 6\) …"):
        manifest(folder, text).entries()


def test_labels_from_a_file(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("path,label\ncats/1.jpg,young\n./dogs/3.jpg,old\n")
    assert read_labels(path) == {"cats/1.jpg": "young", "dogs/3.jpg": "old"}
    assert [e.label for e in open_source(folder, labels=path).entries()] == ["young", None, "old"]
    assert [e.label for e in open_source(folder, labels="none").entries()] == [None] * 3
    assert [e.label for e in open_source(folder, labels="folder").entries()] == ["cats", "cats", "dogs"]


def test_splits_from_a_file(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "split.csv"
    path.write_text("path,split\ncats/1.jpg,train\ndogs/3.jpg,test\n")
    entries = open_source(folder, split=path).entries()
    assert [(e.label, e.split) for e in entries] == [("cats", "train"), ("cats", None), ("dogs", "test")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\ncats/1.jpg,a\nlost.jpg,b\n", r"names 1 paths that are no images of the source: lost\.jpg"),
        ("path,labels\ncats/1.jpg,a\n", "no column label"),
        ("path,label\ncats/1.jpg,\n", "gives no label"),
        ("path,label\ncats/1.jpg,a\n./cats/1.jpg,b\n", "line 2 and again in line 3"),
    ],
)
def test_files_of_labels_that_are_refused(folder: Path, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(SourceError, match=message):
        open_source(folder, labels=tmp_path / "labels.csv").entries()


@pytest.mark.parametrize("text", ["none.csv", "0.8-0.2", "y" * 5000])
def test_what_is_neither_a_word_nor_a_file(folder: Path, text: str) -> None:
    with pytest.raises(SourceError, match=r"There is no file .*folder, fractions such as 0\.8/0\.2, or a CSV"):
        open_source(folder, split=text).entries()
    with pytest.raises(SourceError, match=r"There is no file .*folder, none, or a CSV"):
        open_source(folder, labels=text).entries()
    with pytest.raises(SourceError, match=r"There is no file .*columns path,label"):
        read_labels(Path(text))


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """200 images in 2 classes; each group has 5 images, of one class except for the last of each class."""
    lines = ["path,label,group"]
    for i in range(200):
        (tmp_path / f"{i:03}.jpg").write_bytes(b"x")
        lines.append(f"{i:03}.jpg,{'ab'[i % 2]},{f'g{i % 20}' if i < 100 else ''}")
    (tmp_path / "many.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "many.csv"


@pytest.mark.parametrize(
    ("text", "names"),
    [("0.8/0.2", {"train": 0.8, "test": 0.2}), ("0.6/0.1/0.3", {"train": 0.6, "val": 0.1, "test": 0.3}),
     ("train=0.5,other=0.5", {"train": 0.5, "other": 0.5})],
)  # fmt: skip
def test_fractions_are_deterministic_and_keep_groups_whole(many: Path, text: str, names: dict[str, float]) -> None:
    entries = open_source(many, split=text).entries()
    assert entries == open_source(many, split=text).entries()
    splits: dict[str, set[str | None]] = {}
    for entry in entries:
        splits.setdefault(entry.group or entry.uri, set()).add(entry.split)
    assert all(len(found) == 1 for found in splits.values())
    for label in "ab":
        units = {entry.group or entry.uri: entry.split for entry in entries if entry.label == label}
        for name, fraction in names.items():
            assert abs(list(units.values()).count(name) - fraction * len(units)) <= 1


def test_fractions_depend_on_names_alone(many: Path) -> None:
    before = {entry.uri: entry.split for entry in open_source(many, split="0.5/0.5").entries()}
    lines = many.read_text().splitlines()
    many.write_text("\n".join([lines[0], *reversed(lines[1:])]))
    assert before == {entry.uri: entry.split for entry in open_source(many, split="0.5/0.5").entries()}


@pytest.mark.parametrize("text", ["0.8/0.3", "80/20", "1.2/-0.2", "train=1.0,test=0", "0.5.1/0.5", "a=.,b=1", "./1"])
def test_wrong_fractions(folder: Path, text: str) -> None:
    with pytest.raises(UsageError):
        open_source(folder, split=text).entries()


@pytest.mark.slow
def test_of_many_rows_nothing_is_kept_but_the_list(tmp_path: Path) -> None:
    """200,000 rows in a process of their own: so many bytes a row at its peak, and not the CSV's rows as well.

    By way of links to folders, few files have many names.
    """
    (tmp_path / "real").mkdir()
    for i in range(450):
        (tmp_path / "real" / f"{i:03}.jpg").write_bytes(b"")
        (tmp_path / f"d{i:03}").symlink_to("real", target_is_directory=True)
    with (tmp_path / "list.csv").open("w") as file:
        file.write("path,label,split\n")
        for i in range(200_000):
            file.write(f"d{i // 450:03}/{i % 450:03}.jpg,class {i % 10},train\n")
    code = (
        "import sys; from featcache.images.sources import open_source\n"
        "def peak(): return int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0]) * 1024\n"
        "source = open_source(sys.argv[1]); before = peak(); entries = source.entries(); after = peak()\n"
        "print(len(entries), len({id(entry.label) for entry in entries}), after - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "list.csv")], capture_output=True, text=True, check=True
    )
    rows, labels, peak = map(int, done.stdout.split())
    assert (rows, labels) == (200_000, 10)
    assert peak < rows * (len(str(tmp_path)) + 330)
