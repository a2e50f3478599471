"""Labels: what a dataset's items give, one text for what looks the same, and what is doubtful is told."""

from __future__ import annotations

import importlib
import json
import random
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.data import ConcatDataset, Subset
from torchvision.datasets import ImageFolder

import featcache as fc
from featcache.core.errors import UsageError
from featcache.core.labels import contradictions, doubts, given_label
from featcache.heads import HEADS
from featcache.images.datasets import DatasetSource
from featcache.images.sources import open_source
from featcache.store import Item
from featcache.training.dataset import FeatureDataset
from tests.images.making_datasets import ClassLabelFeature, ImageFeature, Pairs, Table
from tests.images.tars import image_bytes, write_tar

NFC, NFD = (unicodedata.normalize(form, "Müll") for form in ("NFC", "NFD"))


def folder(root: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image_bytes(number))
    return root


def classes_below(root: Path, *names: str, each: int = 3) -> ImageFolder:
    return ImageFolder(folder(root, *(f"{name}/{i}.png" for name in names for i in range(each))))


def listed(dataset: Any) -> list[str | None]:
    return [entry.label for entry in DatasetSource(dataset, name="d").entries()]


def expected(dataset: Any) -> list[str]:
    return [str(dataset.classes[dataset[i][1]]) for i in range(len(dataset))]


class Merging(ImageFolder):
    def __getitem__(self, place: int) -> tuple[Any, Any]:
        image, target = super().__getitem__(place)
        return image, int(target != 0)


class Reversed(Subset[Any]):
    def __getitem__(self, place: Any) -> Any:
        return self.dataset[self.indices[-1 - place]]

    def __getitems__(self, places: Any) -> Any:
        return [self[place] for place in places]


def test_shuffled_samples_and_targets_kept_beside(tmp_path: Path) -> None:
    dataset = classes_below(tmp_path, "glass", "metal", "paper")
    random.Random(0).shuffle(dataset.samples)
    assert listed(dataset) == expected(dataset)
    dataset.targets = [0] * len(dataset)
    assert listed(dataset) == expected(dataset)
    entries = DatasetSource(dataset, name="d").entries()
    assert [entry.place for entry in entries] == [path for path, _ in dataset.samples]


def test_a_target_transform_and_a_loader_of_its_own(tmp_path: Path) -> None:
    classes_below(tmp_path, "glass", "metal")
    dataset = ImageFolder(tmp_path, target_transform=lambda target: 1 - target)
    assert listed(dataset) == expected(dataset) == ["metal"] * 3 + ["glass"] * 3
    own = ImageFolder(tmp_path, loader=lambda path: np.zeros((4, 5, 3), np.uint8))
    entries = DatasetSource(own, name="d").entries()
    assert [entry.label for entry in entries] == expected(own)
    assert all(entry.make_image is not None for entry in entries)


def test_items_of_its_own_give_label_and_image_together(tmp_path: Path) -> None:
    classes_below(tmp_path, "glass", "metal", "paper")
    dataset = Merging(tmp_path)
    dataset.classes = ["glass", "other"]
    assert listed(dataset) == expected(dataset)
    mirrored = Reversed(Pairs([(None, "a"), (None, "b"), (None, "c")]), [0, 1])
    assert listed(mirrored) == ["b", "a"]


def test_a_transform_in_the_way_is_refused_however_deep(tmp_path: Path) -> None:
    classes_below(tmp_path, "glass", "metal")
    dataset = ImageFolder(tmp_path, transform=lambda image: image)
    joint = Pairs([(None, 0)])
    joint.transforms = lambda image, target: (image, target)  # type: ignore[attr-defined]
    for given in (dataset, Subset(dataset, [0]), ConcatDataset([dataset]), {"train": dataset}, joint):
        with pytest.raises(UsageError, match="transform=None"):
            listed(given)


def test_parts_merge_by_the_names_of_their_classes(tmp_path: Path) -> None:
    a = classes_below(tmp_path / "a", "glass", "metal", each=1)
    b = classes_below(tmp_path / "b", "metal", "paper", each=1)
    both = ConcatDataset([a, b])
    assert listed(both) == ["glass", "metal", "metal", "paper"]
    entries = DatasetSource(both, name="d").entries()
    assert [entry.uri for entry in entries] == [f"{i:08}-{name}" for i, name in enumerate(["0.png"] * 4)]
    assert entries[2].read()[0] == (tmp_path / "b" / "metal" / "0.png").read_bytes()
    deep = Subset(ConcatDataset([Subset(a, [1]), b, Subset(both, [0, 3])]), [4, 0, -3])
    assert listed(deep) == ["paper", "metal", "paper"]
    assert [e.uri[:8] for e in DatasetSource(deep, name="d").entries()] == ["00000004", "00000000", "00000002"]
    assert listed(ConcatDataset([Subset(a, [1, 1]), b])) == ["metal", "metal", "metal", "paper"]
    assert listed(Subset(a, [1, 1, -1])) == ["metal"]
    with pytest.raises(UsageError, match="beyond the 2 of"):
        listed(Subset(a, [7]))


def test_numbers_of_different_kinds_that_fall_together_are_told() -> None:
    class Others(Pairs):
        pass

    source = DatasetSource(ConcatDataset([Pairs([(None, 0)]), Others([(None, 0)])]), name="d")
    source.entries()
    assert "Others and Pairs have no names of classes" in source.notes[0]


@pytest.mark.parametrize("kind", ["torchvision", "table"])
def test_two_classes_of_one_name_stay_two(kind: str) -> None:
    names = ["crane", "cat", "crane"]
    if kind == "torchvision":
        dataset: Any = Pairs([(None, i) for i in range(3)], classes=names)
        marks = ("n02012849", "n03126707")
        dataset.classes = [(name,) if name == "crane" else (name, "tabby") for name in names]
        dataset.wnids = ["n02012849", "n02123045", "n03126707"]
        cat = "cat, tabby"
    else:
        dataset = Table([{"image": None, "label": i} for i in range(3)],
                        {"image": ImageFeature(), "label": ClassLabelFeature(names)})  # fmt: skip
        marks, cat = ("0", "2"), "cat"
    source = DatasetSource(dataset, name="d")
    assert [e.label for e in source.entries()] == [f"crane ({marks[0]})", cat, f"crane ({marks[1]})"]
    assert "same name" in source.notes[0]


def test_a_row_transform_of_hugging_face_is_refused() -> None:
    table = Table([], {"image": ImageFeature()})
    table.format = {"type": "custom"}  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match="reset_format"):
        listed(table)


def by_folder(root: Path, label: str) -> list[str | None]:
    return [e.label for e in open_source(folder(root, f"p/{label}/a.png") / "p").entries()]


def by_table(root: Path, label: str) -> list[str | None]:
    (folder(root, "a.png") / "t.csv").write_text(f"path,label\na.png,{label}\n", encoding="utf-8")
    return [e.label for e in open_source(root / "t.csv").entries()]


def by_file(root: Path, label: str) -> list[str | None]:
    (folder(root, "p/a.png") / "t.csv").write_text(f"path,label\na.png,{label}\n", encoding="utf-8")
    return [e.label for e in open_source(root / "p", labels=root / "t.csv").entries()]


def by_tar(root: Path, label: str) -> list[str | None]:
    members = [("0.png", image_bytes(0)), ("0.cls", label.encode())]
    members += [("1.png", image_bytes(1)), ("1.json", json.dumps({"label": label}).encode())]
    return [e.label for e in open_source(write_tar(root / "t.tar", members)).entries()]


def by_dataset(root: Path, label: str) -> list[str | None]:
    return listed(Pairs([(None, 0), (None, label)], classes=[label]))


def by_npz(root: Path, label: str) -> list[str | None]:
    np.savez(root / "f.npz", features=np.zeros((1, 2)), labels=np.array([label]))
    np.savez(root / "g.npz", features=np.zeros((1, 2)), labels=np.array([0]), classes=np.array([label]))
    return [str(FeatureDataset.from_file(root / name).y[0]) for name in ("f.npz", "g.npz")]


def by_an_earlier_store(root: Path, label: str) -> list[str | None]:
    return [Item("s", "a.png", b"", label, None, None).label]


@pytest.mark.parametrize("door", [by_folder, by_table, by_file, by_tar, by_dataset, by_npz, by_an_earlier_store])
def test_what_looks_the_same_is_one_class(door: Callable[[Path, str], list[str | None]], tmp_path: Path) -> None:
    for number, label in enumerate((NFC, NFD)):
        (tmp_path / str(number)).mkdir()
        assert set(door(tmp_path / str(number), label)) == {NFC}


def test_two_folders_that_look_the_same_are_one_class_and_it_is_said(tmp_path: Path) -> None:
    source = open_source(folder(tmp_path, f"{NFC}/a.png", f"{NFD}/b.png", "glass/c.png"))
    assert {entry.label for entry in source.entries()} == {NFC, "glass"}
    assert NFC in source.notes[0]  # type: ignore[attr-defined]


class NAType:
    """As pandas has it."""


MISSING = [None, float("nan"), np.float32("nan"), "", "  ", "nan", "NaN", b"", NAType()]


@pytest.mark.parametrize("missing", MISSING, ids=lambda one: f"{type(one).__name__}:{str(one)[:4]}")
def test_no_label_is_none(missing: object) -> None:
    assert given_label(missing) is None


@pytest.mark.parametrize("missing", [None, float("nan"), "", "nan"], ids=repr)
@pytest.mark.parametrize("head", sorted(HEADS))
def test_a_head_names_the_row_without_a_label(head: str, missing: object) -> None:
    module, name = HEADS[head].split(":")
    kind = getattr(importlib.import_module(module), name)
    X = np.random.default_rng(0).normal(size=(20, 4))
    y = np.array(["a", "b"] * 10, dtype=object)
    y[13] = missing
    with pytest.raises(UsageError, match="Row 13 of the labels"):
        kind().fit(X, y)


@pytest.mark.parametrize("kind", ["float", "text", "classes"])
def test_rows_of_a_file_without_a_label_are_left_out(tmp_path: Path, kind: str) -> None:
    y: Any = np.repeat([0.0, 1.0], 20)
    y[::5] = np.nan
    more = {"classes": np.array(["a", "b"])} if kind == "classes" else {}
    if kind == "text":
        y = np.array(["" if np.isnan(v) else f"c{v:.0f}" for v in y])
    X = np.random.default_rng(0).normal(size=(40, 4))
    np.savez(tmp_path / "f.npz", features=X, labels=y, **more)
    dataset = FeatureDataset.from_file(tmp_path / "f.npz")
    assert (len(dataset.y), dataset.without_labels) == (32, 8)
    assert set(dataset.y) == {"float": {"0.0", "1.0"}, "text": {"c0", "c1"}, "classes": {"a", "b"}}[kind]


def test_numbers_that_measure_are_told_with_how_many_classes_they_make() -> None:
    ages = [str(age) for age in np.random.default_rng(0).integers(0, 100, 300)]
    (note,) = doubts(ages)
    assert f"{len(set(ages))} classes" in note
    assert "ranges" in note
    assert len(doubts([f"{x:.2f}" for x in np.linspace(0, 1, 30)])) == 1
    assert doubts([str(number) for number in range(100)] * 20) == []  # CIFAR-100
    assert doubts([str(number) for number in range(10)]) == []
    assert doubts(["a", "b"] * 5) == []


def test_several_labels_in_another_order_contradict_nothing() -> None:
    assert contradictions([(b"1", "a|b", "x"), (b"1", "b|a", "y"), (b"2", "a", "z")]) is None
    told = contradictions([(b"1", "a", "x"), (b"1", "b", "y"), (b"1", "b", "z"), (b"2", "a", "v"), (b"2", "c", "w")])
    assert told is not None
    assert told.startswith("Warning: 2 images have two labels or more")
    assert "v is 'a' and w is 'c'" in told


class Told:
    """Collects notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def start(self, what: str, total: int | None, unit: str) -> None: ...
    def advance(self, count: int = 1) -> None: ...
    def finish(self) -> None: ...
    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.mark.parametrize("verb", ["extract", "train", "sweep"])
def test_copies_with_different_labels_are_told(tmp_path: Path, draw_images, small_network: str, verb: str) -> None:
    photos = draw_images(tmp_path / "photos")
    one, other = sorted(path for path in photos.iterdir() if path.is_dir())
    copied = sorted(one.iterdir())[:3]
    for path in copied:
        shutil.copy(path, other / f"same-{path.name}")
    told = Told()
    first = fc.extract(photos, tmp_path / "s.fcache", backbone=small_network, progress=told)
    if verb != "extract":
        told.notes.clear()
    if verb == "train":
        fc.train(tmp_path / "s.fcache", "ridge", progress=told)
    elif verb == "sweep":
        fc.sweep(tmp_path / "s.fcache", heads=["ridge"], progress=told)
    else:
        assert [note for note in told.notes if not note.startswith("Convert")] == first.notes
    (note,) = {note for note in told.notes if "two labels" in note}
    assert note.startswith("Warning: 3 images")
    assert copied[0].name in note
