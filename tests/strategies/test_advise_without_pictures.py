"""`advise` where the pictures are gone, though their network is there."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import featcache as fc
from featcache.backbones import tiny_backbone
from featcache.strategies.advise import advise

from .advise_making import names_of, reason_of

pytestmark = pytest.mark.usefixtures("one_thread")

LONG = 10_000.0


def test_missing_images_leave_parts_out(draw_pictures: Callable[..., Path], tmp_path: Path) -> None:
    root = draw_pictures(tmp_path / "photos", each=3)
    fc.extract(root, tmp_path / "s.fcache", backbone=tiny_backbone(), progress=False)
    shutil.rmtree(root)
    found = advise(tmp_path / "s.fcache", budget=LONG, backbone=tiny_backbone(), progress=False)
    assert names_of(found) == ["softmax", "mlp", "knn"]
    assert "where the store knows it" in reason_of(found, "multilayer")
    assert "where the store knows" in reason_of(found, "finetune")
    assert "tune body.1" not in names_of(found)
    assert found.depth is None
