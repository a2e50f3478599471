"""`tune`: the first layers stay frozen and cached, the later ones train.

The frozen part runs once over the images. What it gives at the cut is kept in the store, in several views of each
image, and the rest trains on that again and again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from featcache.backbones.split import SplitNetwork, split_network
from featcache.core.errors import UnknownNameError, UsageError
from featcache.core.progress import Progress, choose
from featcache.extraction.embed import backbone_for
from featcache.finetuning.activations import Activations, needed, store_activations, view_names
from featcache.finetuning.linear_probe import linear_predictor
from featcache.finetuning.report import keep_record, of_training
from featcache.finetuning.schedule import TrainingConfig
from featcache.finetuning.trainers import train_suffix
from featcache.finetuning.validation import contents
from featcache.heads import make_head
from featcache.store import FeatureStore
from featcache.training import leakage
from featcache.training.bundle import Bundle
from featcache.training.dataset import FeatureDataset, Selection
from featcache.training.fit import answers, layer_uses
from featcache.training.holdout import check_classes, train_test_split
from featcache.training.partial_model import PartialModel, frozen_vectors
from featcache.training.report import describe_views, report_fields, score_fields
from featcache.training.train import train

if TYPE_CHECKING:
    from featcache.backbones import Backbone

INITS = ("pretrained", "new")
VIEWS = 4
SCHEDULE = TrainingConfig(epochs=12, rate=3e-4, patience=6, label_smoothing=0.1)


def tune(
    store: str | Path,
    from_layer: str,
    *,
    init: str = "pretrained",
    views: int = VIEWS,
    hidden: Sequence[int] = (512,),
    dropout: float = 0.2,
    schedule: TrainingConfig | None = None,
    split: str | None = None,
    labels: str | Path | None = None,
    source: str | None = None,
    space: str | None = None,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    backbone: Backbone | None = None,
    progress: Progress | bool | None = None,
) -> Bundle:
    """Train the later layers of a backbone, or layers of one's own in their place, on cached activations.

    With ``init="pretrained"`` the layers from *from_layer* on go on from their pretrained weights: the activations at
    the cut are cached (`activations_needed` says how much room they take), the output begins with what the path solver
    finds on the frozen vectors, and earlier layers learn at lower rates. With ``init="new"`` they are
    replaced by hidden layers on the mean over the image of what the frozen part gives: the head ``mlp``.

    Args:
        store: a store with the vectors of some backbone.
        from_layer: the first layer that trains, as `featcache.backbones.split.split_points` lists them; with ``new``
            it may be ``pooled``, for hidden layers behind the whole network.
        init: ``pretrained`` or ``new``.
        views: of each image that are cached and learned from, see `featcache.extract`.
        hidden: units of each hidden layer; for ``new`` alone.
        dropout: share of the units that is left out in a step; for ``new`` alone.
        schedule: of the training, `SCHEDULE` by default; its seed gives way to *seed*. For ``pretrained`` alone, as
            the head ``mlp`` has its own.
        split, labels, source, space: as for `featcache.train`.
        seed: of the views, the hold-out, the validation part and the training.
        checkpoint: a file that is written after each epoch and that the same call goes on from after a kill. It stays
            when the training is done, since the bundle is not saved yet: `featcache.finetuning.checkpoint.remove`
            removes it. For ``pretrained`` alone.
        backbone: needed only where the vectors were made by a module given in Python.
        progress: as for `featcache.train`.

    Returns:
        A `Bundle` that predicts and is evaluated like any other; ``report["curve"]`` has the epochs.

    Raises:
        UnknownNameError: no such layer or way to begin.
        UsageError: the network cannot be cut there, an argument for the other way to begin, or as for
            `featcache.train`.
        DiskFullError: the activations do not fit on the disk.
        MissingVectorsError: the images are not where the store knows them.
        TrainingError: the loss is no longer finite.
    """
    _check_beginning(init, from_layer)
    if init == "new" and (schedule is not None or checkpoint is not None):
        raise UsageError(
            "Layers of one's own (init 'new') are trained as the head mlp is, which has neither a schedule nor a "
            "checkpoint to give. Leave them away."
        )
    began, started = time.monotonic(), datetime.now(timezone.utc)
    opened = FeatureStore.open(Path(store))
    recipe = opened.space(space).recipe
    network = backbone_for(recipe, backbone)
    fingerprint = opened.space(space).fingerprint
    with choose(progress) as shown:
        if init == "new":
            layer = "pooled" if from_layer == "pooled" else _mean(split_network(network.network, from_layer))
            _store(opened, network, layer, views, seed, labels, source, fingerprint, shown)
            head = make_head("mlp", seed, "classify").set_params(hidden=tuple(hidden), dropout=dropout)
            made = train(
                store, head, layers=layer, split=split, labels=labels, source=source, space=fingerprint, seed=seed,
                views=view_names(views, seed), progress=shown,
            )  # fmt: skip
            made.report |= {"strategy": "tune", "init": init, "from_layer": from_layer}
            made.report["seconds"] = time.monotonic() - began
            return made
        cut = split_network(network.network, from_layer)
        _store(opened, network, cut.cached, views, seed, labels, source, fingerprint, shown)
        opened = FeatureStore.open(Path(store))
        dataset = FeatureDataset.from_store(
            opened, cut.cached, Selection(source, fingerprint, labels=labels), views=view_names(views, seed)
        )
        check_classes(dataset)
        train_rows, test, protocol = train_test_split(dataset, split, seed, opened, shown)
        vectors = frozen_vectors(cut, dataset.read)
        dataset = replace(dataset, narrow=vectors)
        guard = leakage.guard(dataset, [train_rows, test], scored=test, seed=seed, progress=shown)
        fit_began = time.monotonic()
        schedule = replace(schedule or SCHEDULE, seed=seed)
        trained = train_suffix(
            cut, dataset, vectors, train_rows, test, schedule,
            checkpoint=None if checkpoint is None else Path(checkpoint),
            task={"recipe": fingerprint, "from_layer": from_layer}, progress=shown,
        )  # fmt: skip
        predictor = PartialModel(
            from_layer,
            cut.shape,
            {name: tensor.detach().cpu().numpy().copy() for name, tensor in cut.tail.state_dict().items()},
            linear_predictor(trained.output, trained.classes),
            recipe,
            backbone,
        )
        bundle = Bundle(
            head="tune",
            classes=trained.classes,
            layers=layer_uses(dataset, train_rows),
            recipe=recipe,
            predictor=predictor,
            trained_on=contents(dataset, np.union1d(train_rows, trained.validation)),
            fitted_on=trained.learned,
            chosen=dict(trained.chosen),
        )
        fitting = time.monotonic() - fit_began
        shown.start("score", None, "items")
        probabilities, predicted = answers(bundle, dataset, test)
        scores = score_fields(dataset, test, probabilities, predicted, trained.classes, seed)
        shown.finish()
        if len(dataset.views) > 1:
            protocol += f"; learned from {describe_views(dataset.views)} of each image, scored on view 0"
        bundle.report = {
            **report_fields(bundle, dataset, test, scores, protocol),
            **of_training(trained, schedule, guard, dataset, init, probabilities, predicted == dataset.y[test]),
            "strategy": "tune",
            "from_layer": from_layer,
            "views": list(dataset.views),
            "fit_seconds": fitting,
            "seconds": time.monotonic() - began,
        }
        keep_record(Path(store), "tune", started, bundle.report, shown)
    return bundle


def activations_needed(
    store: str | Path,
    from_layer: str,
    *,
    init: str = "pretrained",
    views: int = VIEWS,
    seed: int = 0,
    labels: str | Path | None = None,
    source: str | None = None,
    space: str | None = None,
    backbone: Backbone | None = None,
) -> Activations:
    """What `tune` with the same arguments will put into the store first; see there for arguments and errors."""
    _check_beginning(init, from_layer)
    opened = FeatureStore.open(Path(store))
    network = backbone_for(opened.space(space).recipe, backbone)
    layer = from_layer
    if init != "new" or from_layer != "pooled":
        cut = split_network(network.network, from_layer)
        layer = _mean(cut) if init == "new" else cut.cached
    return needed(opened, network, layer, views=views, seed=seed, labels=labels, source=source, space=space)


def _check_beginning(init: str, from_layer: str) -> None:
    if init not in INITS:
        raise UnknownNameError.among("way to begin", init, INITS)
    if init == "pretrained" and from_layer == "pooled":
        raise UsageError(
            "Behind `pooled` the network has no layers that could go on from their weights. Take init 'new' (--init "
            "new), for hidden layers there, or an earlier layer."
        )


def _mean(cut: SplitNetwork) -> str:
    return cut.cached.rpartition(":")[0] + ":mean"


def _store(
    store: FeatureStore,
    network: Backbone,
    layer: str,
    views: int,
    seed: int,
    labels: str | Path | None,
    source: str | None,
    space: str,
    shown: Progress,
) -> None:
    wanted = needed(store, network, layer, views=views, seed=seed, labels=labels, source=source, space=space)
    store_activations(store, network, wanted, seed=seed, labels=labels, source=source, progress=shown)
