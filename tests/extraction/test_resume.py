"""Only what is missing is computed, whatever is done to the folder meanwhile."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

import featcache as fc
from featcache.backbones import Backbone, tiny_backbone
from featcache.core.errors import MissingVectorsError, UsageError
from featcache.extraction.pipeline import is_unchanged
from featcache.images.entry import Entry
from featcache.store import StoreWriter
from featcache.store.sources import Record
from tests.store.making import lose

if TYPE_CHECKING:
    from featcache.extraction import ExtractReport


@pytest.fixture(scope="module")
def net() -> Backbone:
    return tiny_backbone()


@pytest.fixture
def run(tmp_path: Path, photos: Path, net: Backbone) -> Callable[..., ExtractReport]:
    def extract(source: Path = photos, store: str = "s.fcache", **options: object) -> ExtractReport:
        return fc.extract(source, tmp_path / store, **({"backbone": net, "progress": False} | options))  # type: ignore[arg-type]

    return extract


def paint(path: Path, level: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(level).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def test_a_second_run_computes_nothing(run: Callable[..., ExtractReport], tmp_path: Path) -> None:
    first = run()
    assert (first.items, first.computed, first.reused, first.added) == (24, 24, 0, 24)
    shards = sorted((tmp_path / "s.fcache" / "shards").rglob("*.h5"))
    second = run()
    assert (second.items, second.computed, second.reused, second.added) == (24, 0, 24, 0)
    assert sorted((tmp_path / "s.fcache" / "shards").rglob("*.h5")) == shards


def test_vectors_are_those_of_the_backbone(
    run: Callable[..., ExtractReport], tmp_path: Path, photos: Path, net: Backbone
) -> None:
    run(config=fc.ExtractionConfig(batch_size=5))
    X, y, items = fc.open(tmp_path / "s.fcache").arrays()
    layers = net.resolve_layers(["pooled"])
    for vector, label, item in zip(X, y, items, strict=True):
        with Image.open(photos / item.uri) as image:
            expected = net.forward(net.prepare(image.convert("RGB"))[None], layers)["pooled"][0]
        np.testing.assert_allclose(vector, expected, rtol=1e-4, atol=1e-6)
        assert label == item.uri.split("/")[0]


def test_a_renamed_class_computes_nothing(run: Callable[..., ExtractReport], tmp_path: Path, photos: Path) -> None:
    run()
    (photos / "cats").rename(photos / "felines")
    report = run()
    assert (report.computed, report.added, report.removed) == (0, 12, 12)
    _, y, items = fc.open(tmp_path / "s.fcache").arrays()
    assert sorted(set(y)) == ["dogs", "felines"]
    assert len(items) == 24


def test_changed_added_and_removed_files(run: Callable[..., ExtractReport], tmp_path: Path, photos: Path) -> None:
    run()
    for i in range(3):
        paint(photos / "cats" / f"cat-{i:02}.jpg", i)
    report = run()
    assert (report.computed, report.changed, report.added) == (3, 3, 0)
    for i in range(10):
        paint(photos / "birds" / f"bird-{i}.png", 100 + i)
    report = run()
    assert (report.computed, report.changed, report.added) == (10, 0, 10)
    shutil.rmtree(photos / "dogs")
    report = run()
    assert (report.computed, report.removed, report.items) == (0, 12, 22)
    _, y, _ = fc.open(tmp_path / "s.fcache").arrays()
    assert sorted(set(y)) == ["birds", "cats"]


def test_what_comes_back_is_still_there(run: Callable[..., ExtractReport], photos: Path, tmp_path: Path) -> None:
    run()
    (photos / "dogs").rename(tmp_path / "away")
    run()
    (tmp_path / "away").rename(photos / "dogs")
    report = run()
    assert (report.computed, report.added) == (0, 12)


def test_same_bytes_again_with_other_times_compute_nothing(run: Callable[..., ExtractReport], photos: Path) -> None:
    run()
    for path in photos.rglob("*.jpg"):
        path.write_bytes(path.read_bytes())
    report = run()
    assert (report.computed, report.changed, report.reused) == (0, 0, 24)


def test_a_change_that_keeps_size_and_mtime_is_seen(run: Callable[..., ExtractReport], photos: Path) -> None:
    target = photos / "cats" / "cat-00.bmp"
    Image.new("RGB", (9, 9), (1, 2, 3)).save(target)
    run()
    before = target.stat()
    with target.open("r+b") as file:
        file.seek(60)
        file.write(b"\x77")
    os.utime(target, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert target.stat().st_size == before.st_size
    assert run().changed == 1


def test_a_new_layer_leaves_the_others_untouched(run: Callable[..., ExtractReport], tmp_path: Path) -> None:
    run()
    store = tmp_path / "s.fcache"
    before = {p: p.read_bytes() for p in (store / "shards").rglob("*.h5")}
    report = run(layers=["body.*:mean_std"])
    assert report.computed == 24
    opened = fc.open(store)
    assert list(opened.space().layers) == ["body.0:mean_std", "body.1:mean_std", "pooled"]
    for path, content in before.items():
        assert path.read_bytes() == content
    assert run(layers=["pooled", "body.0:mean_std", "body.1:mean_std"]).computed == 0
    assert opened.arrays(layers="body.*:mean_std+pooled")[0].shape == (24, 2 * 12 + 2 * 16 + 16)


def test_an_image_is_completed_where_it_lacks_a_layer(
    run: Callable[..., ExtractReport], tmp_path: Path, photos: Path
) -> None:
    run(layers=["pooled", "body.0:mean"])
    paint(photos / "cats" / "new.png", 5)
    assert run(layers=["pooled"]).computed == 1
    lose(tmp_path / "s.fcache", "cats/new.png", "body.0:mean")
    with pytest.raises(MissingVectorsError, match="1 of 25"):
        fc.open(tmp_path / "s.fcache").arrays(layers="pooled+body.0:mean")
    assert run(layers=["pooled", "body.0:mean"]).computed == 1
    assert len(fc.open(tmp_path / "s.fcache").arrays(layers="pooled+body.0:mean")[0]) == 25
    assert fc.open(tmp_path / "s.fcache").verify().ok


def test_another_backbone_is_another_space(run: Callable[..., ExtractReport], tmp_path: Path) -> None:
    run()
    report = run(backbone=tiny_backbone(1))
    assert report.computed == 24
    store = fc.open(tmp_path / "s.fcache")
    assert [s.recipe.backbone for s in store.spaces] == ["module:tiny0", "module:tiny1"]
    assert run().computed == 0
    one, other = (store.arrays(space=s.fingerprint)[0] for s in store.spaces)
    assert not np.allclose(one, other)


def test_equal_content_is_stored_once_and_listed_twice(
    run: Callable[..., ExtractReport], tmp_path: Path, photos: Path
) -> None:
    shutil.copy(photos / "cats" / "cat-00.jpg", photos / "cats" / "copy.jpg")
    report = run()
    assert (report.items, report.computed, report.reused) == (25, 24, 1)
    store = fc.open(tmp_path / "s.fcache")
    X, _, items = store.arrays()
    pair = [i for i, item in enumerate(items) if item.uri in ("cats/cat-00.jpg", "cats/copy.jpg")]
    np.testing.assert_array_equal(X[pair[0]], X[pair[1]])
    assert len(store.vectors()) == 24


def test_relabeled_by_a_file_computes_nothing(run: Callable[..., ExtractReport], tmp_path: Path, photos: Path) -> None:
    run()
    lines = [
        f"{p.relative_to(photos).as_posix()},{'even' if i % 2 else 'odd'}" for i, p in enumerate(photos.rglob("*.jpg"))
    ]
    (tmp_path / "labels.csv").write_text("path,label\n" + "\n".join(lines))
    report = run(labels=tmp_path / "labels.csv")
    assert (report.computed, report.added, report.changed) == (0, 0, 0)
    assert sorted(set(fc.open(tmp_path / "s.fcache").arrays()[1])) == ["even", "odd"]


def test_two_folders_of_one_name_are_told_apart(
    run: Callable[..., ExtractReport], tmp_path: Path, photos: Path, draw_images: Callable[..., Path]
) -> None:
    run()
    other = draw_images(tmp_path / "elsewhere" / "photos", each=3)
    with pytest.raises(UsageError, match=r"--name.*--moved"):
        run(other)
    assert len(fc.open(tmp_path / "s.fcache").items()) == 24
    run(other, name="others")
    store = fc.open(tmp_path / "s.fcache")
    assert len(store.items(source="others")) == 6
    assert len(store.items(source="photos")) == 24


def test_a_moved_folder_computes_nothing(run: Callable[..., ExtractReport], tmp_path: Path, photos: Path) -> None:
    run()
    moved = photos.rename(tmp_path / "images")
    report = run(moved, name="photos", config=fc.ExtractionConfig(moved=True))
    assert (report.computed, report.added, report.removed) == (0, 0, 0)
    assert fc.open(tmp_path / "s.fcache").sources() == {"photos": str(moved.resolve())}


def test_a_limit_takes_all_labels_alike_and_removes_nothing(run: Callable[..., ExtractReport], tmp_path: Path) -> None:
    assert run(limit=6).computed == 6
    assert sorted(fc.open(tmp_path / "s.fcache").arrays()[1]) == ["cats"] * 3 + ["dogs"] * 3
    assert run().computed == 18
    assert run(limit=6).removed == 0
    assert len(fc.open(tmp_path / "s.fcache").items()) == 24


def test_float32_asked_for_takes_the_place_of_float16(run: Callable[..., ExtractReport], tmp_path: Path) -> None:
    run(config=fc.ExtractionConfig(dtype="float16"))
    assert run().computed == 0
    assert run(config=fc.ExtractionConfig(dtype="float32")).computed == 24
    assert fc.open(tmp_path / "s.fcache").space().layers["pooled"].dtypes == ("float32",)
    assert run(config=fc.ExtractionConfig(dtype="float16")).computed == 0


def test_the_batch_and_the_workers_do_not_change_what_is_stored(
    run: Callable[..., ExtractReport], tmp_path: Path
) -> None:
    run(config=fc.ExtractionConfig(batch_size=1, workers=1))
    run(store="other.fcache", config=fc.ExtractionConfig(batch_size=7, workers=4))
    one, other = (fc.open(tmp_path / name).arrays()[0] for name in ("s.fcache", "other.fcache"))
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_a_callable_transform_is_known_by_name_and_version(
    run: Callable[..., ExtractReport], tmp_path: Path, net: Backbone
) -> None:
    import torch

    def halves(image: Image.Image) -> torch.Tensor:
        return torch.from_numpy(np.asarray(image.resize((32, 32)), dtype=np.float32)).permute(2, 0, 1) / 255

    def with_version(version: str) -> Backbone:
        return Backbone.from_module(net.module, transform=halves, name="mine", version=version, input_size=(32, 32))

    assert run(backbone=with_version("1")).computed == 24
    assert run(backbone=with_version("1")).computed == 0
    assert run(backbone=with_version("2")).computed == 24
    assert len(fc.open(tmp_path / "s.fcache").spaces) == 2


def test_a_file_read_right_after_it_was_written_is_read_again(tmp_path: Path) -> None:
    """Two writes within the clock's grain leave the same times, so a file's times vouch for it only later."""
    paint(tmp_path / "a.png", 1)
    stat = os.stat(tmp_path / "a.png")
    entry = Entry("a.png", str(tmp_path / "a.png"), None, None, None)
    written = max(stat.st_mtime_ns, stat.st_ctime_ns)

    def record(read_after_ns: int) -> Record:
        times = (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
        return Record("a.png", bytes(32), None, None, None, *times, indexed_ns=written + read_after_ns)

    assert not is_unchanged(entry, record(1_000_000_000))
    assert is_unchanged(entry, record(3_000_000_000))
    # Unpacking an archive sets the time of the content back; that of the change stays.
    os.utime(tmp_path / "a.png", ns=(0, 0))
    stat = os.stat(tmp_path / "a.png")
    written = stat.st_ctime_ns
    assert not is_unchanged(entry, record(1_000_000_000))
    assert is_unchanged(entry, record(3_000_000_000))
    paint(tmp_path / "a.png", 2)
    assert not is_unchanged(entry, record(3_000_000_000))


def test_a_run_beside_another_says_so(photos: Path, tmp_path: Path) -> None:
    store = tmp_path / "s.fcache"
    with StoreWriter(store):
        beside = fc.extract(photos, store, backbone=tiny_backbone(), progress=False)
    (note,) = beside.notes
    assert note.startswith(f"Another run is writing to {store}.")
    assert not fc.extract(photos, store, backbone=tiny_backbone(), progress=False).notes
