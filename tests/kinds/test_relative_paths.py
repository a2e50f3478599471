"""What was opened by a relative path is fixed then: a program that changes its folder afterwards changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import featcache as fc
from featcache.images.sources import open_source
from featcache.store import StoreWriter
from tests.doors import Door, World, doors

LONG_LIVED = {"FeatureStore", "Bundle", "Backbone", "CachedEmbedder"}
METHODS = [door for door in doors() if door.owner is not None and door.owner.__name__ in LONG_LIVED]


@pytest.mark.parametrize("door", METHODS, ids=str)
def test_objects_stay_where_they_were_opened(
    door: Door, world_for: Callable[[Door], World], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    world = world_for(door)
    place = world.folder
    monkeypatch.chdir(place.parent)
    world.folder = Path(place.name)
    opened = world.object_of(door)
    world.folder = place
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(World, "object_of", lambda self, door: opened)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    world.call(door)
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("kind", ["folder", "table", "tables of labels and splits"])
def test_sources_stay_where_they_were_opened(
    kind: str, world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(world.folder)
    rows = [line.split(",")[0] for line in Path("labels.csv").read_text().split()[1:]]
    Path("split.csv").write_text("path,split\n" + "".join(f"{row},train\n" for row in rows))
    Path("photos/all.csv").write_text(Path("labels.csv").read_text())
    source = {
        "folder": lambda: open_source("photos"),
        "table": lambda: open_source("photos/all.csv"),
        "tables of labels and splits": lambda: open_source("photos", labels="labels.csv", split="split.csv"),
    }[kind]()
    monkeypatch.chdir(tmp_path)
    entries = source.entries()
    assert len(entries) == 24
    assert all(entry.read()[0] for entry in entries)


def test_what_extract_remembers_is_absolute(world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(world.folder)
    fc.extract("photos", "new.fcache", backbone=world.network, labels="labels.csv", progress=False)
    monkeypatch.chdir(tmp_path)
    assert fc.extract(world["photos"], world["new.fcache"], progress=False).computed == 0
    items = fc.open(world["new.fcache"]).items()
    assert {item.label for item in items} == {"cats", "dogs"}


def test_a_writer_stays_where_it_was_opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = fc.backbones.get("bundled:efficientnet_lite0").recipe
    (tmp_path / "elsewhere").mkdir()
    with StoreWriter(Path("s.fcache")) as writer:
        monkeypatch.chdir(tmp_path / "elsewhere")
        space = writer.space(recipe)
        space.declare("pooled", "0", 0)
        space.append([bytes(32)], {("pooled", "0"): np.ones((1, 4), np.float32)})
    assert fc.verify(tmp_path / "s.fcache", progress=False).rows == 1
    assert list(Path().iterdir()) == []
