"""Which trials are made, how long each may be, and what every strategy would cost in full."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import nn

from featcache.backbones import Backbone
from featcache.backbones.compute import cores
from featcache.backbones.split import split_network, split_points
from featcache.core.errors import FeatcacheError, MissingVectorsError, UsageError
from featcache.core.progress import duration
from featcache.core.recipe import StandardTransform
from featcache.extraction.stored_source import known_images
from featcache.finetuning.advise.costs import Cost
from featcache.finetuning.advise.outcome import Outcome
from featcache.finetuning.advise.rates import step_seconds
from featcache.finetuning.advise.situation import Situation
from featcache.finetuning.advise.trial import FEWEST_EPOCHS, SCHEDULES, Fold, Trial, try_network, try_suffix
from featcache.finetuning.batches import ItemImages
from featcache.finetuning.finetune import VIEWS
from featcache.finetuning.trainers import full_model, trainable_copy, zero_output
from featcache.finetuning.validation import SHARE
from featcache.images.entry import Entry
from featcache.training.activations import view_names

_CUTS = 2
"""So many of the last blocks are tried."""
_GUESSED_CUT, _GUESSED_STEP = 8.0, 20.0
"""Seconds to measure the speed of a training, before anything is known of it."""
_IMAGES, _ACTIVATIONS = 8, 16


@dataclass
class _Candidate:
    """A strategy that can be tried.

    Attributes:
        name: of the strategy.
        kind: ``tune``, ``finetune`` or ``scratch``.
        epoch: seconds of an epoch for each item to learn from; of the last trial, once there was one.
        run: tries it on a fold for some epochs at most, with so many views of each item where they are cached.
        cached: the layer that has to be stored first.
        tried: whether *epoch* is that of a trial.
        views: of each item that fit the budget.
    """

    name: str
    kind: str
    epoch: float
    run: Callable[[Fold, int, int], Trial]
    cached: str | None = None
    tried: bool = False
    views: int = VIEWS


def tried(at: Situation) -> tuple[list[Outcome], list[Cost]]:
    """Trials as far as the budget goes, each on as many folds as fit; and the costs of what can be tried."""
    if at.backbone is None:
        for kind in ("tune", "finetune", "scratch"):
            at.budget.leave_out(kind, at.why_not)
        return [], [Cost(kind, None, None, "not known") for kind in ("tune", "finetune", "scratch")]
    candidates = [*_tunes(at, at.backbone), *_wholes(at, at.backbone)]
    found: dict[str, Outcome] = {}
    epochs: dict[str, int] = {}
    for candidate in candidates:
        first = _first(at, candidate)
        if first is not None:
            found[candidate.name], epochs[candidate.name] = first
    running = [candidate for candidate in candidates if candidate.name in found]
    for number, fold in list(enumerate(at.items.folds, 1))[1:]:
        for candidate in list(running):
            name = candidate.name
            so_far = found[name]
            more = at.budget.run(
                f"{name}, fold {number} of {len(at.items.folds)}",
                1.1 * so_far.seconds / so_far.fits,
                partial(candidate.run, fold, epochs[name], candidate.views),
            )
            if more is None:
                running.remove(candidate)
            else:
                found[name] = so_far.joined(more.outcome)
    costs = [_cost(at, candidate) for candidate in candidates]
    costs += [
        Cost(kind, None, None, "not measured")
        for kind in ("tune", "finetune", "scratch")
        if kind not in {candidate.kind for candidate in candidates}
    ]
    return list(found.values()), costs


def _first(at: Situation, candidate: _Candidate) -> tuple[Outcome, int] | None:
    """The trial on the first fold, and its epochs."""
    fold = at.items.folds[0]
    epoch = candidate.epoch * len(fold[0])
    output = at.whole.seconds / at.whole.fits
    fewest = FEWEST_EPOCHS[candidate.kind]
    views, storing = VIEWS, 0.0
    if candidate.cached is not None:
        for views in (VIEWS, 1):
            seconds = at.extraction_seconds([candidate.cached], views)
            if seconds is None:
                at.budget.leave_out(
                    candidate.name,
                    f"its activations are not stored, and how long that takes is not known: {at.no_rate}",
                )
                return None
            storing = seconds
            if storing + fewest * epoch + output <= at.budget.left:
                break
    wanted = storing + fewest * epoch + output
    if wanted > at.budget.left:
        at.budget.leave_out(
            candidate.name,
            f"even {fewest} epochs on one fold would take about {duration(wanted)}, {at.budget.said_left()}",
            wanted,
        )
        return None
    if candidate.cached is not None and not at.provide(candidate.name, [candidate.cached], views):
        return None
    # Half of what is left, so that the other strategies have their turn.
    epochs = min(SCHEDULES[candidate.kind].epochs, max(fewest, int(at.budget.left / 2 / epoch)))
    made = at.budget.run(
        f"{candidate.name}, fold 1 of {len(at.items.folds)}",
        epochs * epoch + output,
        lambda: candidate.run(fold, epochs, views),
    )
    if made is None:
        return None
    candidate.epoch, candidate.tried, candidate.views = made.epoch, True, views
    few = None if views == VIEWS else "learned from the pictures themselves alone, not from views of them"
    outcome = made.outcome
    return replace(outcome, note="; ".join(text for text in (outcome.note, few) if text) or None), epochs


def _tunes(at: Situation, backbone: Backbone) -> list[_Candidate]:
    """The last blocks at which the network can be cut, the latest first."""
    found = []
    named = at.budget.run("places to cut the network", _GUESSED_CUT, lambda: split_points(backbone.network)) or []
    blocks = {layer.rpartition(":")[0] for layer in at.layers}
    chosen = [place for place in named if place in blocks] or named
    for layer in chosen[: -_CUTS - 1 : -1]:
        candidate = at.budget.run(
            f"speed of tuning from {layer}",
            _GUESSED_CUT,
            partial(_tune, at, backbone, layer),
        )
        if candidate is not None:
            found.append(candidate)
    return found


def _tune(at: Situation, backbone: Backbone, layer: str) -> _Candidate:
    cut = split_network(backbone.network, layer)
    x = torch.randn(_ACTIVATIONS, *cut.shape, generator=torch.Generator().manual_seed(at.seed)).abs()
    classes = len(set(at.items.dataset.y.tolist()))
    model = nn.Sequential(cut.tail, zero_output(backbone.network, classes)).to(backbone.device)
    item = step_seconds(model, x, classes)
    name = f"tune {layer}"

    def run(fold: Fold, epochs: int, views: int) -> Trial:
        activations = at.vectors([cut.cached], views=view_names(views, at.seed))
        return try_suffix(
            name,
            split_network(backbone.network, layer),
            at.items.dataset,
            activations,
            fold,
            epochs,
            at.seed,
            at.watched,
        )

    return _Candidate(name, "tune", _epoch(item, 0.0), run, cut.cached)


def _wholes(at: Situation, backbone: Backbone) -> list[_Candidate]:
    """The whole network, from its own weights and from random ones."""

    def prepare() -> tuple[list[Entry], float]:
        entries = _entries(at, backbone)
        classes = len(set(at.items.dataset.y.tolist()))
        network = trainable_copy(backbone, "pretrained", at.seed)
        model = full_model(network, zero_output(network, classes), 0.0).to(backbone.device)
        pictures = ItemImages(backbone, at.items.dataset.items, entries, at.seed)
        rows = np.arange(len(entries))[:: max(1, len(entries) // _IMAGES)][:_IMAGES]
        began = time.monotonic()
        x = np.stack([pictures.pixels(int(row), epoch=1) for row in rows])
        picture = (time.monotonic() - began) / len(rows) / cores()
        return entries, _epoch(step_seconds(model, torch.from_numpy(x), classes), picture)

    prepared = at.budget.run("speed of fine-tuning", _GUESSED_STEP, prepare)
    if prepared is None:
        reason = at.budget.parts[-1].reason
        for kind in ("finetune", "scratch"):
            at.budget.leave_out(kind, f"its speed is not known: {reason}")
        return []
    entries, epoch = prepared
    kinds = {"finetune": "pretrained"}
    if backbone.is_custom:
        at.budget.leave_out("scratch", f"how the weights of {backbone.name} begin only its own code knows")
    else:
        kinds["scratch"] = "scratch"
    return [
        _Candidate(
            kind,
            kind,
            epoch,
            partial(_try_whole, at, backbone, entries, init),
        )
        for kind, init in kinds.items()
    ]


def _try_whole(
    at: Situation, backbone: Backbone, entries: list[Entry], init: str, fold: Fold, epochs: int, _views: int
) -> Trial:
    # Each epoch sees the pictures in views of its own, so none are cached.
    return try_network(init, backbone, entries, at.items.dataset, fold, epochs, at.seed, at.watched)


def _epoch(step: float, picture: float) -> float:
    """Seconds of an epoch for each item to learn from: validation is a pass without its way back."""
    return picture + step * (1 - SHARE + SHARE / 3)


def _entries(at: Situation, backbone: Backbone) -> list[Entry]:
    """Where the images are.

    Raises:
        MissingVectorsError: some are not where the store knows them.
        UsageError: the network does not train on the pictures themselves.
    """
    recipe = backbone.recipe
    if recipe.detection is not None or not isinstance(recipe.pixels.transform, StandardTransform):
        raise UsageError("the pictures are aligned faces, or transformed by a callable, on which no network is trained")
    notes: list[str] = []
    items = at.items.dataset.items
    there = known_images(at.store, at.source, items, notes)
    absent = [item.uri for item in items if item.uri not in there]
    if absent:
        raise MissingVectorsError(
            f"{len(absent)} of {len(items)} images are not where the store knows them (first: {absent[0]})"
        )
    return [there[item.uri] for item in items]


def _cost(at: Situation, candidate: _Candidate) -> Cost:
    epochs, count = SCHEDULES[candidate.kind].epochs, len(at.items.rows)
    # The output is fitted before the training, and again where the beginning is kept.
    fits = 0.0 if candidate.kind == "scratch" else 2 * at.whole.seconds / at.whole.fits
    seconds: float | None = epochs * candidate.epoch * count + fits
    known = "of a trial" if candidate.tried else "by a few steps"
    how = f"{epochs} epochs at most, {1000 * candidate.epoch:.3g} ms an image in each, {known}"
    if candidate.cached is None:
        return Cost(candidate.name, seconds, 0, how)
    try:
        passes, room = at.missing([candidate.cached], VIEWS)
    except FeatcacheError as error:
        return Cost(candidate.name, None, None, str(error))
    rate = at.rate() if passes else None
    if passes and seconds is not None:
        seconds = None if rate is None else seconds + rate.seconds(passes)
        how += f", after {passes:,} activations are stored"
    return Cost(candidate.name, seconds, room, how)
