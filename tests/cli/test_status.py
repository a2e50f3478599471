"""What ``featcache status`` tells of a store: classes and splits of each source, views of each layer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from featcache.cli import main
from featcache.store import StoreWriter
from featcache.store.sources import Record, SourceRecords
from tests.store.making import keys, recipe, values


def with_items(path: Path, source: str, labels_and_splits: list[tuple[str | None, str | None]], start: int = 0) -> None:
    count = len(labels_and_splits)
    with StoreWriter(path) as writer:
        SourceRecords(writer.catalogue, source, "/nowhere").save(
            [
                Record(f"{i:05}.jpg", key, label, split, None, 1, 2, 3, 4, 5)
                for i, (key, (label, split)) in enumerate(zip(keys(count, start), labels_and_splits, strict=True))
            ]
        )


@pytest.fixture
def shown(capsys):
    """A store's status as a program gets it, and the lines that a person does."""

    def shown(store):
        assert main(["status", str(store), "--json"]) == 0
        data = json.loads(capsys.readouterr().out)
        assert main(["status", str(store)]) == 0
        return data, capsys.readouterr().out.splitlines()

    return shown


def test_classes_and_splits_of_each_source(tmp_path, shown):
    store = tmp_path / "s.fcache"
    with_items(store, "pets", [("dogs", "train")] * 3 + [("cats", "train")] * 2 + [("cats", "test"), (None, None)])
    with_items(store, "plants", [("fern", None)] * 2, start=100)
    data, lines = shown(store)
    assert [(one["name"], one["classes"], one["splits"]) for one in data["sources"]] == [
        ("pets", {"cats": 3, "dogs": 3}, {"test": 1, "train": 5}),
        ("plants", {"fern": 2}, {}),
    ]
    assert lines[1:] == [
        "Source pets: 7 items from /nowhere",
        "  2 classes, 1 item without:",
        "    cats (3), dogs (3)",
        "  2 splits, 1 item without:",
        "    test (1), train (5)",
        "Source plants: 2 items from /nowhere",
        "  1 class:",
        "    fern (2)",
        "No vectors yet.",
    ]


def test_classes_that_do_not_fit_are_counted(tmp_path, shown):
    store = tmp_path / "s.fcache"
    with_items(store, "many", [(f"class {i:04}", None) for i in range(1000)])
    data, lines = shown(store)
    assert data["sources"][0]["classes"] == {f"class {i:04}": 1 for i in range(1000)}
    classes = lines[3:-1]
    assert lines[2] == "  1,000 classes:"
    assert len(classes) == 4
    assert all(len(line) <= 80 for line in classes)
    named = sum(line.count("class ") for line in classes)
    assert classes[-1] == f"    … and {1000 - named} more"


def test_names_of_classes_and_splits_are_escaped_on_the_screen_alone(tmp_path, shown):
    store = tmp_path / "s.fcache"
    nasty = "a\x1b[2J\u202eb"
    with_items(store, "s", [(nasty, nasty)])
    data, lines = shown(store)
    assert data["sources"][0]["classes"] == data["sources"][0]["splits"] == {nasty: 1}
    assert lines.count(r"    a\x1b[2J\u202eb (1)") == 2


def test_each_layer_has_its_own_views(tmp_path, shown):
    store = tmp_path / "s.fcache"
    drawn = [f"{'a' * 16}-5-{i}" for i in (1, 2)]
    with StoreWriter(store) as writer:
        space = writer.space(recipe())
        columns = [("body:mean", "0"), ("pooled", "0"), *(("pooled", view) for view in drawn)]
        for layer, view in columns:
            space.declare(layer, view, 0 if layer == "body:mean" else 1, "float32")
        space.append(keys(4), {column: values(4) for column in columns})
        space.seal()
    data, lines = shown(store)
    (space,) = data["spaces"]
    assert space["layer_views"] == {"body:mean": ["0"], "pooled": ["0", *drawn]}
    assert space["layers"] == list(space["layer_views"])
    assert space["views"] == ["0", *drawn]
    (row,) = [line.split() for line in lines if "body:mean" in line]
    assert row[2:5] == ["body:mean", "1", "16"]
    at = next(number for number, line in enumerate(lines) if "pooled" in line)
    assert lines[at].split() == ["pooled", "3"]
    assert lines[at + 1].split() == ["seed", "5"]
