"""The whole way on photographs that stand outside the project, where ``FEATCACHE_DATA`` says."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import featcache as fc
from featcache.backbones.families.bundled import spec_of, weights_file
from featcache.metrics.near_duplicates import find

pytestmark = [pytest.mark.real, pytest.mark.slow]


@pytest.fixture(scope="module")
def trash() -> Path:
    data = os.environ.get("FEATCACHE_DATA")
    if not data:
        pytest.skip("FEATCACHE_DATA is unset: it names a folder with trashnet-480/")
    folder = Path(data, "trashnet-480")
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    return folder


@pytest.fixture(scope="module")
def store(trash: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trash") / "trash.fcache"
    report = fc.extract(trash, path, limit=180, progress=False)
    assert (report.items, report.computed, report.quarantined) == (180, 180, 0)
    return path


def test_vectors_are_those_of_timm(trash: Path, store: Path) -> None:
    X, _, items = fc.open(store).arrays()
    spec = spec_of("efficientnet_lite0")
    network = timm.create_model(spec.arch, pretrained=False)
    tensors = torch.load(weights_file(spec), weights_only=True)
    network.load_state_dict(dict(zip(network.state_dict(), tensors.values(), strict=True)))
    network.eval().reset_classifier(0)
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=network))
    for vector, item in list(zip(X, items, strict=True))[::3]:
        with Image.open(trash / item.uri) as image, torch.inference_mode():
            expected = network(transform(image.convert("RGB"))[None])[0].numpy()
        # Of the resized image only the crop is computed: a pixel here and there is one gray level off.
        cosine = vector @ expected / np.linalg.norm(vector) / np.linalg.norm(expected)
        assert cosine >= 0.9999, item.uri


def test_a_head_on_few_photographs_is_far_above_chance(store: Path) -> None:
    bundle = fc.train(store, "torch", cv=5, progress=False)
    score = bundle.report["score"]
    assert len(bundle.classes) == 6
    assert score["n"] == 180
    assert score["low"] > 0.6


def test_copies_of_photographs_are_found_and_nothing_else(trash: Path, store: Path, tmp_path: Path) -> None:
    """Of 12 photographs: the same bytes, another JPEG quality, nine tenths of the size, a crop, more light."""
    root = tmp_path / "trash"
    originals = [item.uri for item in fc.open(store).items()]
    for uri in originals:
        (root / uri).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(trash / uri, root / uri)
    for uri in originals[::15]:
        stem = (root / uri).with_suffix("")
        shutil.copy(trash / uri, f"{stem}__exact.jpg")
        with Image.open(trash / uri) as opened:
            image = opened.convert("RGB")
        w, h = image.size
        image.save(f"{stem}__quality.jpg", quality=60)
        image.resize((round(0.9 * w), round(0.9 * h))).save(f"{stem}__size.jpg", quality=90)
        image.crop((w // 50, h // 50, w - w // 33, h - h // 33)).save(f"{stem}__crop.jpg", quality=90)
        image.point(lambda value: min(255, value + 8)).save(f"{stem}__light.jpg", quality=90)
    shutil.copytree(store, tmp_path / "s.fcache")
    fc.extract(root, tmp_path / "s.fcache", name="copied", progress=False)
    X, _, items = fc.open(tmp_path / "s.fcache").arrays(source="copied")
    first = {item.sha256: row for row, item in reversed(list(enumerate(items)))}
    rows = np.array(sorted(first.values()))
    assert len(items) == 240
    assert len(rows) == 228  # exact copies are one content
    found = find(lambda at: X[rows[at]], np.arange(len(rows)))
    stems = [items[row].uri.split("__")[0].removesuffix(".jpg") for row in rows]
    planted = [stems[a] == stems[b] for a, b in found.pairs]
    # Each of the 12 has 5 versions that differ, so there are 120 pairs.
    assert sum(planted) >= 108
    # Some photographs show two drink cans of the same make from above, in one light.
    assert len(planted) - sum(planted) <= 3
