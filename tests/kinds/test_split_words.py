"""The words for splits mean the same at every door, and what merges or looks like a split is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

import featcache as fc
from featcache.core.labels import doubts, split_name
from featcache.images.datasets import DatasetSource
from featcache.images.entry import notes_of
from featcache.images.folder import FolderSource
from featcache.images.sources import open_source
from featcache.store import Item
from featcache.training.dataset import FeatureDataset, Selection
from tests.doors import FACES, doors
from tests.images.making_datasets import Pairs
from tests.images.tars import image_bytes, write_tar

WORDS = {
    "train": "train", "Training": "train", "TRAIN": "train", "val": "val", "Valid": "val", "validation": "val",
    "DEV": "val", "eval": "val", "Test": "test", "testing": "test",
}  # fmt: skip


def picture(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(image_bytes(seed))
    return path


def by_folder(root: Path, word: str) -> str | None:
    picture(root / "p" / word / "cats" / "a.png")
    return open_source(root / "p").entries()[0].split


def by_table(root: Path, word: str) -> str | None:
    picture(root / "a.png")
    (root / "t.csv").write_text(f"path,split\na.png,{word}\n")
    return open_source(root / "t.csv").entries()[0].split


def by_file(root: Path, word: str) -> str | None:
    picture(root / "p" / "a.png")
    (root / "split.csv").write_text(f"path,split\na.png,{word}\n")
    return open_source(root / "p", split=root / "split.csv").entries()[0].split


def by_fractions(root: Path, word: str) -> str | None:
    picture(root / "p" / "a.png")
    return open_source(root / "p", split=f"{word}=0.999,other=0.001").entries()[0].split


def by_tar(root: Path, word: str) -> str | None:
    members = [("0.png", image_bytes(0)), ("0.json", json.dumps({"label": "a", "split": word}).encode())]
    return open_source(write_tar(root / "t.tar", members)).entries()[0].split


def by_dataset(root: Path, word: str) -> str | None:
    return DatasetSource({word: Pairs([(None, 0)])}, name="d").entries()[0].split


def by_npz(root: Path, word: str) -> str | None:
    np.savez(root / "f.npz", features=np.zeros((1, 2)), labels=["a"], splits=[word])
    return FeatureDataset.from_file(root / "f.npz").items[0].split


def by_hdf5(root: Path, word: str) -> str | None:
    with h5py.File(root / "f.h5", "w") as file:
        file["features"], file["labels"], file["splits"] = np.zeros((1, 2)), ["a"], [word]
    return FeatureDataset.from_file(root / "f.h5").items[0].split


def by_choice(root: Path, word: str) -> str | None:
    return Selection(split=word).split


def by_an_earlier_store(root: Path, word: str) -> str | None:
    return Item("s", "a.png", b"", None, word, None).split


LISTINGS = [by_folder, by_table, by_file, by_fractions, by_tar, by_dataset, by_npz, by_hdf5]
OTHERS = [by_choice, by_an_earlier_store]


@pytest.mark.parametrize("door", LISTINGS + OTHERS)
def test_one_rule_at_every_door(door: Callable[[Path, str], str | None], tmp_path: Path) -> None:
    for number, (word, meant) in enumerate(WORDS.items()):
        (tmp_path / str(number)).mkdir()
        assert door(tmp_path / str(number), word) == meant
    if door is not by_folder:
        (tmp_path / "x").mkdir()
        assert door(tmp_path / "x", "Week_3") == "Week_3"


@pytest.mark.slow
@pytest.mark.parametrize("door", [door for door in doors("split") if door.name not in FACES], ids=str)
def test_every_door_that_takes_a_split_knows_the_words(door, world_for) -> None:
    world = world_for(door)
    moved = fc.ExtractionConfig(moved=True)
    fc.extract(world["photos"], world["pets.fcache"], backbone=world.network, split="0.6/0.4", config=moved)
    outcome = world.call(door, split="Training")
    assert outcome.code == 0, outcome.err


def test_folders_of_one_meaning_merge_and_it_is_said(tmp_path: Path) -> None:
    for place in ("train/a/1.png", "Training/a/2.png", "Test/b/3.png"):
        picture(tmp_path / place)
    source = FolderSource(tmp_path)
    assert [(e.uri, e.split) for e in source.entries()] == [
        ("Test/b/3.png", "test"), ("Training/a/2.png", "train"), ("train/a/1.png", "train"),
    ]  # fmt: skip
    assert source.notes == ("The folders Training and train are both the split train.",)


@pytest.mark.parametrize("kind", ["table", "file", "dataset"])
def test_words_of_one_meaning_merge_and_it_is_said(tmp_path: Path, kind: str) -> None:
    for name in ("p/a.png", "p/b.png"):
        picture(tmp_path / name)
    (tmp_path / "p" / "t.csv").write_text("path,split\na.png,val\nb.png,Dev\n")
    if kind == "table":
        source = open_source(tmp_path / "p" / "t.csv")
    elif kind == "file":
        source = open_source(tmp_path / "p", split=tmp_path / "p" / "t.csv")
    else:
        source = open_source({"val": Pairs([(None, 0)]), "Dev": Pairs([(None, 0)])}, name="d")
    assert {entry.split for entry in source.entries()} == {"val"}
    assert "Dev and val are both the split val" in notes_of(source)[0].replace("both val", "both the split val")


def test_labels_that_look_like_splits_are_told() -> None:
    (note,) = doubts(["Training", "Testing", "cats"])
    assert "Testing, Training" in note
    assert doubts(["test", "cats"]) == []  # one alone is a class like any other
    assert split_name("Week_3") == "Week_3"


def test_a_folder_of_fractions_names_no_split_twice(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    with pytest.raises(fc.FeatcacheError, match="one split twice"):
        open_source(tmp_path, split="train=0.5,Training=0.5")


@pytest.mark.parametrize(
    ("places", "said"),
    [
        (["2023/cats/a.png", "2023/dogs/b.png"], "extract {root}/2023 in its place"),
        (["2023/cats/a.png", "2024/cats/b.png"], r"first folder \(2023, 2024\).*folders below it \(cats\)"),
        (["train/2023/cats/a.png", "test/2023/dogs/b.png"], "folder below it|folders below it"),
    ],
)
def test_classes_below_other_folders_are_told_with_the_choice(tmp_path: Path, places: list[str], said: str) -> None:
    for place in places:
        picture(tmp_path / place)
    source = FolderSource(tmp_path)
    source.entries()
    (note,) = source.notes
    assert "--labels FILE" in note
    import re

    assert re.search(said.format(root=re.escape(str(tmp_path.resolve()))), note), note


def test_a_few_images_below_a_class_are_not_told(tmp_path: Path) -> None:
    for place in ("cats/a.png", "cats/more/b.png"):
        picture(tmp_path / place)
    source = FolderSource(tmp_path)
    source.entries()
    assert source.notes == ()
