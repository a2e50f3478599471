"""Heads and stores on a file of weights, on a machine that has not seen the file: ``--weights`` at every command."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

import featcache as fc
from featcache.backbones.split import split_network
from featcache.cli import main
from featcache.core.errors import FeatcacheError, RecipeMismatchError
from featcache.training.layer_use import LayerUse
from featcache.training.partial_model import PartialModel
from tests.backbones.making import randomised
from tests.doors import Door, Parameter, World, doors

NAME = "timm:test_efficientnet"
SCRATCH = "scratch:small_cnn"
COMMANDS = {
    "train": ["train", "s.fcache", "-o", "blocks.fch", "--head", "ridge", "--layers", "all-blocks"],
    "sweep": ["sweep", "s.fcache", "--heads", "ridge", "--layers", "all-blocks"],
    "advise": ["advise", "s.fcache", "--budget", "1s"],
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

HERE = {" ".join(["featcache", *words[: 2 if words[0] == "faces" else 1]]) for words in COMMANDS.values()}


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
            ["finetune", "s.fcache", "-o", "whole.fch", "--epochs", "1", "--init", "scratch", "--arch", SCRATCH],
        ):
            assert main(words) == 0, words
        _with_its_layers(folder / "tuned.fch", fc.backbones.get(NAME, files[0]))
    shutil.rmtree(folder / "cache-of-then")
    return folder, digests


def _with_its_layers(path: Path, backbone: fc.Backbone) -> None:
    """Save a linear head on ``pooled`` as one whose later layers were trained: with them, on cached activations."""
    head, split = fc.load(path), split_network(backbone.network, "blocks.4")
    tail = {name: tensor.numpy() for name, tensor in split.tail.state_dict().items()}
    model = PartialModel("blocks.4", split.shape, tail, head.predictor, head.recipe)
    replace(head, layers=(LayerUse(split.cached, split.shape, 1.0),), predictor=model).save(path)


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


@pytest.fixture
def published(place, tmp_path):
    """Published weights, which are not those of the file."""
    file = tmp_path / "cache" / "weights" / "timm_test_efficientnet.safetensors"
    file.parent.mkdir(parents=True)
    shutil.copy(place.wrong, file)


def test_without_a_file_the_published_weights_are_named(place, published, capsys):
    assert main(["predict", "plain.fch", "new"]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert f"need the weights {place.digests[0][:12]}; the published ones are {place.digests[1][:12]}" in said
    assert "--weights FILE" in said


class Elsewhere(World):
    """The folder of `place` as a world, in which the file has not been seen."""

    def __init__(self, place: Place) -> None:
        self.folder, self.network, self.seed, self._written = place.folder, NAME, 0, 0
        for old, new in (("s.fcache", "pets.fcache"), ("plain.fch", "pets.fch"), ("p.fcache", "crowd.fcache")):
            (place.folder / old).rename(place.folder / new)
        (place.folder / "labels.csv").write_text("path,label\ncats/cat-00.jpg,cats\n")

    def valid(self, door: Door, parameter: Parameter) -> Any:
        if parameter.role in ("image", "images"):
            return self["new"] / "x.jpg"
        return self["pets.fcache"] if parameter.role == "store to write" else super().valid(door, parameter)

    def arguments(self, door: Door, **given: Any) -> dict[str, Any]:
        return {p.name: self.valid(door, p) for p in door.parameters if p.required} | given

    def asks(self, door: Door, **given: Any) -> bool:
        """Whether the door says that it needs the file."""
        try:
            outcome = self.call(door, **given)
            said = f"{outcome.out} {outcome.err} {list(outcome.value) if door in STREAMS else outcome.value}"
        except (FeatcacheError, TypeError) as error:
            said = str(error)
        return "need the weights" in " ".join(said.split())


STREAMS = [door for door in doors() if door.name == "fc.Bundle.predictions"]
READS_A_STORE_OR_HEAD = [
    door
    for door in doors()
    if door.with_role("store", "store to write", "head") or (door.owner or int).__name__ in ("Bundle", "FeatureStore")
]


@pytest.mark.slow
@pytest.mark.parametrize("door", READS_A_STORE_OR_HEAD, ids=str)
def test_every_door_that_needs_the_network_of_a_store_or_a_head_takes_it(door, place, published):
    """Without the file it asks for it; whatever comes to need a network, and has no way to give it, fails here."""
    world = Elsewhere(place)
    ways: list[dict[str, Any]] = [{}]
    ways += [{parameter.name: ["all-blocks"]} for parameter in door.with_role("layers")]
    ways += [
        {parameter.name: world[head]} for parameter in door.with_role("head") for head in ("match.fch", "tuned.fch")
    ]
    asks = any(world.asks(door, **way) for way in ways)
    if door.is_command:
        assert asks == (door.name in {*HERE, "featcache extract"})
    elif asks:  # a head takes its network by `Bundle.on`
        assert door.with_role("weights", "backbone", "head")


def test_every_command_that_takes_a_file_is_here():
    """All but those to which other weights are another network."""
    named = {"featcache extract", "featcache faces extract", "featcache doctor"}
    assert {door.name for door in doors("weights") if door.is_command} - named == HERE


def test_extract_takes_the_file_for_the_network_of_the_store(place, capsys):
    words = ["extract", "photos", "-o", "s.fcache", "--moved"]
    assert main([*words, "--weights", place.right, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["backbone"], told["computed"], told["reused"]) == (NAME, 0, 12)
    assert main(words) == 0


def test_weights_that_were_just_saved_are_found_again(place, capsys):
    """Written, used at once, and needed later by a head that only knows their digest."""
    shutil.copyfile(place.right, "new.safetensors")
    assert main(["similar", "s.fcache", "new/x.jpg", "--weights", "new.safetensors"]) == 0
    assert main(["predict", "plain.fch", "new"]) == 0


def test_layers_that_are_stored_need_no_file(place, capsys):
    for words in (["train", "s.fcache", "-o", "a.fch"], ["sweep", "s.fcache"]):
        assert main([*words, "--weights", place.right]) == 2
        assert "Omit --weights" in capsys.readouterr().err


def test_what_needs_no_file_says_so(place, capsys):
    for words, why in (
        (["predict", "whole.fch", "new"], "carries the weights of the whole network"),
        (["finetune", "s.fcache", "-o", "a.fch", "--init", "scratch", "--arch", SCRATCH], "--arch"),
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
