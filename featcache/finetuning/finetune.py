"""`finetune`: the whole network trains, from images; it begins with pretrained weights, or with random ones."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from featcache.backbones import get
from featcache.backbones.compute import check_choice
from featcache.backbones.layers import POOLED
from featcache.backbones.registry import with_weights
from featcache.core.errors import MissingVectorsError, UnknownNameError, UsageError
from featcache.core.progress import Progress, choose
from featcache.core.recipe import StandardTransform
from featcache.extraction.embed import backbone_for
from featcache.extraction.stored_source import known_images
from featcache.finetuning.batches import Pictures, images_in_order
from featcache.finetuning.linear_probe import linear_predictor
from featcache.finetuning.report import keep_record, of_training
from featcache.finetuning.schedule import TrainingConfig
from featcache.finetuning.trainers import beginning, train_network
from featcache.finetuning.validation import contents
from featcache.store import FeatureStore
from featcache.training import leakage
from featcache.training.bundle import Bundle
from featcache.training.dataset import FeatureDataset, Selection
from featcache.training.fit import answers
from featcache.training.holdout import check_classes, train_test_split
from featcache.training.image_dataset import image_vectors
from featcache.training.layer_use import LayerUse
from featcache.training.report import report_fields, score_fields

if TYPE_CHECKING:
    from featcache.backbones import Backbone
    from featcache.backbones.network import Network

INITS = ("pretrained", "scratch")
PRETRAINED = TrainingConfig(epochs=12, rate=3e-4, patience=6, label_smoothing=0.1)
_AT_ONCE = 32
SCRATCH = TrainingConfig(epochs=60, rate=2e-3, layer_decay=1.0, patience=12, label_smoothing=0.1)


def finetune(
    store: str | Path,
    *,
    init: str = "pretrained",
    arch: str | None = None,
    schedule: TrainingConfig | None = None,
    split: str | None = None,
    labels: str | Path | None = None,
    source: str | None = None,
    space: str | None = None,
    seed: int = 0,
    precision: str = "float32",
    device: str | None = None,
    checkpoint: str | Path | None = None,
    backbone: Backbone | None = None,
    progress: Progress | bool | None = None,
) -> Bundle:
    """Train a whole network on the images of a store's source.

    Each epoch sees every image in a view of its own, cut out, mirrored and coloured at random. With
    ``init="pretrained"`` the output begins with what the path solver finds on the stored vectors.

    Args:
        store: a store with the source's vectors; its images are read where the store knows them.
        init: ``pretrained``, or ``scratch`` for random weights.
        arch: another network than that of the vectors, by its full name; for ``scratch`` alone.
            ``scratch:small_cnn`` is meant for images of few pixels (32 × 32).
        schedule: of the training; by default `PRETRAINED` or `SCRATCH`. Its seed gives way to *seed*.
        split, labels, source, space: as for `featcache.train`.
        seed: of the weights, the hold-out, the validation part, the augmentation and the order.
        precision: ``float32``, or ``bfloat16`` for products so where the machine has it; weights stay in float32.
        device: torch device; that of the backbone by default.
        checkpoint: a file that is written after each epoch and that the same call goes on from after a kill. It stays
            when the training is done, since the bundle is not saved yet: `featcache.finetuning.checkpoint.remove`
            removes it.
        backbone: needed only where the vectors were made by a module given in Python.
        progress: as for `featcache.train`.

    Returns:
        A `Bundle` that carries the network's weights; ``report["curve"]`` has the epochs.

    Raises:
        UnknownNameError: no such way to begin, network or split.
        UsageError: *arch* without ``scratch``, a backbone whose images are aligned or transformed by a callable, or
            as for `featcache.train`.
        MissingVectorsError: the images are not where the store knows them.
        UnusableImageError: an image is no longer the one that the store knows.
        TrainingError: the loss is no longer finite.
    """
    if init not in INITS:
        raise UnknownNameError.among("way to begin", init, INITS)
    if arch is not None and init != "scratch":
        raise UsageError(
            f"Pretrained weights are those of the vectors' own backbone. Leave {arch!r} away, or begin from scratch."
        )
    began, started = time.monotonic(), datetime.now(timezone.utc)
    opened = FeatureStore.open(Path(store))
    chosen_space = opened.space(space)
    if chosen_space.recipe.detection is not None:
        raise UsageError("The images of this space are aligned faces, on which no whole network is trained here.")
    if arch is None and not isinstance(chosen_space.recipe.pixels.transform, StandardTransform):
        raise UsageError(
            f"The transform of {chosen_space.recipe.backbone} is a callable, so it is not known how it would treat the "
            "parts of images that are cut out in each epoch. Give the backbone a StandardTransform, or train layers "
            "of it with tune and one view."
        )
    schedule = replace(schedule or (PRETRAINED if init == "pretrained" else SCRATCH), seed=seed)
    base = backbone_for(chosen_space.recipe, backbone) if arch is None else get(arch)
    check_choice("torch", precision, str(device or base.device))
    with choose(progress) as shown:
        dataset = FeatureDataset.from_store(
            opened, "pooled", Selection(source, chosen_space.fingerprint, labels=labels)
        )
        check_classes(dataset)
        notes: list[str] = []
        there = known_images(opened, dataset.items[0].source, dataset.items, notes)
        absent = [item.uri for item in dataset.items if item.uri not in there]
        if absent:
            raise MissingVectorsError(
                f"{len(absent)} of {len(dataset.items)} images are not where the store knows them (first: "
                f"{absent[0]}). {' '.join([*notes, 'Run'])} `featcache extract` again, so that it forgets those that "
                "are gone, or with --moved, if they lie elsewhere now."
            )
        train_rows, test, protocol = train_test_split(dataset, split, seed, opened, shown)
        guard = leakage.guard(dataset, [train_rows, test], scored=test, seed=seed, progress=shown)
        fit_began = time.monotonic()
        network = beginning(base, init, seed)
        network.to(device or base.device)
        pixels = None if arch is not None else chosen_space.recipe.pixels
        reader = with_weights(base, _state(network), pixels)
        pictures = Pictures(reader, dataset.items, [there[item.uri] for item in dataset.items], seed)
        _look_at(pictures, test, shown)
        trained = train_network(
            network, pictures, init,
            dataset, train_rows, test, schedule,
            checkpoint=None if checkpoint is None else Path(checkpoint),
            task={"init": init, "network": base.name, "recipe": chosen_space.fingerprint},
            precision=precision, progress=shown,
        )  # fmt: skip
        weights = _state(network)
        own = with_weights(base, weights, pixels)
        bundle = Bundle(
            head="finetune",
            classes=trained.classes,
            layers=(LayerUse(POOLED, (trained.output.in_features,), 1.0),),
            recipe=own.recipe,
            predictor=linear_predictor(trained.output, trained.classes),
            trained_on=contents(dataset, np.union1d(train_rows, trained.validation)),
            fitted_on=trained.learned,
            chosen=dict(trained.chosen),
            weights=weights,
        )
        fitting = time.monotonic() - fit_began
        shown.start("score", None, "items")
        pictured = image_vectors(
            bundle, opened, source=dataset.items[0].source, labels=labels, backbone=None if backbone is None else own
        )
        place = {item.uri: row for row, item in enumerate(pictured.items)}
        at = np.array([place[dataset.items[row].uri] for row in test], dtype=np.int64)
        probabilities, predicted = answers(bundle, pictured, at)
        scores = score_fields(pictured, at, probabilities, predicted, trained.classes, seed)
        shown.finish()
        bundle.report = {
            **report_fields(bundle, dataset, test, scores, protocol),
            **of_training(trained, schedule, guard, dataset, init, probabilities, predicted == pictured.y[at]),
            "strategy": "finetune",
            "network": base.name,
            "fit_seconds": fitting,
            "seconds": time.monotonic() - began,
        }
        keep_record(Path(store), "finetune", started, bundle.report, shown)
    return bundle


def _look_at(pictures: Pictures, rows: np.ndarray, shown: Progress) -> None:
    """Read what is scored at the end, so that an image that cannot be read ends the run before the training."""
    shown.start("look at the images to be scored", len(rows), "items")
    for _, numbers in images_in_order(pictures, rows, rows, _AT_ONCE):
        shown.advance(len(numbers))
    shown.finish()


def _state(network: Network) -> dict[str, np.ndarray]:
    return {name: t.detach().cpu().numpy().copy() for name, t in network.module.state_dict().items()}
