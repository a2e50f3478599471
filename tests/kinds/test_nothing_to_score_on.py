"""Where nothing is left to score on, the head is made; its score is unknown, and that is said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import featcache as fc
from featcache.backbones import tiny_backbone
from featcache.cli import main
from featcache.heads import HEADS
from tests.kinds.listed import Listed, write_source

NAMES = ["glass", "metal", "paper", "wood"]
WORLDS = {
    "one image of each class": [Listed(i, name) for i, name in enumerate(NAMES)],
    "copies of one image": [Listed(i, name, name=f"{i}-{copy}.jpg") for i, name in enumerate(NAMES) for copy in "ab"],
    "only copies in the split": [
        Listed(i, name, split, name=f"{split}/{i}-{copy}.jpg")
        for i, name in enumerate(NAMES)
        for copy, split in (("a", "train"), ("b", "test"))
    ],
    "no split to score on": [Listed(4 * j + i, name, "train") for i, name in enumerate(NAMES) for j in range(3)],
}


@pytest.fixture(params=WORLDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    write_source(tmp_path / "s.fcache", WORLDS[request.param])
    return tmp_path / "s.fcache"


def check(report: dict[str, Any], name: str = "accuracy") -> None:
    score = report["score"]
    assert (score[name], score["low"], score["high"], score["n"]) == (None, None, None, 0)
    assert score["protocol"].startswith("nothing to score on: ")
    json.dumps(report, allow_nan=False)


@pytest.mark.parametrize("head", [*HEADS, "sklearn.linear_model:RidgeClassifier"])
@pytest.mark.parametrize("refit_all", [False, True])
def test_every_head_is_made(head: str, refit_all: bool, tmp_path: Path) -> None:
    write_source(tmp_path / "s.fcache", WORLDS["one image of each class"])
    bundle = fc.train(tmp_path / "s.fcache", head, refit_all=refit_all, progress=False)
    check(bundle.report)
    assert len(bundle.trained_on) == 4
    bundle.save(tmp_path / "h.fch")
    check(fc.load(tmp_path / "h.fch").report)


def test_every_reason_is_said(store: Path) -> None:
    check(fc.train(store, "ridge", progress=False).report)


def test_several_labels_an_image(tmp_path: Path) -> None:
    rows = [Listed(0, "a|b"), Listed(1, "c"), Listed(2, "|", "train")]
    write_source(tmp_path / "s.fcache", [Listed(row.content, row.label) for row in rows[:2]])
    check(fc.train(tmp_path / "s.fcache", task="multilabel", progress=False).report, "mean_average_precision")


def test_a_sweep_takes_its_first_head_and_says_why(store: Path) -> None:
    report = fc.sweep(store, ["knn", "ridge"], progress=False)
    check({"score": report.score})
    assert report.winner["head"] == "knn" or report.folds
    if not report.folds:
        assert report.left_out == NAMES
        assert all("nothing to choose by" in str(cell.problem) for cell in report.cells)


def test_classes_of_one_image_take_no_part_in_the_choice(tmp_path: Path) -> None:
    rows = [Listed(2 * i + j, "ab"[j]) for i in range(12) for j in range(2)] + [Listed(100, "alone")]
    write_source(tmp_path / "s.fcache", rows)
    report = fc.sweep(tmp_path / "s.fcache", ["knn"], progress=False)
    assert report.left_out == ["alone"]
    assert report.folds > 1
    assert "alone" in report.bundle.classes


@pytest.mark.parametrize("command", ["train", "sweep", "all-blocks"])
def test_it_is_said_on_the_screen(
    command: str, draw_images: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = draw_images(tmp_path / "images", each=1)
    fc.extract(root, tmp_path / "s.fcache", backbone=tiny_backbone(), layers=["pooled", "body.0:mean"], progress=False)
    words = {
        "train": ["train"],
        "sweep": ["sweep", "--heads", "knn"],
        "all-blocks": ["train", "--layers", "body.0:mean"],
    }
    assert main([*words[command], str(tmp_path / "s.fcache"), "-o", str(tmp_path / "h.fch")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "unknown" in said
    assert "nothing to score on: each class has one image" in said
    assert (tmp_path / "h.fch").exists()
    shutil.rmtree(root)
