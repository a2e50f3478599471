"""Each image that is asked about has an answer or a problem, however the run ends, and none is computed twice."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import featcache as fc
from featcache.cli import main
from featcache.core.errors import FeatcacheError, SourceError
from featcache.extraction.known_vectors import KnownVectors
from featcache.training.bundle import Prediction
from featcache.training.predict import Run
from featcache.training.prediction_table import PredictionTable, read_predictions, rows_of


@pytest.fixture
def asked(world) -> list[Path]:
    """Two good images; one that is gone, is text, is cut off, is no folder with images, is a pipe."""
    folder = world["odd"]
    folder.mkdir()
    good = [world["photos/cats/cat-00.jpg"], world["photos/dogs/dog-01.jpg"]]
    (folder / "text.jpg").write_text("no image")
    (folder / "cut.jpg").write_bytes(good[0].read_bytes()[:500])
    (folder / "empty").mkdir()
    os.mkfifo(folder / "pipe.jpg")
    os.symlink(folder / "nowhere", folder / "link.jpg")
    bad = [folder / name for name in ("gone.jpg", "text.jpg", "cut.jpg", "empty", "pipe.jpg", "link.jpg", "x.tar")]
    return [bad[0], good[0], *bad[1:], good[1]]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_each_image_has_one_answer_or_problem(world, asked, capsys):
    assert main(["predict", str(world["pets.fch"]), *map(str, asked), "--csv", str(world["t.csv"]), "--top", "1"]) == 0
    said = capsys.readouterr().out
    found = rows(world["t.csv"])
    assert [row["uri"] for row in found] == [str(path) for path in asked]
    assert [bool(row["label"]) for row in found] == [place in (1, 8) for place in range(9)]
    assert all(bool(row["problem"]) != bool(row["label"]) for row in found)
    for row in found:
        assert not row["problem"] or f"{row['uri']}: cannot be used: {row['problem']}" in said
    assert "2 of 9 images answered" in said
    assert main(["predict", str(world["pets.fch"]), *map(str, asked), "--top", "1"]) == 0
    said = capsys.readouterr().out
    assert all(str(path) in said for path in asked)
    assert main(["predict", str(world["pets.fch"]), *map(str, asked), "--top", "1", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["predictions"]
    assert [one.get("problem") or one["labels"][0]["label"] for one in told] == [
        row["problem"] or row["label"] for row in found
    ]
    python = fc.load(world["pets.fch"]).predict(asked, top=1)
    assert [(one.uri, one.problem) for one in python] == [(row["uri"], row["problem"] or None) for row in found]
    assert next(iter(read_predictions(world["t.csv"]))) == python[0]


def test_only_where_nothing_is_answered_the_run_failed(world, capsys):
    words = ["predict", str(world["pets.fch"]), "--csv", str(world["t.csv"])]
    assert main([*words, "gone.jpg", "gone-too.jpg"]) == 1
    assert [row["uri"] for row in rows(world["t.csv"])] == ["gone.jpg", "gone-too.jpg"]
    world["empty"].mkdir()
    assert main([*words, str(world["empty"])]) == 2  # nothing was asked about
    with pytest.raises(SourceError):
        fc.load(world["pets.fch"]).predict(world["empty"])


def test_the_order_is_head_then_images(world, capsys):
    image = world["photos/cats/cat-00.jpg"]
    assert main(["predict", str(image), str(world["pets.fch"])]) == 2
    said = capsys.readouterr().err
    assert f"{image} comes first and is an image" in said
    assert f"featcache predict {world['pets.fch']} {image}" in said


def test_a_folder_that_is_not_there_is_refused_as_by_extract(world, monkeypatch, capsys):
    monkeypatch.chdir(world.folder)
    for words in (["predict", "pets.fch", "fotos"], ["extract", "fotos", "-o", "new.fcache"]):
        assert main(words) == 2
        assert "There is nothing at fotos. Give " in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["predict", "pets.fch"], ["similar", "pets.fcache"], ["extract", "-o", "new.fcache"]]
)
def test_an_address_is_shown_as_given(words, world, monkeypatch, capsys):
    monkeypatch.chdir(world.folder)
    assert main([*words, "https://example.org/a.jpg"]) == 2
    assert "https://example.org/a.jpg is an address on the net" in capsys.readouterr().err


def test_images_of_a_folder_are_called_as_the_folder_was_typed(world, monkeypatch, capsys):
    monkeypatch.chdir(world.folder)
    assert main(["predict", "pets.fch", "photos", "photos/cats/cat-00.jpg", "--csv", "t.csv", "--top", "1"]) == 0
    wanted = sorted(str(path) for path in Path("photos").rglob("*.jpg"))
    assert [row["uri"] for row in rows(Path("t.csv"))] == [*wanted, "photos/cats/cat-00.jpg"]
    capsys.readouterr()
    assert main(["predict", "pets.fch", "photos/cats"]) == 0
    assert capsys.readouterr().out.startswith("photos/cats/cat-00.jpg\n")
    assert fc.load("pets.fch").predict("photos/cats")[0].uri == "photos/cats/cat-00.jpg"


def test_names_that_are_no_text_are_written_as_in_the_catalogue(world, capsys):
    odd = os.fsencode(world["photos/cats"]) + b"/caf\xe9.jpg"
    os.rename(world["photos/cats/cat-00.jpg"], odd)
    for images in ([str(world["photos"])], [os.fsdecode(odd)]):
        words = ["predict", str(world["pets.fch"]), *images, "--csv", str(world["t.csv"])]
        assert main(words) == 0
        assert {Path(row["uri"]).name for row in rows(world["t.csv"])} >= {"caf%E9.jpg"}


def test_an_image_that_vanishes_during_the_run(world, monkeypatch, capsys):
    images = sorted(world["photos"].rglob("*.jpg"))
    add = PredictionTable.add

    def vanishing(self, predictions):
        images[-1].unlink(missing_ok=True)
        add(self, predictions)

    monkeypatch.setattr(PredictionTable, "add", vanishing)
    assert main(["predict", str(world["pets.fch"]), str(world["photos"]), "--csv", str(world["t.csv"])]) == 0
    problems = {row["uri"]: row["problem"] for row in rows(world["t.csv"])}
    assert len(problems) == len(images)
    assert "No such file" in problems.pop(str(images[-1]))
    assert not any(problems.values())


def test_nothing_above_one_half_is_said(world, capsys):
    labels = "path,label\n" + "".join(
        f"{path.relative_to(world['photos']).as_posix()},{'|' if i % 2 else path.parent.name}\n"
        for i, path in enumerate(sorted(world["photos"].rglob("*.jpg")))
    )
    world["several.csv"].write_text(labels)
    bundle = fc.train(world["pets.fcache"], task="multilabel", labels=world["several.csv"], head="softmax")
    bundle.save(world["several.fch"])
    found = bundle.predict(world["photos"])
    none = {one.uri for one in found if not one.labels}
    words = ["predict", str(world["several.fch"]), str(world["photos"])]
    assert main([*words, "--csv", str(world["t.csv"])]) == 0
    written = [row for row in rows(world["t.csv"]) if not row["label"]]
    assert {row["uri"] for row in written} == none
    assert not any(row["problem"] or row["rank"] or row["probability"] for row in written)
    capsys.readouterr()
    assert main(words) == 0
    assert capsys.readouterr().out.count("no label above 50 %") == len(none)
    assert [one.labels == [] for one in read_predictions(world["t.csv"])] == [one.labels == [] for one in found]


def test_stdout_carries_the_table_alone(world, asked):
    words = ["predict", world["pets.fch"], *asked, "--csv", "-", "--top", "1"]
    done = subprocess.run([sys.executable, "-m", "featcache", *map(str, words)], capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert [row["uri"] for row in csv.DictReader(io.StringIO(done.stdout.decode(), newline=""))] == [*map(str, asked)]
    assert b"cannot be used" in done.stderr
    assert main([*map(str, words), "--json"]) == 2


def test_ctrl_c_keeps_what_is_done_and_the_same_command_goes_on(world, capsys):
    script = (
        "import sys, time\n"
        "from featcache.training.prediction_table import PredictionTable\n"
        "add = PredictionTable.add\n"
        "def slow(self, predictions):\n"
        "    add(self, predictions)\n"
        "    print('added', flush=True)\n"
        "    time.sleep(60)\n"
        "PredictionTable.add = slow\n"
        "from featcache.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    words = ["predict", str(world["pets.fch"]), str(world["photos"]), "--csv", str(world["t.csv"])]
    child = subprocess.Popen(
        [sys.executable, "-c", script, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "added\n"
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=60)
    assert (child.returncode, "FILE.partial" in said) == (130, True)
    assert not world["t.csv"].exists()
    partial = world["t.csv.partial"]
    whole = partial.read_bytes()
    for cut in (len(whole), len(whole) - 1, len(whole) - 30, whole.index(b"\n") + 5, len(whole) // 2):
        partial.write_bytes(whole[:cut])
        world["t.csv"].unlink(missing_ok=True)
        assert main(words) == 0
        assert not partial.exists()
        known = {row["uri"] for row in rows(world["t.csv"])}
        assert len(rows(world["t.csv"])) == 2 * len(known) == 48
    assert "were answered before" in capsys.readouterr().out
    # Something else is not mixed into it.
    for change, told in (
        (lambda: fc.train(world["pets.fcache"], head="knn").save(world["pets.fch"]), "the head is another"),
        (lambda: world["photos/cats/cat-00.jpg"].unlink(), "the images are others"),
    ):
        partial.write_bytes(whole)
        change()
        assert main(words) == 2
        said = capsys.readouterr().err
        assert told in said
        assert f"Remove {partial}" in said
    for cut in (0, 1, 20, whole.index(b"\n") - 5, whole.index(b"\n")):  # the first line is not whole: nothing is done
        partial.write_bytes(whole[:cut])
        assert main(words) == 0
    partial.write_bytes(whole)
    assert main([*words, "--top", "1"]) == 2
    assert "--top is another" in capsys.readouterr().err
    assert partial.read_bytes() == whole


@pytest.mark.parametrize("what", ["a file", "a store", "a file of equal size and time"])
def test_answers_to_other_pixels_are_not_gone_on_with(world, capsys, what):
    bundle, image = fc.load(world["pets.fch"]), world["photos/cats/cat-00.jpg"]
    asked = world["pets.fcache"] if what == "a store" else world["photos"]
    words = ["predict", str(world["pets.fch"]), str(asked), "--csv", str(world["t.csv"])]
    with Run(bundle, [asked]).table(world["pets.fch"], world["t.csv"], safe=False, force=False) as table:
        table.add(next(Run(bundle, [asked]).batches()))
    before = image.stat()
    image.write_bytes(world["photos/dogs/dog-01.jpg"].read_bytes())
    if what == "a store":
        os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
        fc.extract(world["photos"], world["pets.fcache"], progress=False)
    elif what != "a file":
        os.truncate(image, before.st_size)
        os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert main(words) == 2
    assert "the images are others, or have changed" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="limits of a process")
def test_a_full_disk_is_told_and_the_same_command_goes_on(world):
    words = ["predict", str(world["pets.fch"]), str(world["photos"]), "--csv", str(world["t.csv"])]
    script = (
        "import resource, sys\n"
        "from featcache.training.prediction_table import PredictionTable\n"
        "begin = PredictionTable.add\n"
        "def limited(self, predictions):\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (600, resource.RLIM_INFINITY))\n"
        "    begin(self, predictions)\n"
        "PredictionTable.add = limited\n"
        "from featcache.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    said = " ".join(done.stderr.split())
    assert "t.csv.partial could not be written" in said
    assert "run the same command again" in said
    assert main(words) == 0
    assert len({row["uri"] for row in rows(world["t.csv"])}) == 24


def test_a_second_run_does_not_write_the_same_table(world, capsys):
    words = ["predict", str(world["pets.fch"]), str(world["photos"]), "--csv", str(world["t.csv"])]
    names = [str(image) for image in sorted(world["photos"].rglob("*.jpg"))]
    with PredictionTable(world["t.csv"], {}, names) as first:
        first.add([Prediction(names[0], [("cats", 0.5)])])
        begun = first.partial.read_bytes()
        for more in ([], ["--force"]):
            assert main([*words, *more]) == 2
            said = capsys.readouterr().err
            assert "Another process is writing" in said
            assert "another --csv FILE" in said
        assert first.partial.read_bytes() == begun
        assert main([*words[:-1], str(world["other.csv"])]) == 0
    assert not list(world.folder.glob("*.lock"))
    world["t.csv.partial"].write_bytes(b"")  # of a run that was killed as it began
    assert main(words) == 0
    assert {path.name for path in world.folder.glob("*.csv*")} == {"labels.csv", "other.csv", "t.csv"}


def test_json_tells_what_was_answered_before_and_now(world, capsys):
    words = ["predict", str(world["pets.fch"]), str(world["photos"]), "--json"]
    assert main(words) == 0
    alone = json.loads(capsys.readouterr().out)["predictions"]
    run = Run(fc.load(world["pets.fch"]), [world["photos"]])
    with run.table(world["pets.fch"], world["t.csv"], safe=False, force=False) as table:
        table.add(next(run.batches())[:10])
    assert main([*words, "--csv", str(world["t.csv"])]) == 0
    both = json.loads(capsys.readouterr().out)["predictions"]
    assert [one["uri"] for one in both] == [one["uri"] for one in alone]
    assert [one["labels"][0]["label"] for one in both] == [one["labels"][0]["label"] for one in alone]
    assert main([*words[:2], "gone.jpg", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["predictions"][0]["labels"] == []


def test_something_else_called_partial_is_not_overwritten(world, capsys):
    world["t.csv.partial"].write_text("mine")
    words = ["predict", str(world["pets.fch"]), str(world["photos"]), "--csv", str(world["t.csv"])]
    assert main(words) == 2
    assert world["t.csv.partial"].read_text() == "mine"
    assert main([*words, "--force"]) == 0


class _NoNetwork:
    def __getattr__(self, name):
        raise AssertionError(f"the network was asked for {name}")


def test_known_vectors_are_not_computed_again(world, monkeypatch):
    bundle = fc.load(world["pets.fch"])
    images = sorted(world["photos"].rglob("*.jpg"))
    computed = bundle.predict(images)
    copies = world["copies"]
    copies.mkdir()
    moved = []
    for place, image in enumerate(images[:5]):
        moved.append(copies / f"{place}.jpg")
        moved[-1].write_bytes(image.read_bytes())
    by_copy = bundle.predict(moved)
    monkeypatch.setattr(fc.Bundle, "backbone", lambda self, given=None: _NoNetwork())
    found = bundle.predict(images, store=world["pets.fcache"])
    assert [one.uri for one in found] == [str(image) for image in images]
    for one, other in [
        *zip(found, computed, strict=True),
        *zip(bundle.predict(moved, store=world["pets.fcache"]), by_copy, strict=True),
    ]:
        assert [label for label, _ in one.labels] == [label for label, _ in other.labels]
        assert np.allclose([p for _, p in one.labels], [p for _, p in other.labels], atol=1e-3)


def test_changed_content_is_computed(world):
    image = world["photos/cats/cat-00.jpg"]
    image.write_bytes(world["photos/dogs/dog-00.jpg"].read_bytes()[:-1] + b"\xd9")
    other = world["photos/dogs/dog-03.jpg"]
    store = fc.open(world["pets.fcache"])
    bundle = fc.load(world["pets.fch"])
    known = KnownVectors(store, bundle.recipe, [use.name for use in bundle.layers])
    image.write_bytes(image.read_bytes() + b"changed")
    assert list(known.of([image, other])) == [1]
    assert known.of([world["photos"] / "gone.jpg"]) == {}


def test_a_store_answers_for_its_images_though_they_are_gone(world, capsys):
    for image in world["photos"].rglob("*.jpg"):
        image.unlink()
    assert main(["predict", str(world["pets.fch"]), str(world["pets.fcache"]), "--json", "--top", "1"]) == 0
    told = json.loads(capsys.readouterr().out)["predictions"]
    items = fc.open(world["pets.fcache"]).items()
    assert [one["uri"] for one in told] == [str(world["photos"] / item.uri) for item in items]
    assert sum(one["labels"][0]["label"] == item.label for one, item in zip(told, items, strict=True)) > 18


def test_a_store_without_the_heads_vectors_is_told(world, small_network):
    fc.extract(world["photos"], world["other.fcache"], backbone=small_network, layers=["blocks.4:mean"])
    with pytest.raises(FeatcacheError, match="holds no layer pooled"):
        fc.load(world["pets.fch"]).predict(world["photos"], store=world["other.fcache"])
    # One that is asked about is answered from its images.
    assert not any(one.problem for one in fc.load(world["pets.fch"]).predict(world["other.fcache"]))


def test_one_image_that_is_missing_is_an_error_where_one_is_asked_for(world):
    with pytest.raises(SourceError, match="There is no image"):
        fc.similar(world["pets.fcache"], world["gone.jpg"])


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
LABELS = st.lists(st.tuples(TEXT, st.none() | st.integers(0, 10**6).map(lambda n: n / 10**6)), max_size=3)
PREDICTIONS = st.lists(
    st.one_of(st.builds(Prediction, TEXT, LABELS), st.builds(Prediction, TEXT, st.just([]), TEXT.filter(bool))),
    max_size=5,
)


@given(PREDICTIONS, st.booleans())
@settings(max_examples=200, deadline=None)
def test_tables_are_read_back_as_they_were_written(tmp_path_factory, found, safe):
    path = tmp_path_factory.mktemp("tables") / "t.csv"
    names = [one.uri for one in found]
    with PredictionTable(path, {}, names, safe=safe) as table:
        table.add(found)
        table.finish()
    again = list(read_predictions(path))
    if not safe:
        assert again == found
    assert [rows_of(one) for one in again] == [rows_of(one, safe=safe) for one in found]


@given(PREDICTIONS.filter(len), st.data())
@settings(max_examples=100, deadline=None)
def test_a_table_cut_anywhere_ends_as_a_whole_one(tmp_path_factory, found, data):
    folder = tmp_path_factory.mktemp("tables")
    names = [one.uri for one in found]
    with PredictionTable(folder / "t.csv", {}, names) as table:
        table.add(found)
        whole = table.partial.read_bytes()
    first = whole.index(b"\n") + 1
    table.partial.write_bytes(whole[: data.draw(st.integers(first, len(whole)))])
    with PredictionTable(folder / "t.csv", {}, names) as table:
        table.add(found[table.done :])
        table.finish()
    assert (folder / "t.csv").read_bytes() == whole[first:]


def test_formulas_are_counted_and_quoted(world, capsys):
    names = ["=cmd.jpg", "+a.jpg", "-a.jpg", "@a.jpg", "\ta.jpg", "a.jpg"]
    os.chdir(world["photos"])
    for name in names:
        Path(name).write_bytes(world["photos/cats/cat-00.jpg"].read_bytes())
    words = ["predict", str(world["pets.fch"]), "--top", "1", "--csv", str(world["t.csv"])]
    assert main([*words, "--", *names]) == 0
    assert "Warning: 5 cells" in capsys.readouterr().out
    assert [row["uri"] for row in rows(world["t.csv"])] == names
    assert main([*words, "--csv-safe", "--", *names]) == 0
    assert "Warning" not in capsys.readouterr().out
    assert [row["uri"] for row in rows(world["t.csv"])] == [f"'{name}" for name in names[:5]] + names[5:]


def test_csv_safe_alone_is_wrong_usage(world):
    assert main(["predict", str(world["pets.fch"]), str(world["photos"]), "--csv-safe"]) == 2
