"""`multilayer` extracts what is missing, of the images that are meant, and no more."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import featcache as fc
from featcache.backbones import tiny_backbone
from featcache.finetuning.all_blocks import block_layers

BACKBONE = tiny_backbone()


def extracted(root: Path, store: Path, labels: str | None = None) -> Path:
    fc.extract(root, store, backbone=BACKBONE, labels=labels, progress=False)
    return store


def run(store: Path, **options: str | Path) -> fc.Bundle:
    return fc.multilayer(store, backbone=BACKBONE, progress=False, **options)  # type: ignore[arg-type]


def test_blocks_of_the_network() -> None:
    assert block_layers(BACKBONE) == ["body.0:mean_std", "body.1:mean_std", "pooled"]


def test_missing_layers_are_extracted_and_used(draw_images: Callable[..., Path], tmp_path: Path) -> None:
    photos = draw_images(tmp_path / "photos")
    store = extracted(photos, tmp_path / "s.fcache")
    bundle = run(store)
    assert [use.name for use in bundle.layers] == block_layers(BACKBONE) == bundle.report["layers"]
    assert bundle.report["strategy"] == "multilayer"
    shutil.rmtree(photos)  # all layers are there now, so no image is needed
    assert run(store).report["score"]["accuracy"] == bundle.report["score"]["accuracy"]


def test_pictures_added_since_get_their_layers(draw_images: Callable[..., Path], tmp_path: Path) -> None:
    photos = draw_images(tmp_path / "photos")
    store = extracted(photos, tmp_path / "s.fcache")
    run(store)
    for path in list((photos / "cats").iterdir())[:3]:
        path.with_name(f"new-{path.name}").write_bytes(path.read_bytes() + b"another")
    extracted(photos, store)
    bundle = run(store)
    assert bundle.report["n"] + bundle.report["score"]["n"] == 27


def test_labels_of_a_table_tell_which_images_are_meant(draw_images: Callable[..., Path], tmp_path: Path) -> None:
    photos = draw_images(tmp_path / "photos")
    store = extracted(photos, tmp_path / "s.fcache", labels="none")
    table = tmp_path / "labels.csv"
    with table.open("w", newline="") as file:
        uris = [item.uri for item in fc.open(store).items()]
        csv.writer(file).writerows([("path", "label"), *((uri, uri.split("/")[0]) for uri in uris)])
    bundle = run(store, labels=table)
    assert bundle.classes == ("cats", "dogs")
