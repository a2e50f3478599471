"""Several sources train as one, with the labels of a file beside those stored, and each label is counted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageOps

import featcache as fc
from featcache.backbones import tiny_backbone
from featcache.cli import main


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, draw_images: Callable[..., Path]) -> Path:
    """Folders ``near`` and ``far`` of 24 images, one of them in both, the store of both, and ``more.csv``."""
    root = tmp_path_factory.mktemp("sources")
    draw_images(root / "near")
    draw_images(root / "far")
    for path in sorted((root / "far").rglob("*.jpg"))[1:]:
        ImageOps.mirror(Image.open(path)).save(path, quality=95)
    for name in ("near", "far"):
        fc.extract(root / name, root / "s.fcache", backbone=tiny_backbone(), progress=False)
    # Two corrections, one label taken away, and one that says the same as the folder.
    rows = ["cats/cat-03.jpg,dogs", "cats/cat-04.jpg,dogs", "cats/cat-05.jpg,", "dogs/dog-03.jpg,dogs"]
    (root / "more.csv").write_text("\n".join(["path,label", *(f"{root / 'far'}/{row}" for row in rows)]) + "\n")
    return root


def train(place: Path, *words: str) -> tuple[int, Path]:
    head = place / "a.fch"
    return main(["train", str(place / "s.fcache"), "-o", str(head), "--force", "--head", "ridge", *words]), head


BOTH = ("--source", "near", "--source", "far")


def test_both_are_learned_from_and_scored_and_one_image_counts_once(place: Path, capsys: Any) -> None:
    assert train(place, *BOTH, "--json")[0] == 0
    report = json.loads(capsys.readouterr().out)
    bundle, store = fc.load(place / "a.fch"), fc.open(place / "s.fcache")
    items = [item for name in ("near", "far") for item in store.items(source=name)]
    assert len(items) == report["n"] + report["score"]["n"] == 48
    assert len({item.sha256 for item in items}) == 47
    learned = {item.sha256 for item in items if bundle.overlap([item.sha256])}
    assert {item.source for item in items if item.sha256 in learned} == {"near", "far"}
    assert report["n"] == sum(item.sha256 in learned for item in items)
    found = fc.evaluate(bundle, store, source=["near", "far"], progress=False)
    assert (found.n, found.accuracy) == (report["score"]["n"], report["score"]["accuracy"])
    # What one source holds out, the other does too.
    for name in ("near", "far"):
        alone = fc.train(store, "centroid", source=name, progress=False)
        assert {row.tobytes() for row in alone.trained_on} <= learned


def test_the_labels_are_counted_by_where_they_come_from(place: Path, capsys: Any) -> None:
    more = str(place / "more.csv")
    assert train(place, *BOTH, "--labels", more)[0] == 0
    shown = capsys.readouterr()
    told = f"Labels: 3 from {more}, 44 kept from the store, 1 removed."
    assert told in " ".join((shown.out + shown.err).split())
    assert train(place, *BOTH, "--labels", more, "--json")[0] == 0
    report = json.loads(capsys.readouterr().out)
    assert report["labels"] == {"file": more, "from_file": 3, "kept": 44, "removed": 1}
    assert report["n"] + report["score"]["n"] == 47


def test_one_of_several_sources_has_to_be_named(place: Path, capsys: Any) -> None:
    assert train(place)[0] == 2
    error = capsys.readouterr().err
    assert "near" in error
    assert "far" in error
