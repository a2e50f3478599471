"""Views beside view 0: the vectors are right, only what is missing is computed, and a kill costs no row."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import featcache as fc
from featcache.backbones import Backbone, tiny_backbone
from featcache.core.errors import MissingVectorsError, UnknownNameError, UsageError
from featcache.core.names import VIEW_0
from featcache.core.recipe import StandardTransform
from featcache.extraction import ExtractReport
from featcache.images.augmentation import Augmentation, views_beside
from featcache.images.decode import decode_rgb
from featcache.store.rows import ItemRows
from tests.extraction import child
from tests.store.making import lose

LAYERS = ["pooled", "body.0:mean"]
Run = Callable[..., ExtractReport]


@pytest.fixture(scope="module")
def net() -> Backbone:
    return tiny_backbone()


@pytest.fixture
def run(tmp_path: Path, photos: Path, net: Backbone) -> Run:
    def extract(store: str = "s.fcache", **options: object) -> ExtractReport:
        options = {"backbone": net, "progress": False} | options
        return fc.extract(photos, tmp_path / store, **options)  # type: ignore[arg-type]

    return extract


def names(count: int, seed: int = 0) -> list[str]:
    return [VIEW_0, *(view.name for view in views_beside(count, seed))]


def test_vectors_are_those_of_the_views(run: Run, tmp_path: Path, photos: Path, net: Backbone) -> None:
    report = run(views=3, seed=4, layers=LAYERS, config=fc.ExtractionConfig(batch_size=5))
    assert (report.items, report.views, report.computed, report.reused, report.left) == (24, 3, 72, 0, 0)
    X, y, items = fc.open(tmp_path / "s.fcache").arrays(layers="+".join(LAYERS), views=True)
    assert X.shape == (72, 12 + 16)
    assert [item.uri for item in items[::3]] == [item.uri for item in items[2::3]]
    transform = net.recipe.pixels.transform
    assert isinstance(transform, StandardTransform)
    layers = net.resolve_layers(LAYERS)
    for row in range(0, 72, 3):
        item = items[row]
        image = decode_rgb((photos / item.uri).read_bytes())
        pixels = [net.prepare(image), *(view.pixels(image, transform, item.sha256) for view in views_beside(3, 4))]
        found = net.forward(np.stack(pixels), layers)
        expected = np.concatenate([found[layer.name].reshape(3, -1) for layer in layers], axis=1)
        np.testing.assert_allclose(X[row : row + 3], expected, rtol=1e-4, atol=1e-6)
        assert y[row] == y[row + 2] == item.label


def test_batches_threads_and_order_change_nothing(run: Run, tmp_path: Path) -> None:
    run(views=4, config=fc.ExtractionConfig(batch_size=1, workers=1))
    run("other.fcache", views=2, config=fc.ExtractionConfig(batch_size=7, workers=4), limit=5)
    run("other.fcache", views=4, config=fc.ExtractionConfig(batch_size=3, workers=3))
    one, other = (fc.open(tmp_path / name).arrays(views=True)[0] for name in ("s.fcache", "other.fcache"))
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_only_what_is_missing_is_computed(run: Run, tmp_path: Path, photos: Path) -> None:
    assert run().computed == 24
    assert run(views=2).computed == 24
    before = {p: p.read_bytes() for p in (tmp_path / "s.fcache" / "shards").rglob("*.h5")}
    assert run(views=4).computed == 48
    assert all(path.read_bytes() == content for path, content in before.items())
    again = run(views=3)
    assert (again.computed, again.reused) == (0, 24)
    assert run().computed == 0
    # Another layer in the same views, and then in one more; another seed.
    assert run(views=4, layers=LAYERS).computed == 96
    assert run(views=5, layers=LAYERS).computed == 24
    assert run(views=3, seed=1).computed == 48
    shutil.copy(photos / "cats" / "cat-00.jpg", photos / "cats" / "copy.jpg")
    Image.new("RGB", (40, 30), (1, 2, 3)).save(photos / "cats" / "new.png")
    added = run(views=5, layers=LAYERS)
    assert (added.computed, added.reused, added.added) == (7, 25, 2)  # the two of seed 1 as well
    assert fc.open(tmp_path / "s.fcache").verify().ok


def test_views_are_listed_and_chosen_in_order(run: Run, tmp_path: Path) -> None:
    run(views=12, limit=2)
    run(views=2, seed=10, limit=2)
    run(views=2, seed=9, limit=2)
    store = fc.open(tmp_path / "s.fcache")
    expected = [*names(12), *names(2, 9)[1:], *names(2, 10)[1:]]
    assert store.status()["spaces"][0]["views"] == expected
    assert list(store.space().layers["pooled"].views) == store.view_names() == expected
    X = store.arrays(views=True)[0].reshape(2, 14, 16)
    for place, view in enumerate(expected):
        np.testing.assert_array_equal(store.arrays(views=[view])[0], X[:, place])
    chosen = store.arrays(views=[names(2, 9)[1], VIEW_0])[0]
    np.testing.assert_array_equal(chosen.reshape(2, 2, 16), X[:, [0, 12]])
    np.testing.assert_array_equal(store.arrays()[0], X[:, 0])
    with pytest.raises(UnknownNameError, match="stored view"):
        store.arrays(views=names(2, 77))


def test_images_that_lack_views_are_told(run: Run, tmp_path: Path, photos: Path) -> None:
    run(layers=["body.0:mean"])
    Image.new("RGB", (40, 30), (1, 2, 3)).save(photos / "cats" / "new.png")
    run(layers=["pooled"], views=3)  # views of the layers that are named
    lose(tmp_path / "s.fcache", "cats/new.png", "pooled", view_0=False)
    store = fc.open(tmp_path / "s.fcache")
    with pytest.raises(MissingVectorsError, match=r"1 of 25 images.*3 views of pooled.*cats/new\.png"):
        store.arrays(layers="pooled", views=True)
    with pytest.raises(MissingVectorsError, match="holds no view"):
        store.arrays(layers="pooled+body.0:mean", views=True)
    assert len(store.arrays()[0]) == 25
    assert run().computed == 2
    assert len(fc.open(tmp_path / "s.fcache").arrays(layers="pooled", views=True)[0]) == 75


def test_views_survive_compaction_and_reading_meanwhile(run: Run, tmp_path: Path) -> None:
    run(views=2, limit=10)
    run(views=3)
    store = fc.open(tmp_path / "s.fcache")
    before = store.arrays(views=True)[0]
    rows = ItemRows.of(store, views=True)
    fc.compact(tmp_path / "s.fcache", progress=False)
    np.testing.assert_array_equal(rows.read(np.arange(72)[::-1]), before[::-1])
    np.testing.assert_array_equal(fc.open(tmp_path / "s.fcache").arrays(views=True)[0], before)


def test_what_cannot_be_augmented_is_refused(run: Run, net: Backbone, tmp_path: Path) -> None:
    def halves(image: Image.Image) -> torch.Tensor:
        return torch.from_numpy(np.asarray(image.resize((32, 32)), dtype=np.float32)).permute(2, 0, 1) / 255

    custom = Backbone.from_module(net.module, transform=halves, name="mine", version="1", input_size=(32, 32))
    with pytest.raises(UsageError, match="callable"):
        run(backbone=custom, views=2)
    assert run(backbone=custom).computed == 24
    for options in ({"views": 0}, {"views": 2, "seed": -1}):
        with pytest.raises(UsageError, match=r"view|seed is a whole number"):
            run("bad.fcache", **options)
    assert not (tmp_path / "bad.fcache").exists()


class NaNBelow(torch.nn.Module):
    """The mean of each channel, NaN where the whole is darker than *level* of 255."""

    def __init__(self, level: float) -> None:
        super().__init__()
        self.register_buffer("level", torch.tensor(level / 127.5 - 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean(dim=(2, 3))
        return torch.where(mean.mean(dim=1, keepdim=True) < self.level, torch.nan, mean)


def put_bad(photos: Path) -> Backbone:
    """Put ``cats/aa.png`` there, of which views 0 and 1 are finite by the backbone returned and 2 and 3 are not."""
    transform = StandardTransform((32,), (32, 32), "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    for grey in range(20, 60):
        Image.new("RGB", (40, 40), (grey,) * 3).save(photos / "cats" / "aa.png")
        data = (photos / "cats" / "aa.png").read_bytes()
        key = hashlib.sha256(data).digest()
        means = [view.pixels(decode_rgb(data), transform, key).mean() for view in views_beside(4, 0)]
        if means[0] >= grey > max(means[1:]) + 1:
            backbone = Backbone.from_module(NaNBelow(grey - 0.5), transform=transform, name="nan")
            return backbone.with_runtime(runtime="torch")
    pytest.fail("no such image")


@pytest.fixture
def bad(photos: Path) -> Backbone:
    return put_bad(photos)


@pytest.fixture(scope="module")
def old_photos(tmp_path_factory: pytest.TempPathFactory, draw_images: Callable[..., Path]) -> tuple[Path, Backbone]:
    """Such images and their backbone, after the time from which on the times of files vouch for them."""
    photos = draw_images(tmp_path_factory.mktemp("old") / "photos")
    backbone = put_bad(photos)
    time.sleep(2.1)
    return photos, backbone


NOT_FINITE = "the backbone module:nan gives values that are not finite at pooled in 2 views"


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_of_an_image_with_bad_views_the_others_are_kept(
    run: Run, tmp_path: Path, bad: Backbone, batch_size: int
) -> None:
    report = run(backbone=bad, views=4, config=fc.ExtractionConfig(batch_size=batch_size))
    assert report.quarantine == [("cats/aa.png", NOT_FINITE)]
    assert (report.computed, report.quarantined, report.reused, report.left) == (24 * 4 + 2, 1, 0, 0)
    store = fc.open(tmp_path / "s.fcache")
    assert (len(store.arrays()[0]), len(store.arrays(views=names(2))[0])) == (25, 25 * 2)
    assert len(store.arrays(views=True)[0]) == 24 * 4
    again = run(backbone=bad, views=4)
    assert (again.computed, again.quarantined) == (0, 1)


@pytest.mark.parametrize("order", [(4, 1), (1, 4), (2, 4, 1, 3), (3, 4), (4, 1, 4)])
def test_the_order_of_runs_decides_nothing(
    old_photos: tuple[Path, Backbone], tmp_path: Path, order: tuple[int, ...]
) -> None:
    photos, bad = old_photos

    def run(views: int) -> ExtractReport:
        return fc.extract(photos, tmp_path / "s.fcache", backbone=bad, views=views, progress=False)

    assert [run(views).quarantined for views in order] == [int(max(order[: i + 1]) > 2) for i in range(len(order))]
    store = fc.open(tmp_path / "s.fcache")
    assert store.quarantine() == [("cats/aa.png", NOT_FINITE)]
    assert sum(column.rows for column in store.space().layers.values()) == 24 * 4 + 2
    assert len(store.arrays()[0]) == 25
    again = run(4)
    assert (again.computed, again.reused, again.quarantined, again.left) == (0, 24, 1, 0)


@pytest.mark.slow
@pytest.mark.parametrize("passes", [0, 3, 8])
@pytest.mark.parametrize("point", ["seal: renamed", "seal: committed"])
def test_a_killed_run_with_views_and_layers_goes_on(
    photos: Path, tmp_path: Path, run: Run, point: str, passes: int
) -> None:
    store = tmp_path / "k.fcache"
    assert child.run("extract", photos, store, LAYERS, 3, point=point, passes=passes) is None
    opened = fc.open(store)
    assert opened.verify().ok
    kept = sum(column.rows for space in opened.spaces for column in space.layers.values()) // 2
    committed = {
        (layer, view): opened.vectors(layer, view=view)[:]
        for space in opened.spaces for layer, column in space.layers.items() for view in column.views
    }  # fmt: skip
    assert kept < 72
    report = run("k.fcache", views=3, layers=LAYERS)
    # A shard that was renamed and not committed is adopted, so its rows are not computed again.
    adopted = 72 - report.computed - kept
    assert (adopted > 0) == (point == "seal: renamed")
    assert report.left == report.quarantined == 0
    run("whole.fcache", views=3, layers=LAYERS)
    opened, whole = fc.open(store), fc.open(tmp_path / "whole.fcache")
    assert opened.verify().ok
    for layer in LAYERS:
        one, other = (s.arrays(layers=layer, views=True)[0] for s in (opened, whole))
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
    for (layer, view), vectors in committed.items():
        now = {row.tobytes() for row in opened.vectors(layer, view=view)[:]}
        assert all(row.tobytes() in now for row in vectors)
    assert run("k.fcache", views=3, layers=LAYERS).computed == 0


def test_the_policy_is_part_of_the_address(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(views=2, limit=4)
    other = Augmentation(scale=(0.9, 1.0))
    monkeypatch.setattr("featcache.images.augmentation.Augmentation", lambda: other)
    assert run(views=2, limit=4).computed == 4
    assert len(fc.open(tmp_path / "s.fcache").view_names()) == 3
