"""The layers `all-blocks`: what is missing is extracted, of the images that are meant, and no more."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import featcache as fc
from featcache.backbones import get, tiny_backbone
from featcache.core.errors import MissingVectorsError, UsageError
from featcache.training.all_blocks import block_layers

pytestmark = pytest.mark.slow


def extracted(root: Path, store: Path, network: str, labels: str | None = None) -> Path:
    fc.extract(root, store, backbone=network, labels=labels, progress=False)
    return store


def run(store: Path, **options: str | Path) -> fc.Bundle:
    return fc.train(store, layers="all-blocks", progress=False, **options)  # type: ignore[arg-type]


def test_blocks_of_the_network() -> None:
    assert block_layers(tiny_backbone()) == ["body.0:mean_std", "body.1:mean_std", "pooled"]


def test_missing_layers_are_extracted_and_used(
    draw_images: Callable[..., Path], tmp_path: Path, small_network: str
) -> None:
    photos = draw_images(tmp_path / "photos")
    store = extracted(photos, tmp_path / "s.fcache", small_network)
    bundle = run(store)
    assert [use.name for use in bundle.layers] == block_layers(get(small_network)) == bundle.report["layers"]
    shutil.rmtree(photos)  # all layers are there now, so no image is needed
    assert run(store).report["score"]["accuracy"] == bundle.report["score"]["accuracy"]
    report = fc.sweep(store, ["ridge"], ["pooled", "all-blocks"], progress=False)
    assert sorted(len(cell.layers) for cell in report.cells) == [1, len(bundle.layers)]


def test_without_the_images_missing_layers_are_an_error(
    draw_images: Callable[..., Path], tmp_path: Path, small_network: str
) -> None:
    photos = draw_images(tmp_path / "photos", each=6)
    store = extracted(photos, tmp_path / "s.fcache", small_network)
    shutil.rmtree(photos)
    with pytest.raises(MissingVectorsError, match="--moved"):
        run(store)


def test_blocks_are_used_in_view_0_where_pooled_has_more(
    draw_images: Callable[..., Path], tmp_path: Path, small_network: str
) -> None:
    photos = draw_images(tmp_path / "photos", each=6)
    fc.extract(photos, tmp_path / "s.fcache", backbone=small_network, views=2, progress=False)
    assert run(tmp_path / "s.fcache").report["views"] == ["0"]


def test_images_added_since_get_their_layers(
    draw_images: Callable[..., Path], tmp_path: Path, small_network: str
) -> None:
    photos = draw_images(tmp_path / "photos")
    store = extracted(photos, tmp_path / "s.fcache", small_network)
    run(store)
    for path in list((photos / "cats").iterdir())[:3]:
        path.with_name(f"new-{path.name}").write_bytes(path.read_bytes() + b"another")
    extracted(photos, store, small_network)
    bundle = run(store)
    assert bundle.report["n"] + bundle.report["score"]["n"] == 27


def test_labels_of_a_table_tell_which_images_are_meant(
    draw_images: Callable[..., Path], tmp_path: Path, small_network: str
) -> None:
    photos = draw_images(tmp_path / "photos")
    store = extracted(photos, tmp_path / "s.fcache", small_network, labels="none")
    table = tmp_path / "labels.csv"
    with table.open("w", newline="") as file:
        uris = [item.uri for item in fc.open(store).items()]
        csv.writer(file).writerows([("path", "label"), *((uri, uri.split("/")[0]) for uri in uris)])
    bundle = run(store, labels=table)
    assert bundle.classes == ("cats", "dogs")


def test_a_module_of_python_is_given_once_more(draw_images: Callable[..., Path], tmp_path: Path) -> None:
    photos, backbone = draw_images(tmp_path / "photos", each=6), tiny_backbone()
    store, layers = tmp_path / "s.fcache", block_layers(backbone)
    fc.extract(photos, store, backbone=backbone, layers=layers, progress=False)
    with pytest.raises(UsageError, match="backbone=…"):
        run(store)
    assert [use.name for use in run(store, backbone=backbone).layers] == layers
    with pytest.raises(UsageError, match="Omit"):
        fc.train(store, layers=layers, backbone=backbone, progress=False)
