"""A class has one number in every part of a source."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

import featcache as fc
from tests.kinds.listed import Listed, write_source

if TYPE_CHECKING:
    from featcache.store import FeatureStore

NAMES = ["glass", "metal", "paper"]


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    """Split test has no metal, and split val paper alone."""
    labels = {"train": NAMES, "test": ["glass", "paper"], "val": ["paper"]}
    rows = [(label, split) for split, found in labels.items() for label in found for _ in range(3)]
    write_source(tmp_path / "s.fcache", [Listed(i, label, split) for i, (label, split) in enumerate(rows)])
    return fc.open(tmp_path / "s.fcache")


def of_dataset(store: FeatureStore, split: str | None, _: Path) -> tuple[list[str], list[int], list[str]]:
    dataset = store.dataset(split=split)
    assert dataset.class_to_idx == {name: i for i, name in enumerate(dataset.classes)}
    return dataset.classes, dataset.targets.tolist(), [str(item.label) for item in dataset.items]


def of_file(suffix: str) -> Callable[[FeatureStore, str | None, Path], tuple[list[str], list[int], list[str]]]:
    def read(store: FeatureStore, split: str | None, folder: Path) -> tuple[list[str], list[int], list[str]]:
        store.export(folder / f"x{suffix}", split=split)
        labels = [str(item.label) for item in store.items(split)]
        if suffix == ".npz":
            with np.load(folder / "x.npz") as file:
                return file["classes"].tolist(), file["labels"].tolist(), labels
        import h5py

        with h5py.File(folder / f"x{suffix}") as file:
            return file["classes"].asstr()[:].tolist(), file["labels"][:].tolist(), labels

    return read


@pytest.mark.parametrize("split", [None, "train", "test", "val"])
@pytest.mark.parametrize("door", [of_dataset, of_file(".h5"), of_file(".npz")], ids=["dataset", ".h5", ".npz"])
def test_a_class_has_one_number_in_every_part(
    store: FeatureStore, tmp_path: Path, split: str | None, door: Callable[..., tuple[list[str], list[int], list[str]]]
) -> None:
    classes, numbers, labels = door(store, split, tmp_path)
    assert classes == NAMES == store.classes()
    assert numbers == [NAMES.index(label) for label in labels]


def test_labels_given_number_classes_of_the_whole_source(store: FeatureStore) -> None:
    given = {item.uri: str(item.label).upper() for item in store.items()}
    dataset = store.dataset(split="val", labels=given)
    assert dataset.classes == [name.upper() for name in NAMES]
    assert set(dataset.targets.tolist()) == {2}
