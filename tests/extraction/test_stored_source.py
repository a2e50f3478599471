"""The images of a source once more, and what extracting more of some of them leaves alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

import featcache as fc
from featcache.backbones import tiny_backbone
from featcache.core.errors import UnusableImageError, UsageError
from featcache.extraction.stored_source import KnownSource, image_of_item, known_images
from featcache.extraction.transformer import CachedEmbedder
from featcache.images.sources import open_source

if TYPE_CHECKING:
    from featcache.images.entry import Entry
    from featcache.store import FeatureStore

BACKBONE = tiny_backbone()


@pytest.fixture
def store(photos: Path, tmp_path: Path) -> Path:
    """24 images with splits and groups, two broken ones in quarantine."""
    for name in ("cats/broken.jpg", "dogs/broken.jpg"):
        (photos / name).write_bytes(name.encode())
    rows = ["path,label,split,group"]
    for i, path in enumerate(sorted(photos.rglob("*.jpg"))):
        uri = path.relative_to(photos).as_posix()
        rows.append(f"{uri},{uri.split('/')[0]},{'test' if i % 4 == 0 else 'train'},g{i}")
    (photos / "list.csv").write_text("\n".join(rows))
    fc.extract(photos / "list.csv", tmp_path / "s.fcache", name="pets", backbone=BACKBONE, progress=False)
    return tmp_path / "s.fcache"


def known(store: Path, photos: Path) -> tuple[FeatureStore, KnownSource]:
    opened = fc.open(store)
    items = opened.items(source="pets")
    there = known_images(opened, "pets", items, [], images=photos / "list.csv")
    return opened, KnownSource("pets", opened.sources()["pets"], items, there)


def told(store: Path) -> tuple[object, ...]:
    opened = fc.open(store)
    X, y, items = opened.arrays(source="pets")
    items = opened.items(source="pets")
    return (
        opened.sources(), [(i.uri, i.sha256, i.label, i.split, i.group) for i in items],
        X.tobytes(), y.tolist(), opened.quarantine("pets"),
    )  # fmt: skip


def test_more_of_some_images_leaves_the_rest_alone(store: Path, photos: Path) -> None:
    before = told(store)
    _, source = known(store, photos)
    some = KnownSource(source.name, source.root, source.items[3:9], source.images)
    report = fc.extract(some, store, backbone=BACKBONE, layers=["body.0:mean"], progress=False)
    assert (report.items, report.computed, report.removed, report.quarantined) == (6, 6, 0, 0)
    assert told(store) == before
    assert fc.verify(store, progress=False).ok
    again = fc.extract(some, store, backbone=BACKBONE, layers=["body.0:mean"], progress=False)
    assert (again.computed, again.reused) == (0, 6)
    # What the source as a whole has lost is for an extraction of the source as a whole to say.
    (photos / "dogs" / "dog-03.jpg").unlink()
    fc.extract(some, store, backbone=BACKBONE, layers=["body.0:mean"], progress=False)
    assert told(store) == before


@dataclass(frozen=True)
class Part:
    """A source that could list only what is below ``cats/``."""

    whole: list[Entry]
    name: str = "photos"
    root: str = ""
    ignored: int = 0
    incomplete: tuple[str, ...] = ()
    within: tuple[str, ...] = ("",)

    def entries(self) -> list[Entry]:
        return self.whole


@pytest.mark.parametrize(
    ("listed", "all_stay"),
    [({"incomplete": ("",)}, True), ({"within": ()}, True), ({"incomplete": ("dogs/",)}, False)],
)
def test_of_a_source_that_was_listed_in_part_nothing_is_gone(
    photos: Path, tmp_path: Path, listed: dict[str, tuple[str, ...]], all_stay: bool
) -> None:
    for name in ("cats/broken.jpg", "dogs/broken.jpg"):
        (photos / name).write_bytes(name.encode())
    store = tmp_path / "s.fcache"
    fc.extract(photos, store, backbone=BACKBONE, progress=False)
    entries = open_source(photos).entries()
    part = Part([e for e in entries if e.uri.startswith("cats/cat")], root=str(photos), **listed)
    report = fc.extract(part, store, backbone=BACKBONE, progress=False)
    opened = fc.open(store)
    left = [uri for uri, _ in opened.quarantine("photos")]
    if all_stay:
        assert report.removed == 0
        assert left == ["cats/broken.jpg", "dogs/broken.jpg"]
        assert len(opened.items()) == 26
    else:
        assert report.removed == 0  # what cannot be used was no item
        assert left == ["dogs/broken.jpg"]
        assert len(opened.items()) == 25


def test_files_given_one_by_one(photos: Path, tmp_path: Path) -> None:
    store = tmp_path / "s.fcache"
    paths = sorted(photos.rglob("*.jpg"))[:3]
    CachedEmbedder(BACKBONE, store, progress=False).transform([str(path) for path in paths])
    opened = fc.open(store)
    items = opened.items(source="paths")
    there = known_images(opened, "paths", items, [])
    assert sorted(Path(entry.place) for entry in there.values()) == paths
    source = KnownSource("paths", opened.sources()["paths"], items, there)
    report = fc.extract(source, store, backbone=BACKBONE, layers=["body.0:mean"], progress=False)
    assert report.computed == 3


def test_an_image_that_is_no_more_what_it_was(store: Path, photos: Path) -> None:
    _, source = known(store, photos)
    item = next(item for item in source.items if item.uri == "cats/cat-02.jpg")
    picture = image_of_item(item, source.images[item.uri], BACKBONE).image
    expected = Image.open(photos / item.uri).convert("RGB")
    np.testing.assert_array_equal(np.asarray(picture), np.asarray(expected))
    shutil.copy(photos / "cats" / "cat-03.jpg", photos / item.uri)
    with pytest.raises(UnusableImageError, match=r"cats/cat-02\.jpg has changed since"):
        image_of_item(item, source.images[item.uri], BACKBONE)
    (photos / item.uri).unlink()
    with pytest.raises(UnusableImageError):
        image_of_item(item, source.images[item.uri], BACKBONE)


def test_images_that_only_python_can_give(tmp_path: Path, draw_images: Callable[..., Path]) -> None:
    store = tmp_path / "s.fcache"
    rng = np.random.default_rng(0)
    CachedEmbedder(BACKBONE, store, progress=False).transform([rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)])
    opened = fc.open(store)
    with pytest.raises(UsageError, match="were given in Python, so they cannot be read again"):
        known_images(opened, "memory", opened.items(source="memory"), [])
