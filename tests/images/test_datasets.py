"""Datasets of other libraries as sources: URIs, labels, files, and what cannot be one."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from featcache.core.errors import UnusableImageError, UsageError
from featcache.images.datasets import DatasetSource
from featcache.images.sources import open_source
from tests.images.making_datasets import ClassLabelFeature, ImageFeature, Pairs, Table
from tests.images.tars import image_bytes


def described(dataset: Any) -> list[tuple[str, str | None, str | None]]:
    return [(e.uri, e.label, e.split) for e in DatasetSource(dataset, name="x").entries()]


def small(level: int) -> Image.Image:
    return Image.fromarray(np.full((4, 5, 3), level, np.uint8))


def test_what_an_item_gives_counts_and_not_what_is_kept_beside_it() -> None:
    for name in ("targets", "labels", "_labels"):
        dataset = Pairs([(small(i), target) for i, target in enumerate((0, 1, -1))], classes=["cat", "dog"])
        setattr(dataset, name, [1, 0, -1])
        assert [label for _, label, _ in described(dataset)] == ["cat", "dog", None]
        assert dataset.loaded == 3


@pytest.mark.parametrize("kept", [[7, 0, -1], np.array([7, 0, -1]), torch.tensor([7, 0, -1])])
def test_targets_of_torchvisions_own_datasets_need_no_image(kept: Any) -> None:
    from torchvision.datasets import MNIST

    dataset = MNIST.__new__(MNIST)
    dataset.transform = dataset.target_transform = None
    dataset.targets = kept
    dataset.data = [None] * 3  # so that no item can be loaded
    assert [label for _, label, _ in described(dataset)] == ["7 - seven", "0 - zero", None]


def test_an_image_that_comes_with_another_label_than_was_listed_is_not_used() -> None:
    dataset = Pairs([(small(0), 0)], classes=["cat", "dog"])
    (entry,) = DatasetSource(dataset, name="x").entries()
    dataset.items = [(small(0), 1)]
    assert entry.make_image is not None
    with pytest.raises(UnusableImageError, match="label 'dog' now, and 'cat' when it was listed"):
        entry.make_image()


def test_other_targets_are_taken_from_the_items() -> None:
    assert [label for _, label, _ in described(Pairs([(small(0), 4), (small(1), "x"), (small(2), None)]))] == [
        "4", "x", None,
    ]  # fmt: skip
    dataset = Pairs([(small(0), torch.tensor(1)), (small(1), np.int64(0))], classes=["cat", "dog"])
    dataset.targets = [0]  # type: ignore[attr-defined]
    assert [label for _, label, _ in described(dataset)] == ["dog", "cat"]
    with pytest.raises(UsageError, match="of type tuple"):
        described(Pairs([(small(0), (1, 2))]))


def test_class_folders_give_their_files(tmp_path: Path) -> None:
    from torchvision.datasets import ImageFolder

    for name in ("cats/b.png", "dogs/a.png", "dogs/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(image_bytes(len(name)))
    dataset = ImageFolder(str(tmp_path))
    assert described(dataset) == [
        ("00000000-b.png", "cats", None), ("00000001-a.png", "dogs", None), ("00000002-c.png", "dogs", None),
    ]  # fmt: skip
    entry = DatasetSource(dataset, name="x").entries()[0]
    assert entry.read()[0] == (tmp_path / "cats/b.png").read_bytes()
    assert entry.state() is not None
    part = torch.utils.data.Subset(dataset, [2, 0])
    assert [uri for uri, _, _ in described(part)] == ["00000002-c.png", "00000000-b.png"]
    own = ImageFolder(str(tmp_path), loader=lambda path: small(7))
    (image_of_own, *_) = DatasetSource(own, name="x").entries()
    assert image_of_own.make_image is not None
    assert image_of_own.make_image().getpixel((0, 0)) == (7, 7, 7)


def test_splits_by_name() -> None:
    train, test = Pairs([(small(0), 0)]), Pairs([(small(1), 1)])
    source = open_source({"train": train, "test": test}, name="pets")
    assert [(e.uri, e.split) for e in source.entries()] == [("train/00000000", "train"), ("test/00000000", "test")]
    assert (source.name, source.root) == ("pets", "python:tests.images.making_datasets.Pairs")


def test_a_table() -> None:
    rows = [{"id": i, "image": {"bytes": image_bytes(i), "path": f"{i}.png"}, "kind": i - 1} for i in range(3)]
    features = {"id": object(), "image": ImageFeature(), "kind": ClassLabelFeature(["cat", "dog"])}
    for formatted in (False, True):
        table = Table(rows, features, formatted)
        assert described(table) == [("00000000", None, None), ("00000001", "cat", None), ("00000002", "dog", None)]
        entries = DatasetSource(table, name="x").entries()
        assert [entry.read()[0] for entry in entries] == [image_bytes(i) for i in range(3)]
        assert {entry.state() for entry in entries} == {None}
    plain = Table([row | {"label": f"l{row['id']}"} for row in rows], {"image": ImageFeature(), "label": object()})
    assert [label for _, label, _ in described(plain)] == ["l0", "l1", "l2"]


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (3, "with a length and items by index, not 3"),
        (dict, "not a dict itself"),
        (iter([1]), "not a list_iterator"),
        (Pairs([]), "is empty"),
        (Table([], {"a": object()}), "0 columns of images"),
        (Table([], {"a": ImageFeature(), "b": ImageFeature()}), r"2 columns of images.*a \(Image\), b \(Image\)"),
        ({"a/b": Pairs([(None, 0)])}, "cannot be the name of a split"),
    ],
)
def test_what_cannot_be_a_source(dataset: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        DatasetSource(dataset, name="x").entries()


def test_two_columns_of_labels_and_a_transform_are_refused() -> None:
    features = {"image": ImageFeature(), "fine": ClassLabelFeature(["a"]), "coarse": ClassLabelFeature(["b"])}
    with pytest.raises(UsageError, match=r"2 columns of labels.*remove_columns"):
        DatasetSource(Table([], features), name="x").entries()
    dataset = Pairs([(small(0), 0)])
    dataset.transform = lambda image: image  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match="transform=None"):
        DatasetSource(dataset, name="x").entries()


def test_a_dataset_needs_a_name() -> None:
    with pytest.raises(UsageError, match="needs a name"):
        DatasetSource(Pairs([(small(0), 0)]), name=None)


def test_with_the_library_itself() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        datasets = pytest.importorskip("datasets")
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["cat", "dog"]))
    rows = {"image": [{"bytes": image_bytes(i), "path": None} for i in range(4)], "label": [0, 1, 1, -1]}
    table = datasets.Dataset.from_dict(rows, features=features)
    for one in (table, table.with_format("torch")):
        assert [label for _, label, _ in described(one)] == ["cat", "dog", "dog", None]
        entries = DatasetSource(datasets.DatasetDict(train=one), name="x").entries()
        assert [entry.read()[0] for entry in entries] == [image_bytes(i) for i in range(4)]
        assert {entry.split for entry in entries} == {"train"}


def test_a_table_is_called_one() -> None:
    import pandas

    with pytest.raises(UsageError, match=r"DataFrame is a table.*to_csv"):
        open_source(pandas.DataFrame({"path": ["a.png"], "label": ["a"]}), name="mine")
