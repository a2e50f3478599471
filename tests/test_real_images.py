"""The whole way on photographs that stand outside the project, where ``FEATCACHE_DATA`` says."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import featcache as fc
from featcache.backbones.bundled import spec_of, weights_file


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
        # Another number of images in one pass changes the last digits, and nothing else does.
        assert np.linalg.norm(vector - expected) <= 1e-5 * np.linalg.norm(expected), item.uri


def test_a_head_on_few_photographs_is_far_above_chance(store: Path) -> None:
    bundle = fc.train(store, "torch", cv=5, progress=False)
    score = bundle.report["score"]
    assert len(bundle.classes) == 6
    assert score["n"] == 180
    assert score["low"] > 0.6
