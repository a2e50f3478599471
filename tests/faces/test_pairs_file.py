"""LFW's lists of pairs: what is read, what is refused with its line, and that drawn pairs come back as they were."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featcache.core.errors import SourceError, UsageError
from featcache.faces.pairs_file import Pairs, read_pairs, write_pairs
from featcache.faces.sample_pairs import draw_pairs

URIS = [
    *(f"Ann/Ann_000{k}.jpg" for k in (1, 2, 3, 4)),
    *(f"deep/er/Bo_Li/Bo_Li_000{k}.png" for k in (1, 2)),
    "Cy_0001.jpg",
    "Di/party.jpg",
    "Di/Di_12.jpg",
]
GOOD = "2\t1\nAnn\t1\t4\nAnn\t2\tCy\t1\nBo_Li\t2\t1\nDi\tDi/party.jpg\tAnn\t3\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "pairs.txt"
    path.write_bytes(text.encode())
    return path


def test_a_list_is_read_against_the_images(tmp_path) -> None:
    pairs = read_pairs(write(tmp_path, GOOD), URIS)
    assert pairs.images.tolist() == [[0, 3], [1, 6], [5, 4], [7, 2]]
    assert pairs.images.dtype == pairs.fold.dtype == np.int64
    assert pairs.same.tolist() == [True, False, True, False]
    assert pairs.fold.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    "text",
    [
        GOOD.replace("\n", "\r\n"),
        "\ufeff" + GOOD,
        GOOD.replace("\n", "\n\n"),
        GOOD.replace("\t", " \t"),
        GOOD.rstrip("\n"),
        GOOD.replace("Ann\t1", "Ann\t0001"),
    ],
)
def test_how_editors_leave_a_file_does_not_matter(tmp_path, text: str) -> None:
    expected = read_pairs(write(tmp_path, GOOD), URIS)
    found = read_pairs(write(tmp_path, text), URIS)
    np.testing.assert_array_equal(found.images, expected.images)


def test_a_list_of_one_fold_has_one_number_above_it(tmp_path) -> None:
    pairs = read_pairs(write(tmp_path, "2\nAnn\t1\t2\nBo_Li\t1\t2\nAnn\t1\tCy\t1\nAnn\t2\tCy\t1\n"), URIS)
    assert pairs.fold.tolist() == [0, 0, 0, 0]
    assert pairs.same.tolist() == [True, True, False, False]


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("2\t1\n", "", 1, "begins with the number of folds"),
        ("2\t1\n", "2\t1\t1\n", 1, "begins with the number of folds"),
        ("2\t1\n", "-2\t1\n", 1, "begins with the number of folds"),
        ("2\t1\n", "0\t1\n", 1, "0 folds of 1 have no pair"),
        ("2\t1\n", "99999999\t99999999\n", 3, "is expected here"),
        ("2\t1\n", "3\t1\n", 5, "ends after 4 pairs; the first line announces 6"),
        ("2\t1\n", "1\t1\n", 4, "one line too many"),
        ("2\t1\n", "1\t2\n", 3, "a pair of one person, is expected"),
        ("Ann\t1\t4", "Ann\t1\t5", 2, "no image 'Ann_0005'; 'Ann' has the numbers 1, 2, 3, 4"),
        ("Ann\t1\t4", "Ann\t1\t1", 2, "Ann_0001.jpg' with itself"),
        ("Ann\t1\t4", "Ann\t1\tAnn/Ann_0001.jpg", 2, "Ann_0001.jpg' with itself"),
        ("Ann\t1\t4", "Ann 1 4", 2, "there is 1 field"),
        ("Ann\t1\t4", "Ann\t1\tx", 2, "no image 'x'"),
        ("Ann\t1\t4", "Ann\t1\t-4", 2, "no image '-4'"),
        ("Ann\t1\t4", "Ann\t1\t٤", 2, "no image '٤'"),
        ("Ann\t1\t4", "Ann\t1\t../../etc/passwd", 2, "no image '../../etc/passwd'"),
        ("Cy\t1", "Cyx\t1", 3, "no image of 'Cyx'. Did you mean 'Cy'"),
        ("Cy\t1", "Ann\t1", 3, "names 'Ann' twice"),
        ("Di\tDi/party.jpg", "Di\t12", 5, "Its images would be called 'Di_0001'"),
    ],
)
def test_an_error_names_its_line(tmp_path, old: str, new: str, line: int, message: str) -> None:
    assert old in GOOD
    path = write(tmp_path, GOOD.replace(old, new, 1))
    with pytest.raises(SourceError) as caught:
        read_pairs(path, URIS)
    assert f"{path}, line {line}:" in str(caught.value)
    assert message in str(caught.value)


def test_two_images_of_one_name_need_their_uris(tmp_path) -> None:
    uris = [*URIS, "again/Cy_0001.jpg"]
    with pytest.raises(
        SourceError, match=r"line 3: several images are called 'Cy_0001': 'Cy_0001.jpg', 'again/Cy_0001"
    ):
        read_pairs(write(tmp_path, GOOD), uris)
    named = read_pairs(write(tmp_path, GOOD.replace("Cy\t1", "Cy\tagain/Cy_0001.jpg")), uris)
    assert named.images[1].tolist() == [1, 9]


def test_files_that_cannot_be_read_are_source_errors(tmp_path) -> None:
    for name in ("absent.txt", "x" * 5000):
        with pytest.raises(SourceError, match="no file"):
            read_pairs(tmp_path / name, URIS)
    with pytest.raises(SourceError, match="no file"):
        read_pairs(tmp_path, URIS)
    (tmp_path / "latin.txt").write_bytes(b"1\nAnn\xe9\t1\t2\n")
    with pytest.raises(SourceError, match="not UTF-8"):
        read_pairs(tmp_path / "latin.txt", URIS)
    with pytest.raises(SourceError, match="line 1: a list of pairs begins"):
        read_pairs(write(tmp_path, ""), URIS)


FILES = st.lists(
    st.tuples(st.sampled_from("ABCDEF"), st.sampled_from(["{p}/{p}_{k:04}.jpg", "{k}.png", "{p}/{k}", "x/{p}_{k}"])),
    min_size=30,
    max_size=60,
)


@settings(deadline=None)
@given(FILES, st.integers(1, 3), st.integers(0, 9))
def test_drawn_pairs_come_back_from_their_file(tmp_path_factory, files: list, folds: int, seed: int) -> None:
    """Whatever the images are called, numbers alone among them."""
    uris = [predictor.format(p=person, k=k) for k, (person, predictor) in enumerate(files)]
    labels = [person for person, _ in files]
    if len(set(labels)) < 6 or min(map(labels.count, labels)) < 3:
        return
    pairs = draw_pairs(labels, folds=folds, each=3, seed=seed)
    path = tmp_path_factory.mktemp("drawn") / "pairs.txt"
    write_pairs(path, pairs, uris, labels)
    back = read_pairs(path, uris)
    np.testing.assert_array_equal(back.images, pairs.images)
    np.testing.assert_array_equal(back.same, pairs.same)
    np.testing.assert_array_equal(back.fold, pairs.fold)
    assert os.listdir(path.parent) == ["pairs.txt"]


def test_lfws_names_are_written_as_lfw_writes_them(tmp_path) -> None:
    labels = ["Ann"] * 4 + ["Bo_Li"] * 2 + ["Cy", "Di", "Di"]
    pairs = read_pairs(write(tmp_path, GOOD), URIS)
    write_pairs(tmp_path / "written.txt", pairs, URIS, labels)
    assert (tmp_path / "written.txt").read_text(encoding="utf-8") == GOOD


def test_what_the_format_cannot_hold_is_refused(tmp_path) -> None:
    path = tmp_path / "pairs.txt"

    def pairs(images: list[list[int]], same: list[bool]) -> Pairs:
        return Pairs(np.array(images), np.array(same), np.zeros(len(same), dtype=np.int64))

    uris, labels = ["a/x.jpg", "a/y.jpg", "b/z.jpg"], ["a", "a", "b"]
    even = pairs([[0, 1], [1, 2]], [True, False])
    write_pairs(path, even, uris, labels)
    before = path.read_bytes()
    for wrong, names, people, message in (
        (pairs([[0, 1]], [True]), uris, labels, "1, 0, by fold and kind"),
        (even, uris, ["a", "b", "b"], "is one of one person, but their labels are 'a' and 'b'"),
        (even, uris, ["a", "a", "a"], "is one of two people, but"),
        (even, uris, ["a", "a", None], "None, of b/z.jpg, cannot be a field"),
        (even, uris, ["a", "a", "b\tc"], "cannot be a field"),
        (even, ["a/x\ny.jpg", "a/y.jpg", "b/z.jpg"], labels, "cannot be a field"),
        (even, ["a/x.jpg", "b/z.jpg", "b/z.jpg"], labels, "Two images have the URI b/z.jpg"),
    ):
        with pytest.raises(UsageError, match=message):
            write_pairs(path, wrong, names, people)
    assert path.read_bytes() == before
    with pytest.raises(UsageError, match="cannot be written to"):
        write_pairs(path / "pairs.txt", even, uris, labels)  # a file is no folder


@pytest.mark.real
@pytest.mark.skipif("FEATCACHE_DATA" not in os.environ, reason="FEATCACHE_DATA names no folder with lfw-158")
def test_lists_of_the_real_lfw_images(tmp_path) -> None:
    root = Path(os.environ["FEATCACHE_DATA"]) / "lfw-158"
    if not root.is_dir():
        pytest.skip(f"there is no {root}")
    uris = sorted(str(path.relative_to(root)) for path in root.glob("*/*.jpg"))
    labels = [uri.split("/")[0] for uri in uris]
    pairs = draw_pairs(labels, seed=0)
    write_pairs(tmp_path / "pairs.txt", pairs, uris, labels)
    lines = (tmp_path / "pairs.txt").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "10\t300"
    assert len(lines) == 6001
    # Numbers throughout, as in LFW's own.
    assert not any("/" in line for line in lines)
    for line, (first, second) in zip(lines[1:], pairs.images, strict=True):
        fields = line.split("\t")
        person, other = fields[0], fields[-2] if len(fields) == 4 else fields[0]
        assert uris[first] == f"{person}/{person}_{int(fields[1]):04}.jpg"
        assert uris[second] == f"{other}/{other}_{int(fields[-1]):04}.jpg"
    np.testing.assert_array_equal(read_pairs(tmp_path / "pairs.txt", uris).images, pairs.images)


@pytest.mark.parametrize(
    ("labels", "contents", "line", "message"),
    [
        (
            {3: "Bea"},
            {},
            2,
            "'Ann/Ann_0001.jpg' and 'Ann/Ann_0004.jpg' are listed as a pair of one person, but",
        ),
        ({6: "Ann"}, {}, 3, "a pair of two people, but their labels are 'Ann' and 'Ann'"),
        ({}, {3: b"0"}, 2, "'Ann/Ann_0004.jpg' are one image"),
        ({}, {6: b"1"}, 3, "'Cy_0001.jpg' are one image"),
    ],
)
def test_a_list_that_contradicts_what_is_known_is_refused(tmp_path, labels, contents, line, message) -> None:
    known = ["Ann"] * 4 + ["Bo_Li"] * 2 + ["Cy", "Di", None]
    own = [b"%d" % place for place in range(len(URIS))]
    path = write(tmp_path, GOOD)
    expected = read_pairs(path, URIS)
    np.testing.assert_array_equal(read_pairs(path, URIS, labels=known, sha256=own).images, expected.images)
    # Where it is not known who somebody is, nothing is contradicted.
    read_pairs(path, URIS, labels=[None if place in labels else name for place, name in enumerate(known)])
    with pytest.raises(SourceError) as caught:
        read_pairs(
            path,
            URIS,
            labels=[labels.get(place, name) for place, name in enumerate(known)],
            sha256=[contents.get(place, content) for place, content in enumerate(own)],
        )
    assert f"{path}, line {line}:" in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize("field", ["\x1b[2J" + "x" * 3_000_000, "x" * 3_000_000, "\x1b[31mAnn"])
@pytest.mark.parametrize("line", ["{}\t1\t2", "Ann\t1\t{}", "Ann\t{}\t1", "{}\t1\t{}\t2"])
def test_what_a_list_says_reaches_no_terminal_as_it_is(tmp_path, field: str, line: str) -> None:
    with pytest.raises(SourceError) as caught:
        read_pairs(write(tmp_path, f"1\t1\n{line.replace('{}', field)}\nAnn\t1\tCy\t1\n"), URIS)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 1000
