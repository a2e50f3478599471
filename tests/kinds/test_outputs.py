"""What every output replaces: a file of its own kind that featcache wrote, and nothing else."""

from __future__ import annotations

import os
import stat

import numpy as np
import pytest

import featcache as fc
from featcache.core.errors import FeatcacheError, UsageError
from featcache.core.outputs import FIGURE, HEAD, PAIRS, PREDICTIONS, VECTORS, check_output, written_output
from featcache.faces.pairs_file import Pairs, write_pairs
from featcache.finetuning.history import Curve, Epoch, draw_learning_curve
from featcache.metrics.plots import draw_confusion
from tests.doors import Door, Outcome, Parameter, World, doors, entries, named

OUTPUTS = entries("output")
LONG = {"featcache finetune", "featcache advise", "fc.faces.evaluate", "featcache faces evaluate"}
PREDICT = "featcache predict"


def called(world: World, door: Door, /, **given) -> Outcome:
    """The outcome of a call, with an error of Python as a command has it."""
    try:
        return world.call(door, **given)
    except FeatcacheError as error:
        return Outcome(error.exit_code, "", str(error))


def refused(outcome: Outcome) -> bool:
    return outcome.code == 2 and "overwritten" in outcome.err


@pytest.mark.parametrize(("door", "output"), OUTPUTS, ids=named(OUTPUTS))
def test_what_is_something_else_is_not_overwritten(door: Door, output: Parameter, world_for):
    world = world_for(door)
    path = world.valid(door, output)
    path.parent.mkdir(exist_ok=True)
    for content in (b"path,label\nphotos/a.jpg,cats\n", b"\x89PNG\r\n\x1a\n", b"{\n}\n", b"\xff" * 100):
        path.write_bytes(content)
        outcome = called(world, door, **{output.name: path})
        assert refused(outcome), outcome
        assert "images" not in outcome.err  # nothing was begun
        assert path.read_bytes() == content


@pytest.mark.parametrize(("door", "output"), OUTPUTS, ids=named(OUTPUTS))
def test_a_link_is_judged_by_what_it_leads_to(door: Door, output: Parameter, world_for):
    world = world_for(door)
    path, precious = world.valid(door, output), world["photos/precious.txt"]
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(precious)
    assert refused(called(world, door, **{output.name: path}))  # a link to nothing
    assert not precious.exists()
    precious.write_text("mine\n" * 3)
    assert refused(called(world, door, **{output.name: path}))
    assert precious.read_text() == "mine\n" * 3


@pytest.mark.parametrize(("door", "output"), OUTPUTS, ids=named(OUTPUTS))
def test_folders_and_places_that_cannot_be_written(door: Door, output: Parameter, world_for):
    world = world_for(door)
    path = world.valid(door, output)
    path.mkdir(parents=True)
    assert refused(called(world, door, **{output.name: path}))
    within = world["labels.csv"] / path.name
    outcome = called(world, door, **{output.name: within})
    assert (outcome.code, "cannot be written" in outcome.err) == (2, True)


@pytest.mark.parametrize(("door", "output"), OUTPUTS, ids=named(OUTPUTS))
def test_a_store_keeps_no_other_files(door: Door, output: Parameter, world_for):
    world = world_for(door)
    store, name = world["pets.fcache"], world.valid(door, output).name
    world["linked"].symlink_to(store / "shards")
    force = {"force": True} if any(p.name == "force" for p in door.parameters) else {}
    for inside in (store / name, world["linked"] / name, world["linked"] / "new" / name):
        outcome = called(world, door, **{output.name: inside}, **force)
        assert (outcome.code, "lies in the store" in outcome.err) == (2, True)
        assert not inside.parent.exists() or not inside.exists()


COMMANDS = [(door, output) for door, output in OUTPUTS if door.is_command]


@pytest.mark.parametrize(("door", "output"), COMMANDS, ids=named(COMMANDS))
def test_what_is_read_is_not_overwritten_even_if_forced(door: Door, output: Parameter, world_for):
    world = world_for(door)
    suffix = world.valid(door, output).suffix
    read = [p for p in door.parameters if p.role in {"head", "store", "image", "images", "labels", "pairs", "weights"}]
    assert read
    for parameter in read:
        value = world.valid(door, parameter) if parameter.role != "weights" else world["labels.csv"]
        value = value[0] if isinstance(value, list) else value
        if value.is_dir():
            continue  # `test_a_store_keeps_no_other_files`, `test_an_image_of_the_folder_that_is_asked_about`
        same = value.with_name(f"linked{suffix}")
        same.unlink(missing_ok=True)
        os.link(value, same)
        before = value.read_bytes()
        for path in (same, value) if value.suffix == suffix else (same,):
            outcome = called(world, door, **{parameter.name: value, output.name: path, "force": True})
            assert (outcome.code, "is read by this command" in outcome.err) == (2, True), (parameter, outcome)
            assert value.read_bytes() == before


def test_an_image_of_the_folder_that_is_asked_about(world):
    (door,) = [door for door in doors("output") if door.name == PREDICT]
    image = world["photos/cats/cat-00.jpg"]
    before = image.read_bytes()
    world["linked"].symlink_to(world["photos"])
    world["photos/inner"].symlink_to(world["photos/cats"])
    for folder in ("photos", "linked"):
        for path in (image, world["linked/cats/cat-00.jpg"], world["photos/inner/../cats/cat-00.jpg"]):
            outcome = world.call(door, images=[world[folder]], table=path, force=True)
            assert refused(outcome), outcome
            assert image.read_bytes() == before


def test_an_image_that_a_link_in_the_folder_leads_to(world, tmp_path):
    (door,) = [door for door in doors("output") if door.name == PREDICT]
    image, other = tmp_path / "else" / "one.jpg", tmp_path / "two.jpg"
    image.parent.mkdir()
    for path in (image, other):
        path.write_bytes(world["photos/cats/cat-00.jpg"].read_bytes())
    world["photos/more"].symlink_to(image.parent)
    world["photos/cats/two.jpg"].symlink_to(other)
    before = image.read_bytes()
    for path in (image, other):
        outcome = world.call(door, images=[world["photos"]], table=path, force=True)
        assert (outcome.code, "is read through" in outcome.err) == (2, True), outcome
        assert path.read_bytes() == before
    notes = image.with_name("notes.txt")
    notes.write_text("not read")
    assert world.call(door, images=[world["photos"]], table=notes, force=True).code == 0


def test_a_sealed_shard_is_not_replaced_through_a_link(world):
    (shard,) = world["pets.fcache/shards"].rglob("*.h5")
    before = shard.read_bytes()
    world["linked"].symlink_to(shard.parent)
    for force in (False, True):
        with pytest.raises(UsageError, match="lies in the store"):
            check_output(world["linked"] / shard.name, VECTORS, force=force)
    link = world[f"link{shard.suffix}"]
    link.symlink_to(shard)
    fc.open(world["pets.fcache"]).export(link, force=True)
    assert not link.is_symlink()  # the link gave way, not what it leads to
    assert shard.read_bytes() == before


@pytest.mark.parametrize("line", ["https://my.server/notes?token=abc", "one, two", "path;label", "\ufeffnotes"])
def test_a_single_line_that_is_no_heading_is_not_overwritten(tmp_path, line):
    path = tmp_path / "t.csv"
    path.write_text(f"{line}\n", encoding="utf-8")
    with pytest.raises(UsageError, match="not overwritten"):
        check_output(path, PREDICTIONS)


@pytest.mark.parametrize(
    "line", ["", "an older table\n", "path,label\n", "path,label,split,group", "uri,rank,label,probability,problem\r\n"]
)
def test_a_table_without_a_row_gives_way(tmp_path, line):
    path = tmp_path / "t.csv"
    path.write_text(line, encoding="utf-8")
    check_output(path, PREDICTIONS)


@pytest.mark.parametrize("listed", ["labels.csv", "table.fcache"])
def test_an_image_that_a_table_or_a_store_lists_is_not_overwritten_even_if_forced(listed: str, world, tmp_path):
    (door,) = [door for door in doors("output") if door.name == PREDICT]
    (tmp_path / "else").mkdir()
    image = tmp_path / "else" / "one.jpg"
    image.write_bytes(world["photos/cats/cat-00.jpg"].read_bytes())
    other = world["photos/cats/cat-01.jpg"]
    table = tmp_path / "labels.csv"
    table.write_text(f"path,label\nelse/one.jpg,cats\n{other},dogs\n")
    fc.extract(table, tmp_path / "table.fcache", progress=False)
    before = image.read_bytes(), table.read_bytes()
    link = tmp_path / "link.csv"
    link.symlink_to(image)
    for path in (image, link, table) if listed == "table.fcache" else (image, link):
        outcome = world.call(door, images=[tmp_path / listed], table=path, force=True)
        assert (outcome.code, "is read through" in outcome.err) == (2, True), outcome
    assert (image.read_bytes(), table.read_bytes()) == before
    (tmp_path / "else" / "two.jpg").write_bytes(b"not listed")
    outcome = world.call(door, images=[tmp_path / "table.fcache"], table=tmp_path / "else" / "two.jpg", force=True)
    assert "is read through" not in outcome.err


def _params(entry):
    return pytest.param(*entry, marks=[pytest.mark.slow] if entry[0].name in LONG else [])


@pytest.mark.parametrize(("door", "output"), [_params(entry) for entry in OUTPUTS], ids=named(OUTPUTS))
def test_its_own_kind_and_what_is_forced_give_way_by_a_whole_file(door: Door, output: Parameter, world_for):
    world = world_for(door)
    path = world.valid(door, output)
    before = os.umask(0o027)
    try:
        assert called(world, door, **{output.name: path}).code == 0
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    first, inode = path.read_bytes(), path.stat().st_ino
    link = path.with_name(f"link{path.suffix}")
    link.symlink_to(path)
    assert called(world, door, **{output.name: link}).code == 0
    assert (link.is_symlink(), path.read_bytes()) == (False, first)  # the link gave way, not what it leads to
    assert called(world, door, **{output.name: path}).code == 0
    assert path.stat().st_ino != inode
    if any(parameter.name == "force" for parameter in door.parameters):
        path.write_bytes(b"something else")
        assert called(world, door, **{output.name: path}, force=True).code == 0
        assert path.read_bytes() != b"something else"
    names = {file.name for file in path.parent.iterdir()}
    assert {path.name, link.name} <= names
    assert not [name for name in names if name.startswith(".") or name.endswith(".partial")]


def test_the_files_that_python_alone_writes(tmp_path):
    curve = Curve((Epoch(*[1] * len(Epoch.__annotations__)),), "epochs")
    pairs = Pairs(np.array([[0, 1], [0, 2]]), np.array([True, False]), np.zeros(2, np.int64))
    doors = {
        "confusion.png": lambda path, **how: draw_confusion(np.eye(2, dtype=int), ["a", "b"], path, **how),
        "curve.png": lambda path, **how: draw_learning_curve(curve, path, **how),
        "pairs.txt": lambda path, **how: write_pairs(
            path, pairs, ["a/x.jpg", "a/y.jpg", "b/z.jpg"], ["a", "a", "b"], **how
        ),
    }
    for name, write in doors.items():
        path = tmp_path / name
        path.write_text("mine")
        with pytest.raises(FeatcacheError, match="overwritten"):
            write(path)
        assert path.read_text() == "mine"
        write(path, force=True)
        write(path)
    assert len(list(tmp_path.iterdir())) == len(doors)


def test_each_kind_knows_its_own_and_no_other(world):
    fc.open(world["pets.fcache"]).export(world["v.npz"])
    fc.open(world["pets.fcache"]).export(world["v.h5"])
    draw_confusion(np.eye(2, dtype=int), ["a", "b"], world["f.png"])
    (door,) = [door for door in doors("output") if door.name == PREDICT]
    assert world.call(door, table=world["t.csv"]).code == 0
    (world["pairs.csv"]).write_text("1\na\t1\t2\na\t1\tb\t1\n")
    files = {
        HEAD: ["pets.fch"], VECTORS: ["v.npz", "v.h5"], FIGURE: ["f.png"], PREDICTIONS: ["t.csv"],
        PAIRS: ["pairs.csv"],
    }  # fmt: skip
    for kind in files:
        for other, names in files.items():
            for name in names:
                assert kind.ours(world[name]) if kind is other else not _ours(kind, world[name]), (kind, name)


def _ours(kind, path) -> bool:
    try:
        return kind.ours(path)
    except Exception:
        return False


def test_a_table_of_the_previous_version_gives_way(tmp_path):
    (tmp_path / "t.csv").write_text("uri,rank,label,probability\r\na.jpg,1,cats,0.9\r\n")
    check_output(tmp_path / "t.csv", PREDICTIONS)


def test_one_file_for_two_outputs_is_refused(world):
    (door,) = [door for door in doors("output") if door.name == "featcache finetune"]
    outcome = world.call(door, target=world["a.png"], curve=world["a.png"])
    assert (outcome.code, "named twice" in outcome.err) == (2, True)


def test_pipes_and_devices_are_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/null"):
        with pytest.raises(FeatcacheError, match="overwritten"):
            check_output(path, PREDICTIONS)


def test_a_failure_leaves_what_was_there(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("uri,rank,label,probability,problem\n")

    def fail() -> None:
        with written_output(path, PREDICTIONS) as aside:
            aside.write_text("half")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fail()
    assert path.read_text() == "uri,rank,label,probability,problem\n"
    assert list(tmp_path.iterdir()) == [path]
