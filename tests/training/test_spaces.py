"""Spaces compared in pairs by `sweep` and `advise`, and the sizes that are tried on a source."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import nn

import featcache as fc
from featcache.backbones import Backbone, tiny_backbone
from featcache.core.progress import Silent
from featcache.core.recipe import StandardTransform
from featcache.training.input_sizes import larger, try_input_sizes
from featcache.training.selection import ALL, Selection
from featcache.training.spaces import choose_space, comparable_spaces, compare_spaces
from tests.extraction.test_remembered import Notes


def draw_borders(folder: Path, each: int = 20) -> Path:
    """Wide images of two classes that differ at their ends alone, which a crop of the center leaves out."""
    rng = np.random.default_rng(0)
    for name, level in (("dark", 40), ("light", 200)):
        (folder / name).mkdir(parents=True)
        for number in range(each):
            pixels = rng.integers(0, 256, (40, 80, 3), dtype=np.uint8)
            pixels[:, :16] = pixels[:, 64:] = level
            Image.fromarray(pixels).save(folder / name / f"{number:02}.png")
    return folder


@pytest.fixture(scope="module")
def borders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The images, and a store with what a crop and the whole image give."""
    root = tmp_path_factory.mktemp("borders")
    photos, store = draw_borders(root / "photos"), root / "s.fcache"
    for size in (None, 32, 48):
        fc.extract(photos, store, backbone=tiny_backbone(), input_size=size, progress=False)
    return photos, store


def test_the_cheapest_of_the_spaces_that_are_better_is_chosen(borders: tuple[Path, Path]) -> None:
    opened = fc.open(borders[1])
    crop, whole, larger = compare_spaces(opened, comparable_spaces(opened, None), ALL, progress=Silent())
    assert [one.pixels for one in (crop, whole, larger)] == ["crop 32 × 32", "whole 32 × 32", "whole 48 × 48"]
    assert (crop.difference, crop.low, crop.high, crop.chosen) == (0, 0, 0, False)
    assert crop.accuracy < 0.8
    assert whole.accuracy == larger.accuracy == 1
    for one in (whole, larger):
        assert one.difference == pytest.approx(one.accuracy - crop.accuracy)
        assert 0 < one.low <= one.difference <= one.high
        assert one.seconds is not None
    seconds = {one: one.seconds for one in (whole, larger)}
    assert [one for one in seconds if one.chosen] == [min(seconds, key=lambda one: seconds[one] or 0)]


def test_what_is_held_out_takes_no_part(borders: tuple[Path, Path]) -> None:
    opened = fc.open(borders[1])
    _, scores = choose_space(opened, ALL, 0, Silent())
    bundle = fc.train(borders[1], space=scores[0].space, progress=False)
    assert {one.items for one in scores} == {bundle.fitted_on} != {40}


def test_a_space_that_lacks_images_is_left_out_and_equal_ones_leave_the_first(tmp_path: Path) -> None:
    photos, store = draw_borders(tmp_path / "photos"), tmp_path / "s.fcache"
    fc.extract(photos, store, backbone=tiny_backbone(), progress=False)
    fc.extract(photos, store, backbone=tiny_backbone(), fit="whole", limit=10, progress=False)
    opened = fc.open(store)
    select, scores = choose_space(opened, ALL, 0, Silent())
    assert [one.pixels for one in scores] == ["crop 32 × 32"]
    assert select.space == scores[0].space == opened.spaces[0].fingerprint


def test_a_space_that_is_named_is_the_only_one(borders: tuple[Path, Path]) -> None:
    opened = fc.open(borders[1])
    named = Selection(space=opened.spaces[1].fingerprint[:12])
    assert choose_space(opened, named, 0, Silent()) == (named, [])
    assert len(choose_space(opened, Selection(space="module:tiny0"), 0, Silent())[1]) == 3


def test_sweep_and_advise_take_the_best_space(borders: tuple[Path, Path]) -> None:
    swept = fc.sweep(borders[1], ["ridge"], progress=False)
    advised = fc.advise(borders[1], budget=10, backbone=tiny_backbone(), progress=False)
    for spaces in (swept.spaces, advised.spaces):
        (chosen,) = (one["space"] for one in spaces if one["chosen"])
        assert chosen != fc.open(borders[1]).spaces[0].fingerprint
        assert swept.bundle.recipe is not None
        assert swept.bundle.recipe.fingerprint == chosen
    assert swept.to_dict()["spaces"] == swept.spaces
    assert f"--space {chosen}" in advised.command or f"space='{chosen}'" in advised.command


def test_sizes_are_tried_on_a_source_and_the_one_that_suits_is_returned(borders: tuple[Path, Path]) -> None:
    found, scores = try_input_sizes(borders[0], tiny_backbone(), seconds=1e6, progress=Silent())
    assert [one.pixels for one in scores] == ["crop 32 × 32", "whole 32 × 32", "whole 48 × 48"]
    (chosen,) = (one for one in scores if one.chosen)
    assert found.recipe.fingerprint == chosen.space
    assert chosen.pixels.startswith("whole")


def test_sizes_that_the_network_cannot_run_are_told_and_left_out(borders: tuple[Path, Path]) -> None:
    fixed = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.Flatten(1), nn.Linear(4 * 15 * 15, 4))
    transform = StandardTransform((32,), (32, 32), "bilinear", (0.5,) * 3, (0.5,) * 3)
    network, notes = Backbone.from_module(fixed, transform=transform, name="fixed"), Notes()
    _, scores = try_input_sizes(borders[0], network, seconds=1e6, progress=notes)
    assert [one.pixels for one in scores] == ["crop 32 × 32", "whole 32 × 32"]
    assert sum("cannot run on images of 48 × 48" in note for note in notes.texts) == 2


def test_a_short_time_is_told_and_the_published_pixels_stay(borders: tuple[Path, Path]) -> None:
    network, notes = tiny_backbone(), Notes()
    assert try_input_sizes(borders[0], network, seconds=0, progress=notes) == (network, [])
    assert any("not tried" in note for note in notes.texts)


def test_larger_sizes_suit_the_network() -> None:
    assert [larger(fc.backbones.get("bundled:efficientnet_lite0"), of) for of in (7, 9, 11)] == [224, 288, 352]
