"""`advise` where the pictures are gone, though their network is there."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import featcache as fc
from featcache.backbones import tiny_backbone
from featcache.finetuning.advise import advise

from .advise_making import names_of, reason_of, store_of

pytestmark = pytest.mark.slow

LONG = 10_000.0


def test_missing_images_leave_parts_out(draw_images: Callable[..., Path], tmp_path: Path) -> None:
    root = draw_images(tmp_path / "photos", each=3)
    fc.extract(root, tmp_path / "s.fcache", backbone=tiny_backbone(), progress=False)
    shutil.rmtree(root)
    found = advise(tmp_path / "s.fcache", budget=LONG, backbone=tiny_backbone(), progress=False)
    assert names_of(found) == ["softmax", "mlp", "knn"]
    assert "where the store knows it" in reason_of(found, "multilayer")
    assert "where the store knows" in reason_of(found, "finetune")
    assert "tune body.1" not in names_of(found)
    assert found.depth is None


def test_a_network_made_in_python_is_advised_in_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The first block alone tells the four classes apart.
    rng = np.random.default_rng(0)
    y = np.arange(16) % 4
    vectors = {name: rng.normal(size=(16, d)) for name, d in (("body.0:mean_std", 24), ("body.1:mean_std", 32))}
    vectors["body.0:mean_std"] += 12 * np.eye(4, 24)[y]
    vectors["pooled"] = rng.normal(size=(16, 16))
    labels = ["abcd"[number] for number in y]
    path = store_of(tmp_path / "s.fcache", labels, vectors, made_by=tiny_backbone().recipe)
    found = advise(path, budget=LONG, source="images", backbone=tiny_backbone(), progress=False)
    assert found.recommendation == "multilayer"
    assert found.command == (f"fc.multilayer({str(path)!r}, source='pictures', backbone=backbone).save('HEAD.fch')")
    monkeypatch.chdir(tmp_path)
    eval(found.command, {"fc": fc, "backbone": tiny_backbone()})
    assert fc.load("HEAD.fch").classes == ("a", "b", "c", "d")
