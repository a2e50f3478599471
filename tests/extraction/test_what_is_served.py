"""What a run of `extract` serves without being told: what was asked for, and nothing that others cached."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import featcache as fc
from featcache.backbones import Backbone, tiny_backbone
from featcache.core.errors import UsageError
from featcache.extraction.stored_source import KnownSource, known_images
from featcache.store.writer import StoreWriter


@pytest.fixture(scope="module")
def net() -> Backbone:
    return tiny_backbone()


@pytest.fixture(scope="module")
def lite() -> Backbone:
    return fc.backbones.get("bundled:efficientnet_lite0")


def paint(folder: Path, numbers: range) -> Path:
    folder.mkdir(exist_ok=True)
    for i in numbers:
        Image.new("RGB", (40, 30), (7 * i, 200 - i, 99)).save(folder / f"{i:02}.png")
    return folder


def forget_what_was_asked(store: Path) -> None:
    """Make the store one of before, as to what it was asked for."""
    with StoreWriter(store) as writer, writer.catalogue.transaction() as connection:
        connection.execute("DELETE FROM requests")


def stored(store: Path, source: str) -> dict[str, list[tuple[str, str]]]:
    opened = fc.open(store)
    return {space.recipe.fingerprint: opened.columns_of(source, space.fingerprint) for space in opened.spaces}


def test_an_image_shared_with_another_source_asks_for_nothing(tmp_path: Path, lite: Backbone) -> None:
    store, one, other = tmp_path / "s.fcache", paint(tmp_path / "one", range(5)), paint(tmp_path / "other", range(4, 6))
    fc.extract(one, store, backbone=lite, progress=False)
    fc.extract(other, store, backbone=lite.scaled(), progress=False)
    report = fc.extract(one, store, progress=False)
    assert (report.computed, report.others) == (0, [])
    assert [len(columns) for columns in stored(store, "one").values()] == [1, 1]  # the shared image has both


def test_a_new_source_gets_what_was_asked_for_of_the_others_and_not_what_was_cached(
    tmp_path: Path, net: Backbone
) -> None:
    store, one, other = tmp_path / "s.fcache", paint(tmp_path / "one", range(4)), paint(tmp_path / "other", range(4, 6))
    fc.extract(one, store, backbone=net, layers=["pooled", "body.0:mean"], progress=False)
    cache_whole_maps(store, net)
    fc.extract(other, store, backbone=net, progress=False)
    assert [layer for layer, _ in stored(store, "other")[net.recipe.fingerprint]] == ["body.0:mean", "pooled"]
    assert fc.open(store).requests("other") == fc.open(store).requests("one")


def test_a_new_source_of_a_store_of_before_gets_no_whole_maps(tmp_path: Path, net: Backbone) -> None:
    store, one, other = tmp_path / "s.fcache", paint(tmp_path / "one", range(4)), paint(tmp_path / "other", range(4, 6))
    fc.extract(one, store, backbone=net, layers=["pooled"], progress=False)
    cache_whole_maps(store, net)
    forget_what_was_asked(store)
    fc.extract(other, store, backbone=net, progress=False)
    assert [layer for layer, _ in stored(store, "other")[net.recipe.fingerprint]] == ["pooled"]


def test_a_new_source_gets_the_most_views_that_any_other_has(tmp_path: Path, net: Backbone) -> None:
    store, numbers = tmp_path / "s.fcache", iter(range(0, 20, 2))
    for name, options in (("one", {"views": 3}), ("two", {"views": 2, "layers": ["body.0:mean"]}), ("three", {})):
        place = paint(tmp_path / name, range(at := next(numbers), at + 2))
        fc.extract(place, store, backbone=net, progress=False, **options)
    (asked,) = fc.open(store).requests("three").values()
    assert asked["layers"] == {"body.0:mean": {"0": 3}, "pooled": {"0": 3}}


def test_a_store_of_before_is_asked_once_what_it_holds(tmp_path: Path, lite: Backbone) -> None:
    """What is stored later, for another source, is not taken for what was asked of this one."""
    store, one, other = tmp_path / "s.fcache", paint(tmp_path / "one", range(5)), paint(tmp_path / "other", range(4, 6))
    fc.extract(one, store, backbone=lite, progress=False)
    fc.extract(one, store, backbone=lite.scaled(), progress=False)
    forget_what_was_asked(store)
    fc.extract(one, store, backbone=lite, progress=False)
    assert len(fc.open(store).requests("one")) == 2
    fc.extract(other, store, backbone=lite, layers=["blocks.1:mean"], progress=False)
    report = fc.extract(one, store, progress=False)
    assert [one.computed for one in (report, *report.others)] == [0, 0]


def test_views_without_a_seed_are_those_of_the_seed_there_is(tmp_path: Path, net: Backbone) -> None:
    store, place = tmp_path / "s.fcache", paint(tmp_path / "one", range(3))
    options: dict[str, Any] = {"backbone": net, "progress": False}
    fc.extract(place, store, views=3, seed=7, **options)
    assert fc.extract(place, store, views=5, **options).computed == 6
    (asked,) = fc.open(store).requests("one").values()
    assert asked["layers"] == {"pooled": {"7": 5}}
    assert fc.extract(place, store, seed=7, **options).computed == 0
    fc.extract(place, store, views=2, seed=8, **options)
    with pytest.raises(UsageError, match=r"seeds 7 and 8\..*--seed"):
        fc.extract(place, store, views=6, **options)
    fc.extract(place, store, views=2, seed=0, **options)
    assert fc.extract(place, store, views=3, **options).computed == 3
    (asked,) = fc.open(store).requests("one").values()
    assert asked["layers"] == {"pooled": {"0": 3, "7": 5, "8": 2}}


def test_a_seed_that_no_view_has_is_refused_without_views(tmp_path: Path, net: Backbone) -> None:
    store, place = tmp_path / "s.fcache", paint(tmp_path / "one", range(3))
    with pytest.raises(UsageError, match=r"seed 9 alone.*--views"):
        fc.extract(place, store, backbone=net, seed=9, progress=False)
    fc.extract(place, store, backbone=net, views=2, seed=7, progress=False)
    with pytest.raises(UsageError, match=r"There are views of the seed 7\..*--views"):
        fc.extract(place, store, backbone=net, seed=9, progress=False)


def cache_whole_maps(store: Path, net: Backbone) -> None:
    """As fine-tuning does, of the images that the store knows."""
    opened = fc.open(store)
    ((name, root),) = opened.sources().items()
    items = opened.items()
    known = KnownSource(name, root, items, known_images(opened, name, items, []))
    fc.extract(known, store, backbone=net, layers=["body.1:none"], views=2, progress=False)
