"""A later process knows recipe and layers without loading torch, and only while they still hold."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch

from featcache.backbones import Backbone, for_recipe, get, recipe_cache
from featcache.backbones import weights as weights_module
from featcache.backbones.recipe_cache import RecipeCache, cache_folder, weights_used_for
from featcache.core.errors import RecipeMismatchError, WeightsError

NAME = "timm:test_resnet"
LAYERS = ["layer1:mean", "layer4:mean_std", "pooled"]


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEATCACHE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(weights_module, "RACY_NS", -1)  # no change here falls into the clock's grain
    torch.manual_seed(0)
    torch.save(timm.create_model("test_resnet", pretrained=False).state_dict(), tmp_path / "w.pth")
    backbone = get(NAME, tmp_path / "w.pth")
    assert not known(backbone)
    backbone.resolve_layers(LAYERS)
    assert known(get(NAME, tmp_path / "w.pth"))
    return tmp_path / "w.pth"


def known(backbone: Backbone) -> bool:
    return RecipeCache(backbone.name, backbone._cache.weights if backbone._cache else None, "timm").read() is not None


def entry(weights: Path) -> Path:
    (path,) = (weights.parent / "cache" / "backbones").iterdir()
    return path


def test_a_second_process_needs_no_torch(weights: Path) -> None:
    backbone = get(NAME, weights)
    backbone.network  # noqa: B018  (loaded, so that what follows comes from the network itself)
    expected = [
        backbone.recipe.fingerprint,
        *[[layer.name, layer.position, list(layer.shape)] for layer in backbone.resolve_layers(LAYERS)],
    ]
    code = """
        import json, sys
        from featcache.backbones import get
        backbone = get("timm:test_resnet", sys.argv[1])
        layers = [[l.name, l.position, list(l.shape)] for l in backbone.resolve_layers(json.loads(sys.argv[2]))]
        print(json.dumps([backbone.recipe.fingerprint, *layers]))
        loaded = {"torch", "timm", "torchvision", "sklearn"} & sys.modules.keys()
        assert not loaded, loaded
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(weights), json.dumps(LAYERS[::-1])],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == expected


def test_other_weights_in_the_same_file_are_seen(weights: Path) -> None:
    before = get(NAME, weights).recipe
    assert weights_used_for(before) == str(weights.resolve())
    tensors = torch.load(weights, weights_only=True)
    tensors["conv1.0.weight"][0, 0, 0, 0] += 1
    torch.save(tensors, weights)
    assert weights_used_for(before) is None
    assert get(NAME, weights).recipe.fingerprint != before.fingerprint


def test_a_touched_file_is_read_again(weights: Path) -> None:
    before = get(NAME, weights).recipe
    os.utime(weights, ns=(0, 1))
    assert not known(get(NAME, weights))
    assert get(NAME, weights).recipe == before
    assert known(get(NAME, weights))


@pytest.mark.parametrize("damage", ["empty", "cut", "garbage", "list", "format", "key", "recipe", "layers", "bytes"])
def test_a_damaged_entry_is_not_used(weights: Path, damage: str) -> None:
    path = entry(weights)
    before = get(NAME, weights).recipe
    text = path.read_text()
    data = json.loads(text)
    changed = {
        "empty": "",
        "cut": text[: len(text) // 2],
        "garbage": "\0garbage",
        "list": "[1, 2]",
        "format": json.dumps(data | {"format": 99}),
        "key": json.dumps(data | {"key": [NAME, None, "0", "timm", "0"]}),
        "recipe": json.dumps(data | {"recipe": "{}"}),
        "layers": json.dumps(data | {"layers": {"pooled": "x"}}),
        "bytes": "",
    }[damage]
    path.write_text(changed)
    if damage == "bytes":
        path.write_bytes(b"\xff\xfe\x00")
    backbone = get(NAME, weights)
    assert not known(backbone)
    assert backbone.recipe == before
    assert json.loads(path.read_text())["recipe"] == before.to_json()


def test_a_cache_that_cannot_be_written_does_no_harm(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = get(NAME, weights).recipe
    (weights.parent / "file").write_text("no folder")
    monkeypatch.setenv("FEATCACHE_CACHE", str(weights.parent / "file"))
    assert get(NAME, weights).recipe == before


@pytest.mark.parametrize("package", ["featcache", "timm"])
def test_another_release_of_the_code_learns_for_itself(
    weights: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    installed = recipe_cache.version
    monkeypatch.setattr(recipe_cache, "version", lambda name: "999" if name == package else installed(name))
    assert not known(get(NAME, weights))


def other_weights(path: Path) -> None:
    torch.manual_seed(1)
    torch.save(timm.create_model("test_resnet", pretrained=False).state_dict(), path)


def test_what_is_learned_later_does_not_speak_for_weights_that_came_later(weights: Path) -> None:
    first = get(NAME, weights)
    first.network  # noqa: B018  (loaded)
    other_weights(weights)
    first.resolve_layers(["layer2:mean"])
    assert get(NAME, weights).recipe.fingerprint != first.recipe.fingerprint


def test_weights_that_were_just_written_are_read_again(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights_module, "RACY_NS", 3_600_000_000_000)
    other_weights(weights)
    backbone = get(NAME, weights)
    backbone.resolve_layers(LAYERS)
    assert not known(backbone)


def test_weights_that_were_just_written_are_remembered_by_their_digest(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`torch.save`, `extract` at once, and `predict` on the next day."""
    with monkeypatch.context() as moment:
        # The two seconds last an hour, so that a slow machine is still within them.
        moment.setattr(weights_module, "RACY_NS", 3_600_000_000_000)
        other_weights(weights)
        recipe = get(NAME, weights).recipe
        assert weights_used_for(recipe) == str(weights)
        assert for_recipe(recipe).recipe == recipe
    assert not known(get(NAME, weights))
    assert for_recipe(recipe).recipe == recipe
    assert known(get(NAME, weights))


def test_a_change_that_the_clock_hides_is_seen_by_the_digest(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The two seconds last an hour, so that a slow machine is still within them.
    monkeypatch.setattr(weights_module, "RACY_NS", 3_600_000_000_000)
    other_weights(weights)
    recipe = get(NAME, weights).recipe
    data = json.loads(entry(weights).read_text())
    tensors = torch.load(weights, weights_only=True)
    tensors["conv1.0.weight"][0, 0, 0, 0] += 1
    torch.save(tensors, weights)
    state = os.stat(weights)
    # As if size and times were those of before.
    data["unsettled"] = [state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino]
    entry(weights).write_text(json.dumps(data))
    assert weights_used_for(recipe) == str(weights)
    with pytest.raises(RecipeMismatchError, match=f"{recipe.weights[:12]}; {weights} has") as refused:
        for_recipe(recipe)
    assert get(NAME, weights).recipe.weights[:12] in str(refused.value)


def test_a_network_that_contradicts_what_was_known_is_not_used(weights: Path) -> None:
    backbone = get(NAME, weights)
    announced = backbone.recipe
    other_weights(weights)
    with pytest.raises(WeightsError, match="again"):
        backbone.network  # noqa: B018
    assert backbone.recipe != announced
    assert get(NAME, weights).recipe == backbone.recipe


def test_the_file_of_weights_is_found_for_a_recipe_of_before(weights: Path) -> None:
    """The code that makes pixels says nothing about the weights."""
    recipe = get(NAME, weights).recipe
    older = replace(recipe, pixels=replace(recipe.pixels, decoder="pillow/1"))
    assert weights_used_for(older) == str(weights)
    assert for_recipe(older).recipe == older
    assert weights_used_for(replace(recipe, weights="0" * 64)) is None


def test_what_other_code_for_the_pixels_left_does_not_hold(weights: Path) -> None:
    """It would announce a recipe that the network then does not have."""
    data = json.loads(entry(weights).read_text())
    data["recipe"] = data["recipe"].replace("simplejpeg/1", "pillow/1").replace("pillow/2", "pillow/1")
    data["key"][-1] = "pillow/1 pillow/1"
    entry(weights).write_text(json.dumps(data))
    backbone = get(NAME, weights)
    assert not known(backbone)
    assert backbone.recipe.pixels.decoder == "simplejpeg/1"
    assert backbone.network.module is backbone.module


def test_the_cache_folder_of_linux(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("FEATCACHE_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "featcache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "featcache"
