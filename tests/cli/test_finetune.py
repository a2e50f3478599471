"""`multilayer`, `tune` and `finetune` from the command line, to heads that answer like any other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from featcache.cli import main


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, draw_images: Callable[..., Path]) -> Path:
    return draw_images(tmp_path_factory.mktemp("strategies") / "photos")


@pytest.fixture(scope="module")
def store(photos: Path, small_network: str) -> Path:
    """Layers are added to it from test to test, in their order."""
    assert main(["extract", str(photos), "-o", str(photos.parent / "s.fcache"), "--backbone", small_network]) == 0
    return photos.parent / "s.fcache"


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    def run(*words: object) -> dict[str, Any]:
        capsys.readouterr()
        assert main([*map(str, words), "--json"]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    return run


def test_multilayer_takes_all_blocks(store: Path, tmp_path: Path, told: Callable[..., dict[str, Any]]) -> None:
    report = told("multilayer", store, "-o", tmp_path / "m.fch")
    assert report["strategy"] == "multilayer"
    assert report["layers"] == [f"blocks.{i}:mean_std" for i in range(5)] + ["pooled"]
    assert told("evaluate", tmp_path / "m.fch", store)["accuracy"] == report["score"]["accuracy"]


def test_tune_asks_before_it_stores(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", str(store), "-o", str(tmp_path / "t.fch"), "--from-layer", "blocks.4"]) == 2
    said = capsys.readouterr().err
    assert "blocks.3:none of 24 images in 4 views take" in said
    assert "--yes" in said
    assert not (tmp_path / "t.fch").exists()


def test_tune_to_a_head_that_answers(
    store: Path, tmp_path: Path, photos: Path, told: Callable[..., dict[str, Any]]
) -> None:
    words = ["tune", store, "-o", tmp_path / "t.fch", "--from-layer", "blocks.4", "--views", "2", "--epochs", "2"]
    report = told(*words, "--yes", "--curve", tmp_path / "t.png")
    assert report["head"] == "tune"
    assert len(report["curve"]["epochs"]) == 2
    assert report["activations"]["bytes"] == 24 * 2 * 10 * 10 * 48 * 2
    assert (tmp_path / "t.png").read_bytes()[:4] == b"\x89PNG"
    assert sorted(path.name for path in tmp_path.glob("t.*")) == ["t.fch", "t.png"]
    again = told(*words)  # stored by now, so nothing is asked
    assert again["activations"]["bytes"] == 0
    assert again["curve"]["epochs"][-1]["validation_loss"] == report["curve"]["epochs"][-1]["validation_loss"]
    answered = told("predict", tmp_path / "t.fch", photos / "cats" / "cat-00.jpg")["predictions"][0]["labels"]
    assert {one["label"] for one in answered} == {"cats", "dogs"}


def test_finetune_from_scratch(store: Path, tmp_path: Path, photos: Path, told: Callable[..., dict[str, Any]]) -> None:
    words = ["--init", "scratch", "--arch", "scratch:small_cnn", "--epochs", "2", "--batch-size", "4"]
    report = told("finetune", store, "-o", tmp_path / "w.fch", *words)
    assert report["network"] == "scratch:small_cnn"
    assert told("evaluate", tmp_path / "w.fch", store)["accuracy"] == report["score"]["accuracy"]
    assert sorted(path.name for path in tmp_path.glob("w.*")) == ["w.fch"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["tune", "--from-layer", "blocks.4", "--hidden", "3"],
            "--hidden does not go with --init pretr",
        ),
        (
            ["tune", "--from-layer", "blocks.4", "--init", "new", "--epochs", "3"],
            "--epochs does not go",
        ),
        (["tune", "--from-layer", "blocks.4", "--init", "old"], "'old'"),
        (["tune", "--from-layer", "blocks.9", "--yes"], "blocks.4"),
        (["tune", "--from-layer", "pooled"], "Behind `pooled` the network has no layers"),
        (["finetune", "--arch", "scratch:small_cnn"], "--arch does not go with --init pretrained"),
        (["finetune", "--init", "scratch", "--arch", "scratch:small"], "small_cnn"),
        (["finetune", "--rate", "0"], "rate"),
        (["finetune", "--curve", "a.jpg"], ".png"),
    ],
)
def test_words_that_do_not_go_together(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    capsys.readouterr()
    assert main([words[0], str(store), "-o", str(tmp_path / "x.fch"), *words[1:]]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "x.fch").exists()


@pytest.mark.slow
@pytest.mark.parametrize("answer", ["n", "y"])
def test_on_a_terminal_tune_asks(store: Path, tmp_path: Path, answer: str) -> None:
    """A terminal of its own, with the question's answer typed in."""
    words = ["tune", str(store), "-o", str(tmp_path / "q.fch"), "--from-layer", "conv_head", "--views", "1"]
    parent, child = os.openpty()
    done = subprocess.Popen(
        [sys.executable, "-m", "featcache", *words, "--epochs", "1"],
        stdin=child, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    os.write(parent, f"{answer}\n".encode())
    out, _ = done.communicate(timeout=300)
    os.close(parent)
    os.close(child)
    assert "Store them?" in out
    assert done.returncode == (0 if answer == "y" else 1)
    assert (tmp_path / "q.fch").exists() == (answer == "y")
    assert ("Nothing was stored" in out) == (answer == "n")
