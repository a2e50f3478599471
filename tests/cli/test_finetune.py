"""`finetune`, and `train` on all blocks, from the command line, to heads that answer like any other."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from featcache.cli import main

pytestmark = pytest.mark.slow


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


def test_train_takes_all_blocks(store: Path, tmp_path: Path, told: Callable[..., dict[str, Any]]) -> None:
    report = told("train", store, "-o", tmp_path / "m.fch", "--layers", "all-blocks")
    assert report["layers"] == [f"blocks.{i}:mean_std" for i in range(5)] + ["pooled"]
    assert told("evaluate", tmp_path / "m.fch", store)["accuracy"] == report["score"]["accuracy"]


def test_it_asks_before_it_stores(
    store: Path, tmp_path: Path, small_network: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["finetune", str(store), "-o", str(tmp_path / "t.fch"), "--from", "blocks.4"]
    assert main(words) == 2
    assert "Add --yes" in capsys.readouterr().err
    # Once there are some activations, only the network tells which are needed.
    other = shutil.copytree(store, tmp_path / "s.fcache")
    assert (
        main(
            [
                "extract",
                str(store.parent / "photos"),
                "-o",
                str(other),
                "--backbone",
                small_network,
                "--layers",
                "blocks.0:mean",
            ]
        )
        == 0
    )
    assert main([words[0], str(other), *words[2:]]) == 2
    said = capsys.readouterr().err
    assert "blocks.3:none of 24 images in 4 views take" in said
    assert "--yes" in said
    assert not (tmp_path / "t.fch").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["finetune", "-o", "t.fch", "--from", "block.4", "--yes"], "Did you mean 'blocks.4'"),
        (["finetune", "-o", "t.fch", "--from", "blocks.4"], "Add --yes"),
        (["finetune", "-o", "t.fch", "--source", "photo"], "No source is called 'photo'"),
        (["advise", "--source", "photo"], "No source is called 'photo'"),
        (["advise", "--space", "none"], "none"),
    ],
)
def test_what_the_catalogue_and_the_cache_of_recipes_know_is_checked_before_torch_is_imported(
    store: Path, tmp_path: Path, words: list[str], said: str
) -> None:
    script = (
        "import sys; from featcache.cli import main; code = main(sys.argv[1:]); "
        "print('torch' in sys.modules); sys.exit(code)"
    )
    command = [sys.executable, "-c", script, words[0], str(store), *words[1:]]
    found = subprocess.run(
        command, capture_output=True, text=True, stdin=subprocess.DEVNULL, cwd=tmp_path, check=False, timeout=100
    )
    assert (found.returncode, found.stdout) == (2, "False\n"), found.stderr
    assert said in found.stderr


def test_later_layers_to_a_head_that_answers(
    store: Path, tmp_path: Path, photos: Path, told: Callable[..., dict[str, Any]]
) -> None:
    words = ["finetune", store, "-o", tmp_path / "t.fch", "--from", "blocks.4", "--views", "2", "--epochs", "2"]
    report = told(*words, "--yes", "--curve", tmp_path / "t.png")
    assert report["head"] == "finetune"
    assert report["from_layer"] == "blocks.4"
    assert len(report["curve"]["epochs"]) == 2
    assert report["activations"]["bytes"] == 24 * 2 * 10 * 10 * 48 * 2
    assert (tmp_path / "t.png").read_bytes()[:4] == b"\x89PNG"
    assert sorted(path.name for path in tmp_path.glob("t.*")) == ["t.fch", "t.png"]
    again = told(*words)  # stored by now, so nothing is asked
    assert again["activations"]["bytes"] == 0
    assert again["curve"]["epochs"][-1]["validation_loss"] == report["curve"]["epochs"][-1]["validation_loss"]
    answered = told("predict", tmp_path / "t.fch", photos / "cats" / "cat-00.jpg")["predictions"][0]["labels"]
    assert {one["label"] for one in answered} == {"cats", "dogs"}


def test_new_layers_to_a_head_that_answers(
    store: Path, tmp_path: Path, photos: Path, told: Callable[..., dict[str, Any]]
) -> None:
    words = [
        "--from",
        "blocks.4",
        "--init",
        "new",
        "--hidden",
        "8,4",
        "--dropout",
        "0.1",
        "--epochs",
        "2",
        "--lr",
        "0.01",
    ]
    report = told("finetune", store, "-o", tmp_path / "n.fch", *words, "--yes", "--curve", tmp_path / "n.png")
    assert report["activations"]["layer"] == "blocks.3:mean"
    assert (report["schedule"]["hidden"], report["schedule"]["dropout"]) == ([8, 4], 0.1)
    assert (tmp_path / "n.png").read_bytes()[:4] == b"\x89PNG"
    assert sorted(path.name for path in tmp_path.glob("n.*")) == ["n.fch", "n.png"]
    answered = told("predict", tmp_path / "n.fch", photos / "cats" / "cat-00.jpg")["predictions"][0]["labels"]
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
        (["--from", "blocks.4", "--hidden", "3"], "--hidden does not go with --init pretrained"),
        (["--from", "blocks.4", "--init", "new", "--hidden", "wide"], "width of each layer"),
        (["--from", "blocks.4", "--init", "new", "--hidden", "0"], "hidden is (0,)"),
        (["--from", "blocks.4", "--init", "old"], "'old'"),
        (["--from", "blocks.4", "--init", "scratch"], "--init scratch does not go with --from"),
        (["--from", "blocks.4", "--arch", "scratch:small_cnn"], "--arch scratch:small_cnn does not go with"),
        (["--init", "new"], "--init new needs --from"),
        (["--views", "2"], "--views goes with --from"),
        (["--from", "blocks.9", "--yes"], "blocks.4"),
        (["--from", "pooled"], "Behind `pooled` the network has no layers"),
        (["--arch", "scratch:small_cnn"], "--arch scratch:small_cnn does not go with --init pretrained"),
        (["--init", "scratch", "--arch", "scratch:small"], "small_cnn"),
        (["--lr", "0"], "lr is 0.0"),
        (["--curve", "a.jpg"], ".png"),
    ],
)
def test_words_that_do_not_go_together(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    capsys.readouterr()
    assert main(["finetune", str(store), "-o", str(tmp_path / "x.fch"), *words]) == 2
    # Rich breaks lines as the terminal is wide.
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "x.fch").exists()


@pytest.mark.slow
@pytest.mark.parametrize("answer", ["n", "y"])
def test_on_a_terminal_it_asks(store: Path, tmp_path: Path, answer: str) -> None:
    """A terminal of its own, with the question's answer typed in."""
    words = ["finetune", str(store), "-o", str(tmp_path / "q.fch"), "--from", "conv_head", "--views", "1"]
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
