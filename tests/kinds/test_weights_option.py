"""Heads and stores on a file of weights, on a machine that has not seen the file: ``--weights`` at every command."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

import featcache as fc
from featcache.cli import main
from featcache.core.errors import RecipeMismatchError
from tests.backbones.making import randomised
from tests.doors import doors

NAME = "timm:test_efficientnet"
COMMANDS = {
    "predict": ["predict", "plain.fch", "new"],
    "predict with a tuned head": ["predict", "tuned.fch", "new"],
    "evaluate": ["evaluate", "plain.fch", "s.fcache"],
    "evaluate with a tuned head": ["evaluate", "tuned.fch", "s.fcache", "--against", "tuned.fch"],
    "similar": ["similar", "s.fcache", "new/x.jpg"],
    "check-live": ["check-live", "s.fcache", "-n", "2"],
    "finetune": ["finetune", "s.fcache", "-o", "again.fch", "--from", "blocks.4", "--epochs", "1", "--yes"],
    "finetune all": ["finetune", "s.fcache", "-o", "again.fch", "--epochs", "1"],
    "faces verify": ["faces", "verify", "new/x.jpg", "photos/cats/cat-00.jpg", "--head", "match.fch"],
}


@dataclass(frozen=True)
class Place:
    """A folder with the photos, two files of weights, and what was made with the first of them."""

    folder: Path
    right: str
    wrong: str
    digests: tuple[str, str]


@pytest.fixture(scope="module")
def made(tmp_path_factory, draw_images):
    import timm
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("weights")
    draw_images(folder / "photos", each=6)
    draw_images(folder / "people", [f"person {i:02}s" for i in range(40)], each=3)
    draw_images(folder / "new-photos", ("cats",), each=8)
    (folder / "new").mkdir()
    shutil.copy(folder / "new-photos" / "cats" / "cat-07.jpg", folder / "new" / "x.jpg")
    files = [folder / "right.safetensors", folder / "wrong.safetensors"]
    for seed, file in enumerate(files):
        save_file(randomised(timm.create_model("test_efficientnet"), seed).state_dict(), file)
    digests = [fc.backbones.get(NAME, file).recipe.weights for file in files]
    given = ["--weights", str(files[0])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEATCACHE_CACHE", str(folder / "cache-of-then"))
        patch.chdir(folder)
        for words in (
            ["extract", "photos", "-o", "s.fcache", "--backbone", NAME, *given],
            ["train", "s.fcache", "-o", "plain.fch", "--head", "ridge"],
            ["extract", "people", "-o", "p.fcache", "--backbone", NAME, *given],
            ["faces", "train", "p.fcache", "-o", "match.fch"],
            ["finetune", "s.fcache", "-o", "tuned.fch", "--from", "blocks.4", "--epochs", "1", "--yes", *given],
            ["finetune", "s.fcache", "-o", "whole.fch", "--epochs", "1", *given],
        ):
            assert main(words) == 0, words
    shutil.rmtree(folder / "cache-of-then")
    return folder, digests


@pytest.fixture
def place(made, tmp_path, monkeypatch):
    """A copy of the folder elsewhere, and an empty cache: where the right file lay is forgotten."""
    folder, digests = made
    copy = tmp_path / "there"
    shutil.copytree(folder, copy)
    monkeypatch.setenv("FEATCACHE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(copy)
    return Place(copy, str(copy / "right.safetensors"), str(copy / "wrong.safetensors"), tuple(digests))


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_a_command_takes_the_right_file_and_names_another_by_its_digest(words, place, capsys):
    assert main([*words, "--weights", place.wrong]) == 1
    said = capsys.readouterr().err
    assert f"need the weights {place.digests[0][:12]}; {place.wrong} has {place.digests[1][:12]}" in " ".join(
        said.split()
    )
    assert main([*words, "--weights", place.right]) == 0, capsys.readouterr().err
    assert main([*words, "--weights", place.wrong + "x"]) == 2
    assert "no file of weights" in capsys.readouterr().err


def test_without_a_file_the_published_weights_are_named(place, tmp_path, capsys):
    published = tmp_path / "cache" / "weights" / "timm_test_efficientnet.safetensors"
    published.parent.mkdir(parents=True)
    shutil.copy(place.wrong, published)
    assert main(["predict", "plain.fch", "new"]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert f"need the weights {place.digests[0][:12]}; the published ones are {place.digests[1][:12]}" in said
    assert "--weights FILE" in said


def test_every_command_that_reads_a_head_or_a_space_with_its_network_is_here():
    """Commands with ``--weights`` that are not here take the file for a network that is named beside it."""
    named = {"extract", "faces extract", "doctor"}
    there = {door.name.removeprefix("featcache ") for door in doors("weights") if door.name.startswith("featcache ")}
    assert there - named == {" ".join(words[: 2 if words[0] == "faces" else 1]) for words in COMMANDS.values()}


def test_what_needs_no_file_says_so(place, capsys):
    for words, why in (
        (["predict", "whole.fch", "new"], "carries the weights of the whole network"),
        (["finetune", "s.fcache", "-o", "a.fch", "--init", "scratch", "--arch", "scratch:small_cnn"], "--arch"),
        (["faces", "verify", "new/x.jpg", "new/x.jpg"], "--head"),
    ):
        assert main([*words, "--weights", place.right]) == 2
        assert why in capsys.readouterr().err
    assert main(["predict", "whole.fch", "new"]) == 0


def test_in_python(place):
    head = fc.load("plain.fch")
    network = fc.backbones.for_recipe(head.recipe, weights=place.right)
    assert network.recipe == head.recipe
    assert head.predict("new", backbone=network, progress=False)[0].labels
    with pytest.raises(RecipeMismatchError, match=f"{place.digests[0][:12]}; .*{place.digests[1][:12]}"):
        fc.backbones.for_recipe(head.recipe, weights=place.wrong)
    with pytest.raises(RecipeMismatchError, match=f"{place.digests[0][:12]}; .*{place.digests[1][:12]}"):
        head.predict("new", backbone=fc.backbones.get(NAME, place.wrong), progress=False)
