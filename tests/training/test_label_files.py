"""A file of labels names images of the store, whichever of them have vectors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import featcache as fc
from featcache.backbones import tiny_backbone
from featcache.core.errors import UsageError


@pytest.fixture
def images(tmp_path: Path, draw_images: Callable[..., Path]) -> Path:
    return draw_images(tmp_path / "photos")


def extract(images: Path, source: Path | None = None, **options: object) -> Path:
    store = images.parent / "s.fcache"
    fc.extract(source or images, store, backbone=tiny_backbone(), progress=False, **options)
    return store


def table(images: Path, *, below: Path) -> Path:
    file = images.parent / "labels.csv"
    paths = sorted(images.rglob("*.jpg"))
    rows = [f"{path.relative_to(below).as_posix()},{path.stem[:3]}" for path in paths]
    file.write_text("\n".join(["path,label", *rows]) + "\n", encoding="utf-8")
    return file


def test_it_may_name_images_that_are_not_extracted_yet(images: Path) -> None:
    store = extract(images, labels="none", limit=16)
    bundle = fc.train(store, "ridge", labels=table(images, below=images), progress=False)
    assert bundle.classes == ("cat", "dog")
    assert bundle.fitted_on + bundle.report["score"]["n"] == 16


def test_it_may_name_images_that_cannot_be_used(images: Path) -> None:
    (images / "cats" / "cat-00.jpg").write_bytes(b"")
    store = extract(images, labels="none")
    bundle = fc.train(store, "ridge", labels=table(images, below=images), progress=False)
    assert bundle.fitted_on + bundle.report["score"]["n"] == 23


def test_it_may_name_images_that_cannot_be_used_any_more(images: Path) -> None:
    store = extract(images)
    (images / "cats" / "cat-00.jpg").write_bytes(b"")
    extract(images)
    assert fc.train(store, "ridge", labels=table(images, below=images), progress=False).report["score"]["n"]


def test_an_absolute_path_is_the_image_of_every_source_that_has_it(images: Path) -> None:
    store = extract(images)
    extract(images, images / "cats", labels="none")
    file = images.parent / "labels.csv"
    file.write_text(f"path,label\n{images / 'cats' / 'cat-00.jpg'},tiger\n", encoding="utf-8")
    report = fc.train(store, "ridge", source=["photos", "cats"], labels=file, progress=False).report
    assert report["labels"]["from_file"] == 2
    assert "tiger" in report["classes"]


def test_a_relative_path_of_two_sources_is_refused(
    images: Path, tmp_path: Path, draw_images: Callable[..., Path]
) -> None:
    store = extract(images)
    extract(images, draw_images(tmp_path / "others"))
    with pytest.raises(UsageError, match="and another source both have"):
        fc.train(store, source=["photos", "others"], labels=table(images, below=images), progress=False)
    unknown = tmp_path / "unknown.csv"
    unknown.write_text("path,label\ncats/none.jpg,x\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"1 of 1 paths in .* are not images of source 'photos'"):
        fc.train(store, source="photos", labels=unknown, progress=False)
