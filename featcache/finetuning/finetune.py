"""`finetune`: later layers, new layers or a whole network train on the images of a store.

With *from_layer* the layers before it stay frozen: they run once over the images, and their activations are kept in the
store, in several views of each image, to train on again and again. Without it the whole network trains, on the images.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

import numpy as np

from featcache.backbones import get
from featcache.backbones.compute import check_choice
from featcache.backbones.layers import POOLED, check_module
from featcache.backbones.registry import with_weights
from featcache.backbones.split import SplitNetwork, split_network
from featcache.core.arguments import checked
from featcache.core.errors import UnknownNameError, UsageError
from featcache.core.progress import Progress, choose
from featcache.core.recipe import PixelPath, Recipe, StandardTransform
from featcache.extraction.embed import backbone_for
from featcache.extraction.stored_source import present_images
from featcache.finetuning import checkpoint as checkpoints
from featcache.finetuning.batches import ItemImages, images_in_order
from featcache.finetuning.config import NEW, PRETRAINED, SCRATCH, TrainingConfig
from featcache.finetuning.linear_probe import linear_predictor
from featcache.finetuning.report import keep_record, of_training
from featcache.finetuning.trainers import (
    TrainingResult,
    TrainingRun,
    mlp_predictor,
    train_full,
    train_new_layers,
    train_tail,
    trainable_copy,
)
from featcache.store import FeatureStore
from featcache.training.activations import Activations, needed, store_activations, view_names
from featcache.training.bundle import Bundle
from featcache.training.dataset import FeatureDataset
from featcache.training.fit import answers
from featcache.training.holdout import check_classes, divide
from featcache.training.image_dataset import image_vectors
from featcache.training.label_notes import note_incomplete, note_labels
from featcache.training.layer_scales import layer_uses
from featcache.training.layer_use import LayerUse
from featcache.training.partial_model import PartialModel
from featcache.training.report import describe_views, report_fields, score_fields
from featcache.training.selection import Selection, SelectionOptions

if TYPE_CHECKING:
    from torch.nn import Module

    from featcache.backbones import Backbone
    from featcache.heads.serialize import Predictor
    from featcache.images.entry import Entry

CONFIGS = {"pretrained": PRETRAINED, "new": NEW, "scratch": SCRATCH}
"""The settings by `init` where none are given."""
VIEWS = 4
VALID = (
    "Valid are: --from LAYER with --init pretrained (the default) or new; without --from, --init pretrained (the "
    "default) or scratch, and for scratch --arch."
)
_ROWS_AT_ONCE = 32


@checked
def finetune(
    store: str | Path | FeatureStore,
    from_layer: str | None = None,
    *,
    init: str = "pretrained",
    arch: str | None = None,
    views: int = VIEWS,
    config: TrainingConfig | None = None,
    seed: int = 0,
    device: str | None = None,
    checkpoint: str | Path | None = None,
    backbone: Backbone | None = None,
    progress: Progress | bool | None = None,
    **selection: Unpack[SelectionOptions],
) -> Bundle:
    """Train later layers, new layers, or a whole network on the images of a store's source.

    Partial fine-tuning, with *from_layer*: the layers before it stay frozen, and their activations are cached
    (`activations_needed` says how much room they take). With ``init="pretrained"`` the layers from there on continue
    from their pretrained weights; with ``"new"`` new hidden layers take their place, on the mean over the image of what
    the frozen part gives.

    Full fine-tuning, without: each epoch sees every image in another view, cropped, mirrored and colored at random.
    The network begins with its pretrained weights, or with ``init="scratch"`` with random ones.

    With pretrained weights training begins with the output of the linear probe that `featcache.train` finds, and
    earlier layers learn at lower rates. If fine-tuning, or the training of new layers, does not beat the linear probe
    beyond chance on the validation items, by the best of its epochs, the probe is returned, fitted on the stored
    ``pooled`` as `featcache.train` does on view 0. What begins with random weights is not compared: it is another
    network than that of the probe, and is asked for as such.

    Args:
        store: a store with the vectors of some backbone, or its path; images are read where the store knows them.
        from_layer: the first layer that trains, as `featcache.backbones.split.split_points` lists them; with ``new``
            also ``pooled``, for new layers behind the whole network.
        init: ``pretrained``; ``new`` with *from_layer*; ``scratch`` without.
        arch: for ``scratch``, another network than that of the vectors, by its full name. ``scratch:small_cnn`` is
            meant for images of few pixels (32 × 32).
        views: with *from_layer*, of each image that are cached and trained on, see `featcache.extract`.
        config: of the training; what it does not give is that of *init* in `CONFIGS`. Its seed is replaced by *seed*.
        seed: of the hold-out, the validation part, the views, the weights and the order.
        device: torch device; that of the backbone by default.
        checkpoint: a file that is written after each epoch and that the same call resumes from after a kill. It stays
            when the training is done, since the bundle is not saved yet: `featcache.finetuning.checkpoint.remove`
            removes it.
        backbone: needed only where the vectors were made by a module given in Python.
        progress: as for `featcache.train`.
        **selection: as for `featcache.train`.

    Returns:
        A `Bundle`; ``report["curve"]`` has the epochs. It carries the weights of the layers that were trained; where
        the linear probe is returned, it is a linear head on ``pooled`` and carries no others.

    Raises:
        UnknownNameError: no such layer, *init*, network or split.
        UsageError: arguments that do not go together, a layer at which the network cannot be split, a backbone whose
            images are aligned or (without *from_layer*) transformed by a callable, or as for `featcache.train`.
        DiskFullError: the activations do not fit on the disk.
        MissingVectorsError: none of the images is where the store knows it, as the store knows it; a few that are gone
            or have changed are passed over with a warning.
        TrainingError: the loss is not finite in the first epoch; later the last good epoch is kept, with a warning.

    Example:
        >>> config = fc.TrainingConfig(epochs=1)
        >>> bundle = fc.finetune("pets.fcache", init="scratch", arch="scratch:small_cnn", config=config)
        >>> bundle.classes
        ('cats', 'dogs')
    """
    check_arguments(from_layer, init, arch)
    began, started = time.monotonic(), datetime.now(UTC)
    opened = FeatureStore.open(store)
    known = opened.space(selection.get("space"))
    select = replace(Selection(**selection), space=known.fingerprint)
    if from_layer is None:
        _check_can_be_augmented(known.recipe, arch)
    base = backbone_for(known.recipe, backbone) if arch is None else get(arch)
    opened.source_names(selection.get("source"))
    device = str(device or base.device)
    schedule = replace(CONFIGS[init].over(config), seed=seed)
    check_choice("torch", schedule.precision, device)
    layer, split = (POOLED, None) if from_layer is None else _cached_layer(base, from_layer, init)
    names = view_names(1 if from_layer is None else views, seed)
    task = {"recipe": known.fingerprint, "init": init, "from_layer": from_layer, "network": base.name}
    file = None if checkpoint is None else Path(checkpoint)
    if file is not None:
        checkpoints.check(file, {"task": task | {"views": names}, "config": schedule.to_dict()})
    with choose(progress) as bar:
        if from_layer is not None:
            wanted = needed(opened, base, layer, select, views=views, seed=seed)
            store_activations(opened, base, wanted, select, seed=seed, progress=bar)
            if (pooled := needed(opened, base, POOLED, select, seed=seed)).bytes:
                store_activations(opened, base, pooled, select, seed=seed, progress=bar)  # the linear probe's
            opened = FeatureStore.open(opened.path)
        dataset = FeatureDataset.from_store(opened, layer, select.all_splits(), views=names)
        dataset.tell_labels(bar)
        vectors = dataset
        if from_layer is not None:
            dataset, vectors = _with_pooled(dataset.in_memory() if init == "new" else dataset, opened, select)
        note_incomplete(opened, dataset, bar)
        there: dict[tuple[str, str], Entry] = {}
        if from_layer is None:
            there = present_images(opened, dataset.items, bar)
            dataset = vectors = dataset.subset(
                np.array([row for row, item in enumerate(dataset.items) if (item.source, item.uri) in there])
            )
        check_classes(dataset)
        note_labels(dataset, bar)
        if split is not None:
            split.tail.to(device)
        sides = divide(dataset, select.split, seed, opened, bar)
        train_rows, test, protocol = sides.train_rows, sides.test_rows, sides.protocol
        fit_began = time.monotonic()
        run = TrainingRun(dataset, train_rows, test, schedule, bar, file, task)
        pixels = known.recipe.pixels if arch is None else None
        if from_layer is None:
            result, module = _fit_full(run, base, pixels, there, init, device)
        elif init == "new":
            result = train_new_layers(run, vectors.read, device)
        else:
            assert split is not None
            result = train_tail(split, vectors.read, run)
        if not result.curve.kept:
            # The linear probe, as `train` makes it: it reads the stored vectors, not the activations.
            dataset = vectors
            probe = linear_predictor(result.output, result.classes)
            bundle = _bundle(replace(run, dataset=vectors), result, probe, known.recipe)
        elif from_layer is None:
            bundle = _whole_network(run, result, base, _state(module), pixels)
        elif init == "new":
            bundle = _bundle(run, result, mlp_predictor(result), known.recipe)
        else:
            assert split is not None
            bundle = _bundle(run, result, _partial_model(split, result, known.recipe, backbone), known.recipe)
        fitting = time.monotonic() - fit_began
        bar.start("score", None, "items")
        test_set, rows = dataset, test
        if bundle.weights is not None:
            own = None if backbone is None else with_weights(base, bundle.weights, pixels)
            test_set = image_vectors(bundle, opened, select, backbone=own)
            place = {(item.source, item.uri): row for row, item in enumerate(test_set.items)}
            scored = [dataset.items[row] for row in test]
            rows = np.array([place[item.source, item.uri] for item in scored], dtype=np.int64)
        probabilities, predicted = answers(bundle, test_set, rows)
        scores = score_fields(test_set, rows, probabilities, predicted, result.classes, seed)
        bar.finish()
        if len(names) > 1:
            # The linear probe learns from view 0 alone.
            of = "view 0" if result.curve.kept == 0 else describe_views(names)
            protocol += f"; learned from {of} of each image, scored on view 0"
        bundle.report = {
            **report_fields(bundle, dataset, test, scores, protocol),
            **of_training(result, schedule, probabilities, predicted == test_set.y[rows]),
            "near_duplicates": {**sides.leaked.report(dataset), "grouped": False},
            "strategy": "finetune",
            "init": init,
            "from_layer": from_layer,
            "network": base.name,
            "views": names,
            "fit_seconds": fitting,
            "seconds": time.monotonic() - began,
        }
        keep_record(opened.path, started, bundle.report, bar)
    return bundle


@checked
def activations_needed(
    store: str | Path | FeatureStore,
    from_layer: str,
    *,
    init: str = "pretrained",
    views: int = VIEWS,
    seed: int = 0,
    backbone: Backbone | None = None,
    **selection: Unpack[SelectionOptions],
) -> Activations:
    """The activations that `finetune` with the same arguments stores first; see there for arguments and errors.

    Example:
        >>> fc.activations_needed("pets.fcache", "blocks.5").images
        24
    """
    check_arguments(from_layer, init, None)
    opened = FeatureStore.open(store)
    opened.source_names(selection.get("source"))
    network = backbone_for(opened.space(selection.get("space")).recipe, backbone)
    layer, _ = _cached_layer(network, from_layer, init)
    return needed(opened, network, layer, Selection(**selection), views=views, seed=seed)


def check_arguments(from_layer: str | None, init: str, arch: str | None) -> None:
    """Check that these arguments of `finetune` go together.

    Raises:
        UnknownNameError: no such *init*.
        UsageError: they do not go together; the valid combinations are named.
    """
    if init not in CONFIGS:
        raise UnknownNameError.among("init", init, tuple(CONFIGS))
    if init == "scratch" and from_layer is not None:
        raise UsageError(f"--init scratch does not go with --from {from_layer}: it trains the whole network. {VALID}")
    if init == "new" and from_layer is None:
        raise UsageError(f"--init new needs --from LAYER: new layers train on the frozen ones before it. {VALID}")
    if arch is not None and init != "scratch":
        raise UsageError(f"--arch {arch} does not go with --init {init}, which keeps the vectors' own network. {VALID}")
    if init == "pretrained" and from_layer == POOLED:
        raise UsageError(
            "Behind `pooled` the network has no layers that could continue from their weights. Take --init new, for "
            "new layers there, or an earlier layer."
        )


def _cached_layer(network: Backbone, from_layer: str, init: str) -> tuple[str, SplitNetwork | None]:
    """The layer whose activations are cached, and the split point; none behind the whole network."""
    if from_layer == POOLED:
        return POOLED, None
    check_module(from_layer, network.names)  # before the network is loaded
    split = split_network(network.network, from_layer)
    if init == "new":
        return split.cached.rpartition(":")[0] + ":mean", split
    return split.cached, split


def _with_pooled(
    dataset: FeatureDataset, store: FeatureStore, select: Selection
) -> tuple[FeatureDataset, FeatureDataset]:
    """The items that have ``pooled`` vectors too, and these vectors in the same order."""
    pooled = FeatureDataset.from_store(store, POOLED, select.all_splits())
    place = {(item.source, item.uri): row for row, item in enumerate(pooled.items)}
    rows = [row for row, item in enumerate(dataset.items) if (item.source, item.uri) in place]
    dataset = dataset.subset(np.array(rows, dtype=np.int64))
    order = np.array([place[item.source, item.uri] for item in dataset.items], dtype=np.int64)
    pooled = replace(pooled.subset(order).in_memory(), without_vectors=dataset.without_vectors)
    return dataset, pooled


def _check_can_be_augmented(recipe: Recipe, arch: str | None) -> None:
    if recipe.detection is not None:
        raise UsageError("The images of this space are aligned faces, on which no whole network is trained here.")
    if arch is None and not isinstance(recipe.pixels.transform, StandardTransform):
        raise UsageError(
            f"The transform of {recipe.backbone} is a callable, so it is not known how it would treat the parts of "
            "images that are cropped in each epoch. Give the backbone a StandardTransform, or fine-tune later layers "
            "(from_layer) with one view."
        )


def _fit_full(
    run: TrainingRun,
    base: Backbone,
    pixels: PixelPath | None,
    there: Mapping[tuple[str, str], Entry],
    init: str,
    device: str,
) -> tuple[TrainingResult, Module]:
    """Train a copy of a whole network on images; *pixels* is the vectors' own treatment of images."""
    network = trainable_copy(base, init, run.config.seed)
    network.to(device)
    reader = with_weights(base, _state(network.module), pixels)
    items = run.dataset.items
    images = ItemImages(reader, items, [there[item.source, item.uri] for item in items], run.config.seed)
    # An image that is scored at the end and cannot be read ends the run before the training.
    run.progress.start("read the images to be scored", len(run.test_rows), "items")
    for _, rows in images_in_order(images, run.test_rows, run.test_rows, _ROWS_AT_ONCE):
        run.progress.advance(len(rows))
    run.progress.finish()
    return train_full(network, images, init, run), network.module


def _whole_network(
    run: TrainingRun,
    result: TrainingResult,
    base: Backbone,
    weights: Mapping[str, np.ndarray],
    pixels: PixelPath | None,
) -> Bundle:
    """A bundle that carries the weights of the network that was trained; *pixels* as in `_fit_full`."""
    recipe = with_weights(base, weights, pixels).recipe
    bundle = _bundle(run, result, linear_predictor(result.output, result.classes), recipe)
    return replace(bundle, layers=(LayerUse(POOLED, (result.output.in_features,), 1.0),), weights=weights)


def _bundle(run: TrainingRun, result: TrainingResult, predictor: Predictor | PartialModel, recipe: Recipe) -> Bundle:
    return Bundle(
        head="finetune",
        classes=result.classes,
        layers=layer_uses(run.dataset, run.train_rows),
        recipe=recipe,
        predictor=predictor,
        trained_on=run.dataset.contents(np.union1d(run.train_rows, result.validation)),
        fitted_on=result.fitted_on,
        chosen=dict(result.chosen),
    )


def _partial_model(
    split: SplitNetwork, result: TrainingResult, recipe: Recipe, backbone: Backbone | None
) -> PartialModel:
    output = linear_predictor(result.output, result.classes)
    return PartialModel(split.layer, split.shape, _state(split.tail), output, recipe, backbone)


def _state(module: Module) -> dict[str, np.ndarray]:
    return {name: tensor.detach().cpu().numpy().copy() for name, tensor in module.state_dict().items()}
