"""The output that a training begins with was fitted on the training items alone, and on none that validate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import log_loss
from torch import nn

from featcache.backbones import Backbone
from featcache.core.progress import Silent
from featcache.finetuning.config import Schedule
from featcache.finetuning.finetune import finetune
from featcache.finetuning.validation import validation_rows
from featcache.heads import resolve_head
from featcache.store import FeatureStore
from featcache.training.dataset import FeatureDataset
from tests.finetuning.stores import TRANSFORM, extracted

if TYPE_CHECKING:
    from featcache.training.bundle import Bundle

pytestmark = pytest.mark.slow
STILL = Schedule(epochs=1, lr=1e-9, batch_size=16)
"""Too slow to change a network, so that its first epoch tells what it was at the beginning."""


def plain() -> Backbone:
    """A small network without normalizations: these learn at any rate."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        module = nn.Sequential()
        module.add_module("stem", nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU()))
        blocks = [nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU()), nn.Sequential(nn.Conv2d(8, 16, 3), nn.ReLU())]
        module.add_module("body", nn.Sequential(*blocks))
        module.add_module("pool", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1)))
    return Backbone.from_module(module, transform=TRANSFORM, name="plain", axes="NCHW")


def draw(root: Path, split: str, label: str, level: int, each: int, seed: int) -> None:
    """Gray images around a level, which overlap with those of another."""
    rng = np.random.default_rng(seed)
    (root / split / label).mkdir(parents=True)
    for i in range(each):
        pixels = np.clip(level + rng.normal(0, 25) + rng.normal(0, 20, (32, 32, 3)), 0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(root / split / label / f"{i:02}.png")


@pytest.fixture(scope="module", params=["items of the training part", "the source's own split"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store, of which a part of the split ``train`` validates, or ``val``, where the labels are the other ones."""
    root = tmp_path_factory.mktemp("split") / "photos"
    for seed, (label, level) in enumerate((("dark", 100), ("light", 150))):
        draw(root, "train", label, level, 15, seed)
        draw(root, "test", label, level, 6, seed + 2)
        if request.param == "the source's own split":
            draw(root, "val", label, 250 - level, 10, seed + 4)
    return extracted(root, root.parent / "s.fcache", plain(), split="folder")


def tuned(store: Path) -> Bundle:
    return finetune(store, "body.0", views=1, config=STILL, backbone=plain(), progress=False)


def finetuned(store: Path) -> Bundle:
    return finetune(store, config=STILL, backbone=plain(), progress=False)


@pytest.mark.parametrize("train", [tuned, finetuned])
def test_its_first_loss_is_that_of_a_head_on_the_training_items(store: Path, train: Callable[[Path], Bundle]) -> None:
    dataset = FeatureDataset.from_store(FeatureStore.open(store), "pooled")
    train_rows, scored = (
        np.array([row for row, item in enumerate(dataset.items) if item.split == split]) for split in ("train", "test")
    )
    fit, validation = validation_rows(dataset, train_rows, scored, 0, Silent())
    X, y = dataset.read(np.arange(len(dataset.items))), dataset.y

    def loss(rows: np.ndarray) -> float:
        """Of the validation items, by a head that is fitted on these rows."""
        head = resolve_head("softmax").make().fit(X[rows], y[rows], groups=dataset.groups[rows])
        return float(log_loss(y[validation], head.predict_proba(X[validation]), labels=head.classes_))

    report = train(store).report
    (epoch,) = report["curve"]["epochs"]
    assert report["validation"] == len(validation)
    assert epoch["validation_loss"] == pytest.approx(loss(fit), rel=1e-3)
    assert abs(loss(np.union1d(fit, validation)) / loss(fit) - 1) > 1e-2
