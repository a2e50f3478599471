"""Spaces of other input sizes: added beside others, brought up to date, and followed by heads and fine-tuning."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

import featcache as fc
from featcache.backbones import tiny_backbone
from featcache.backbones.recipe_cache import cache_folder
from featcache.cli.app import app
from featcache.core.errors import UsageError
from tests.backbones.making import randomised
from tests.doors import Door, doors
from tests.extraction.test_remembered import extract
from tests.finetuning.stores import draw_hues

if TYPE_CHECKING:
    from featcache.core.recipe import Recipe


def words(recipe: Recipe) -> str:
    return recipe.pixels.transform.size_words  # type: ignore[union-attr]


def takes_a_name(door: Door) -> bool:
    """Whether it runs a backbone that is given by name."""
    if door.is_command:
        return bool(door.with_role("backbone"))
    found = inspect.signature(door.function).parameters.get("backbone")  # type: ignore[arg-type]
    return found is not None and "str" in str(found.annotation).split(" | ") and bool(door.with_role("backbone"))


def test_each_door_that_runs_a_backbone_by_name_takes_an_input_size() -> None:
    named = {door.name: door for door in doors() if takes_a_name(door)}
    assert {"fc.extract", "fc.CachedEmbedder", "featcache extract", "featcache doctor"} <= named.keys()
    without = [name for name, door in named.items() if "input_size" not in {p.name for p in door.parameters}]
    assert not without


def test_another_size_is_a_space_beside_and_a_rerun_serves_both(photos: Path, tmp_path: Path) -> None:
    net, store = tiny_backbone(), tmp_path / "s.fcache"
    extract(photos, store, backbone=net)
    (note,) = extract(photos, store, backbone=net, input_size=48)
    assert note == "module:tiny0 (whole 48 × 48) is one more space, beside module:tiny0 (crop 32 × 32)."
    assert extract(photos, store, backbone=net, input_size=48) == []
    opened = fc.open(store)
    assert [words(space.recipe) for space in opened.spaces] == ["crop 32 × 32", "whole 48 × 48"]
    with pytest.raises(UsageError, match=r"module:tiny0, crop 32 × 32\).*module:tiny0, whole 48 × 48"):
        opened.arrays()


def test_a_size_without_a_backbone_is_of_the_network_of_the_store(
    photos: Path, tmp_path: Path, small_network: str
) -> None:
    store = tmp_path / "s.fcache"
    extract(photos, store, backbone=small_network)
    (note,) = extract(photos, store, fit="whole")
    assert f"{small_network} (whole 160 × 160) is one more space" in note
    (served,) = extract(photos, store)
    assert served.startswith("2 spaces are brought up to date")
    assert "whole 160 × 160" in served
    extract(photos, store, backbone=tiny_backbone())
    with pytest.raises(UsageError, match="Name one with --backbone"):
        extract(photos, store, input_size=96)
    assert len(fc.open(store).spaces) == 3


def test_a_size_that_cannot_be_leaves_no_space(photos: Path, tmp_path: Path) -> None:
    from torch import nn

    store = tmp_path / "s.fcache"
    fixed = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.Flatten(1), nn.Linear(4 * 15 * 15, 4))
    net = fc.Backbone.from_module(fixed, transform=tiny_backbone().recipe.pixels.transform, name="fixed")
    extract(photos, store, backbone=net)
    with pytest.raises(UsageError, match="What works: 32 × 32"):
        extract(photos, store, backbone=net, input_size=64)
    assert len(fc.open(store).spaces) == 1


def test_the_command_takes_the_options_and_they_are_remembered(
    photos: Path, tmp_path: Path, small_network: str
) -> None:
    def run(*more: str) -> Any:
        words = ["extract", str(photos), "-o", str(tmp_path / "s.fcache"), *more]
        return CliRunner().invoke(app, words, catch_exceptions=False)

    assert run("--backbone", small_network, "--input-size", "96").exit_code == 0
    assert run().exit_code == 0
    (space,) = fc.open(tmp_path / "s.fcache").spaces
    assert words(space.recipe) == "whole 96 × 96"


def test_a_head_predicts_the_same_from_images_and_from_the_store(
    photos: Path, tmp_path: Path, small_network: str
) -> None:
    store, head = tmp_path / "s.fcache", tmp_path / "h.fch"
    fc.extract(photos, store, backbone=small_network, input_size=96, layers=["pooled", "blocks.4:mean"])
    fc.train(store, head="ridge", layers="pooled+blocks.4:mean").save(head)
    bundle, opened = fc.load(head), fc.open(store)
    assert bundle.recipe is not None
    assert words(bundle.recipe) == "whole 96 × 96"
    X, _, items = opened.arrays(layers="pooled+blocks.4:mean")
    paths = [photos / item.uri for item in items]
    stored = bundle.predict_proba_vectors(X)
    assert stored is not None
    given = [dict(one.labels) for one in bundle.predict(paths)]
    np.testing.assert_allclose([[one[name] for name in bundle.classes] for one in given], stored, atol=1e-4)
    module = bundle.to_torch()
    with torch.no_grad():
        logits = module(torch.stack([module.transform(path) for path in paths]))  # type: ignore[operator]
    np.testing.assert_allclose(torch.softmax(logits, 1).numpy(), stored, atol=1e-3)
    assert fc.evaluate(head, store).n > 0
    report = fc.check_live(store, 6, head=bundle)
    assert (report.compared, report.failed, report.flips) == (6, 0, 0)


def test_an_embedder_of_a_size_finds_what_was_extracted(photos: Path, tmp_path: Path, small_network: str) -> None:
    store = tmp_path / "s.fcache"
    fc.extract(photos, store, backbone=small_network, input_size=96)
    embedder = fc.CachedEmbedder(small_network, store, input_size=96, progress=False)
    paths = [photos / item.uri for item in fc.open(store).items()]
    np.testing.assert_array_equal(embedder.transform(paths), fc.open(store).arrays()[0])
    assert len(fc.open(store).spaces) == 1
    assert len(fc.open(store).sources()) == 1


def test_views_are_of_the_size(photos: Path, tmp_path: Path) -> None:
    net, store = tiny_backbone().with_input(48), tmp_path / "s.fcache"
    fc.extract(photos, store, backbone=net, layers=["body.0:none"], views=2)
    assert fc.open(store).spaces[0].layers["body.0:none"].shape == (12, 12, 12)
    assert len(fc.open(store).spaces[0].layers["body.0:none"].views) == 2


def test_faces_are_embedded_at_the_size(
    tmp_path: Path, draw_people: Callable[[Path], Path], small_network: str
) -> None:
    pytest.importorskip("dlib")
    people, store = draw_people(tmp_path / "people"), tmp_path / "p.fcache"
    fc.faces.extract(people, store, backbone=small_network, input_size=96)
    space = fc.open(store).space(small_network)
    assert words(space.recipe) == "whole 96 × 96"
    aligned = fc.faces.aligned_backbone(store, small_network)
    assert aligned.recipe == space.recipe
    assert fc.check_live(store, 4, space=small_network, backbone=aligned).failed == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "from_layer"), [("test_efficientnet", None), ("test_efficientnet", "blocks.4"), ("test_vit", None)]
)
def test_finetuning_follows_the_size_of_the_store(name: str, from_layer: str | None, tmp_path: Path) -> None:
    weights = cache_folder() / "weights" / f"timm_{name}.safetensors"
    weights.parent.mkdir(parents=True, exist_ok=True)
    save_file(randomised(timm.create_model(name)).state_dict(), weights)
    photos, store, head = draw_hues(tmp_path / "photos", 12), tmp_path / "s.fcache", tmp_path / "h.fch"
    fc.extract(photos, store, backbone=f"timm:{name}", input_size=96)
    config = fc.TrainingConfig(epochs=2, batch_size=8, lr=1e-2)
    fc.finetune(store, from_layer, views=2, config=config, progress=False).save(head)
    bundle = fc.load(head)
    assert bundle.recipe is not None
    assert words(bundle.recipe) == "whole 96 × 96"
    assert bundle.backbone().network.size == (96, 96)
    paths = sorted(photos.rglob("*.png")) or sorted(photos.rglob("*.jpg"))
    given = [dict(one.labels) for one in bundle.predict(paths)]
    module = bundle.to_torch()
    with torch.no_grad():
        logits = module(torch.stack([module.transform(path) for path in paths]))  # type: ignore[operator]
    shares = torch.softmax(logits, 1).numpy()
    np.testing.assert_allclose([[one[name] for name in bundle.classes] for one in given], shares, atol=1e-3)


@pytest.mark.slow
def test_a_network_from_scratch_trains_at_the_size_of_the_store(tmp_path: Path, small_network: str) -> None:
    photos, store = draw_hues(tmp_path / "photos", 12), tmp_path / "s.fcache"
    fc.extract(photos, store, backbone=small_network, input_size=96)
    config = fc.TrainingConfig(epochs=1, batch_size=8)
    for arch, expected in ((None, "whole 96 × 96"), ("scratch:small_cnn", "crop 32 × 32")):
        bundle = fc.finetune(store, init="scratch", arch=arch, config=config, progress=False)
        assert bundle.recipe is not None
        assert words(bundle.recipe) == expected


@pytest.mark.slow
def test_doctor_measures_at_the_size(small_network: str) -> None:
    report = fc.doctor(small_network, input_size=96, runtime="torch", progress=False)
    assert report.speed is not None
    assert not [problem for problem in report.problems if small_network in problem]
    with pytest.raises(UsageError, match="input_size"):
        fc.doctor(small_network, input_size=0)
