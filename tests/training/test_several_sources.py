"""Heads of several sources, of which some have splits of their own."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import featcache as fc
from featcache.backbones import tiny_backbone
from featcache.core.progress import Silent
from featcache.training.dataset import FeatureDataset
from featcache.training.holdout import divide, held_out
from featcache.training.selection import Selection
from tests.training.sides import sides_of


class Notes(Silent):
    """Keeps the notes."""

    def __init__(self) -> None:
        self.kept: list[str] = []

    def note(self, text: str) -> None:
        self.kept.append(text)


@pytest.fixture
def store(tmp_path: Path, draw_images: Callable[..., Path]) -> Path:
    """``split``: 16 images to train on and 8 to test on; ``whole``: 24 of other classes without splits."""
    drawn = draw_images(tmp_path / "drawn", ("cats", "dogs", "owls"), each=24)
    for path in sorted(drawn.rglob("*.jpg")):
        name, number = path.parent.name, int(path.stem[-2:])
        part = "split/train" if number < 8 else "split/test" if number < 12 else "whole"
        if name == {"split/train": "owls", "split/test": "owls", "whole": "dogs"}[part]:
            continue
        (tmp_path / part / name).mkdir(parents=True, exist_ok=True)
        path.rename(tmp_path / part / name / path.name)
    for name in ("split", "whole"):
        fc.extract(tmp_path / name, tmp_path / "s.fcache", backbone=tiny_backbone(), progress=False)
    return tmp_path / "s.fcache"


def test_a_source_without_splits_joins_one_that_has_them(store: Path) -> None:
    bundle = fc.train(store, "ridge", source=["split", "whole"], progress=False)
    held = sum(side == "test" for side in sides_of(store, "whole").values())
    assert 0 < held < 24
    assert (bundle.classes, bundle.fitted_on) == (("cats", "dogs", "owls"), 16 + 24 - held)
    score = bundle.report["score"]
    assert score["n"] == 8 + held
    assert score["protocol"] == (
        f"the source's own split 'test', 8 items; of the sources without splits a hold-out of {held} of 24 items "
        "(by content, seed 0)"
    )
    found = fc.evaluate(bundle, store, source=["split", "whole"])
    assert (found.n, found.accuracy, found.overlap) == (score["n"], score["accuracy"], 0)
    assert found.protocol == f"the split 'test', and {held} held-out items of the sources without splits"
    again = fc.train(store, "ridge", source=["split", "whole"], refit_all=True, progress=False)
    assert again.fitted_on == 48


def test_the_hold_out_of_a_source_is_the_same_beside_another(store: Path) -> None:
    fc.train(store, "ridge", source=["split", "whole"], progress=False)
    together = sides_of(store, "whole")
    score = fc.train(store, "ridge", source="whole", progress=False).report["score"]
    assert sides_of(store, "whole") == together
    assert score["n"] == sum(side == "test" for side in together.values())


def test_copies_in_another_source_are_on_one_side(store: Path, tmp_path: Path) -> None:
    for path in sorted((tmp_path / "split").rglob("*.jpg")):
        part = path.parent.parent.name
        target = tmp_path / "whole" / path.parent.name
        target.mkdir(exist_ok=True)
        shutil.copy(path, target / f"{part}-{path.name}")
    fc.extract(tmp_path / "whole", store, backbone=tiny_backbone(), progress=False)
    opened = fc.open(store)
    dataset = FeatureDataset.from_store(opened, None, Selection(source=["split", "whole"]))
    sides = divide(dataset, None, 0, opened, Silent())
    assert not np.isin(dataset.groups[sides.test_rows], dataset.groups[sides.train_rows]).any()
    scored = [dataset.items[row] for row in sides.test_rows]
    assert sum(item.source == "split" for item in scored) == 8
    held = {item.sha256 for item, side in zip(dataset.items, held_out(dataset, opened), strict=True) if side}
    learned = {item.sha256 for item in opened.items(source="split", split="train")}
    assert f"; {len(held & learned)} items not scored, because they are copies of training ones" in sides.protocol
    assert " left out, because they are copies of scored ones" in sides.protocol


@pytest.mark.parametrize("several", [False, True])
def test_images_without_a_split_among_others_with_one_are_told(store: Path, tmp_path: Path, several: bool) -> None:
    table = tmp_path / "split.csv"
    uris = [item.uri for item in fc.open(store).items(source="whole")]
    rows = [f"{uri},{('train', 'test', 'val', '')[i % 4]}" for i, uri in enumerate(uris)]
    table.write_text("\n".join(["path,split", *rows]) + "\n", encoding="utf-8")
    fc.extract(tmp_path / "whole", store, backbone=tiny_backbone(), split=table, progress=False)
    notes = Notes()
    sources = ["split", "whole"] if several else "whole"
    score = fc.train(store, "ridge", source=sources, progress=notes).report["score"]
    assert score["protocol"].endswith("; left out: 6 items of the split 'val' and 6 items without a split")
    assert [note for note in notes.kept if "without a split" in note] == [
        "6 labeled items without a split left out: others of their source have one. Give them one with "
        "`featcache extract --split FILE`."
    ]
