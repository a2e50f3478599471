"""A checkpoint is that of its own items: with others, or with other labels of the same, it is refused."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from featcache.backbones import tiny_backbone
from featcache.core.errors import UsageError
from featcache.finetuning.config import Schedule
from featcache.finetuning.finetune import finetune
from tests.finetuning.stores import extracted

if TYPE_CHECKING:
    from featcache.training.bundle import Bundle

pytestmark = pytest.mark.slow
SHORT = Schedule(epochs=1, lr=1e-3, batch_size=8)
BACKBONE = tiny_backbone()


def draw(folder: Path, seed: int) -> Path:
    """Six images of each of two classes in each of the splits ``train``, ``val`` and ``test``."""
    rng = np.random.default_rng(seed)
    for split in ("train", "val", "test"):
        for label in ("a", "b"):
            (folder / split / label).mkdir(parents=True)
            for i in range(6):
                pixels = rng.integers(0, 120, (32, 32, 3)) + 100 * (label == "b")
                Image.fromarray(pixels.astype(np.uint8)).save(folder / split / label / f"{i}.png")
    return folder


def tuned(store: Path, **options: Any) -> Bundle:
    return finetune(store, "body.0", views=1, config=SHORT, backbone=BACKBONE, progress=False, **options)


def finetuned(store: Path, **options: Any) -> Bundle:
    return finetune(store, config=SHORT, backbone=BACKBONE, progress=False, **options)


@pytest.mark.parametrize("train", [tuned, finetuned])
def test_it_goes_on_with_no_other_items(tmp_path: Path, train: Callable[..., Bundle]) -> None:
    photos = draw(tmp_path / "photos", 0)
    store = extracted(photos, tmp_path / "s.fcache", BACKBONE, split="folder")
    checkpoint = tmp_path / "c.ckpt"
    train(store, checkpoint=checkpoint)
    kept = checkpoint.read_bytes()
    # As many other images under the same names, and the same ones of which two have changed their labels.
    others = extracted(draw(tmp_path / "other" / "photos", 1), tmp_path / "o.fcache", BACKBONE, split="folder")
    uris = sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.png"))
    labels = {uri: uri.split("/")[1] for uri in uris}
    labels |= {"train/a/0.png": "b", "train/b/0.png": "a"}
    with (tmp_path / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "label"), *labels.items()])
    for other, options in ((others, {}), (store, {"labels": tmp_path / "labels.csv"})):
        with pytest.raises(UsageError, match="the images or their labels are others"):
            train(other, checkpoint=checkpoint, **options)
        assert checkpoint.read_bytes() == kept
    # With its own ones it does, as often as it is asked to.
    assert len(train(store, checkpoint=checkpoint).report["curve"]["epochs"]) == 1
