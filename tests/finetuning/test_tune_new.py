"""Layers of one's own in place of the later ones: the head ``mlp`` on what the frozen part gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import featcache as fc
from featcache.backbones import tiny_backbone
from featcache.core.errors import UsageError
from featcache.finetuning.schedule import TrainingConfig
from featcache.finetuning.tune import tune
from featcache.training.bundle import Bundle
from tests.finetuning.stores import contents, extracted

pytestmark = pytest.mark.slow

BACKBONE = tiny_backbone()


@pytest.fixture
def store(tmp_path: Path, draw_images: Callable[..., Path]) -> Path:
    return extracted(draw_images(tmp_path / "photos"), tmp_path / "s.fcache", BACKBONE)


def run(store: Path, layer: str, **options: Any) -> Bundle:
    given = {"init": "new", "hidden": (8,), "views": 2, "backbone": BACKBONE, "progress": False}
    return tune(store, layer, **(given | options))


def test_at_a_cut(store: Path, tmp_path: Path) -> None:
    before = contents(store)
    bundle = run(store, "body.0")
    assert contents(store) == before
    assert bundle.head == "mlp"
    assert [use.name for use in bundle.layers] == ["stem:mean"]
    assert (bundle.report["strategy"], bundle.report["init"]) == ("tune", "new")
    assert len(bundle.report["views"]) == 2
    # Other views that lie there are not learned from.
    fc.extract(tmp_path / "photos", store, backbone=BACKBONE, layers=["stem:mean"], views=3, seed=4, progress=False)
    again = run(store, "body.0")
    X = fc.open(store).arrays(layers="stem:mean")[0]
    p, same = bundle.predict_proba_vectors(X), again.predict_proba_vectors(X)
    assert p is not None
    assert same is not None
    assert p.tobytes() == same.tobytes()


def test_behind_the_whole_network(store: Path, tmp_path: Path) -> None:
    bundle = run(store, "pooled", views=1)
    assert [use.name for use in bundle.layers] == ["pooled"]
    assert bundle.report["views"] == ["0"]
    bundle.save(tmp_path / "a.fch")
    paths = sorted((tmp_path / "photos").rglob("*.jpg"))
    back = Bundle.load(tmp_path / "a.fch")
    assert back.predict(paths, backbone=BACKBONE) == bundle.predict(paths, backbone=BACKBONE)


def test_what_it_has_no_use_for_is_refused(store: Path, tmp_path: Path) -> None:
    for wrong in ({"checkpoint": tmp_path / "c"}, {"schedule": TrainingConfig()}):
        with pytest.raises(UsageError, match="neither a schedule nor a checkpoint"):
            run(store, "pooled", **wrong)
