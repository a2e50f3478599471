"""A whole-network training that is killed gives the bundle that it would have given."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest

from featcache.core.errors import UsageError
from featcache.finetuning.finetune import finetune
from featcache.training.bundle import Bundle
from tests.finetuning import finetune_child
from tests.finetuning.stores import colour_blind, draw_hues, extracted

pytestmark = pytest.mark.slow


def learned(bundle: Bundle) -> dict[str, bytes]:
    assert bundle.weights is not None
    return {name: np.asarray(tensor).tobytes() for name, tensor in bundle.weights.items()}


def test_killed_it_goes_on_to_the_same_bundle(tmp_path: Path) -> None:
    hues = extracted(draw_hues(tmp_path / "photos"), tmp_path / "s.fcache", colour_blind())
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
    assert finetune_child.run(hues, whole) == 0
    assert finetune_child.run(hues, broken, kill_after=2) == -signal.SIGKILL
    assert sorted(path.name for path in broken.iterdir()) == ["c.ckpt"]
    assert finetune_child.run(hues, broken) == 0
    assert (broken / "curve.json").read_text() == (whole / "curve.json").read_text()
    a, b = Bundle.load(whole / "a.fch"), Bundle.load(broken / "a.fch")
    assert learned(a) == learned(b)
    assert a.predictor.weight.tobytes() == b.predictor.weight.tobytes()  # type: ignore[union-attr]
    assert (whole / "c.ckpt").exists()  # until whoever made the bundle has saved it
    with pytest.raises(UsageError, match=r'--from was none and is now "body\.0"'):
        finetune(
            hues, "body.0", views=1, config=finetune_child.CONFIG,
            checkpoint=whole / "c.ckpt", backbone=colour_blind(), progress=False,
        )  # fmt: skip
