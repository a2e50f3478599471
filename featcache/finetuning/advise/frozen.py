"""The measurements on frozen vectors: learning curve, depth, all blocks together, neighbours, hidden layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from featcache.core.progress import Silent
from featcache.finetuning.advise.budget import Deadline
from featcache.finetuning.advise.costs import Cost
from featcache.finetuning.advise.depth import Depth, by_depth, probed_blocks
from featcache.finetuning.advise.outcome import Outcome
from featcache.finetuning.advise.probes import curve_seconds, learning_curve, probe, seconds_for
from featcache.finetuning.advise.rates import step_seconds
from featcache.finetuning.advise.situation import Situation
from featcache.training.dataset import FeatureDataset

_MLP_STEPS, _MLP_BATCH, _HIDDEN = 2000, 128, 512


def measured_curve(at: Situation) -> list[Outcome]:
    """The softmax over the number of images; that of all images alone where the budget does not allow more."""
    dataset, folds = at.items.dataset, at.items.folds
    found = at.budget.run(
        "learning curve",
        curve_seconds(at.whole),
        lambda: learning_curve(at.whole, dataset, folds, at.seed, at.watched),
    )
    return found or [at.whole]


def measured_depth(at: Situation) -> Depth | None:
    """Probes of the blocks and of ``pooled``, all in view 0."""
    what = "accuracy by depth"
    blocks, depths = probed_blocks([layer for layer in at.layers if layer != "pooled"])
    if not blocks:
        at.budget.leave_out(what, at.why_not or "the network has no blocks")
        return None
    if not at.provide(what, at.layers):
        return None
    # Blocks have no other views, so they are compared with what pooled gives without them.
    views = len(at.items.dataset.views)
    several = views > 1
    fitted = [*blocks, "pooled"] if several else blocks

    def measure() -> Depth:
        outcomes = [
            probe(f"softmax on {layer}", at.vectors([layer]), at.items.folds, "softmax", at.seed, at.watched)
            for layer in fitted
        ]
        outcomes += [] if several else [at.whole]
        return by_depth([*blocks, "pooled"], [*depths, 1.0], outcomes, at.items.dataset.groups, at.seed)

    return at.budget.run(what, seconds_for(at.whole, _width(at), at.widths(fitted), views), measure)


def measured_heads(at: Situation) -> list[Outcome]:
    """All blocks together, nearest neighbours and hidden layers, as far as the budget goes."""
    dataset, folds = at.items.dataset, at.items.folds
    found = []
    several = len(at.layers) > 1
    if not several:
        at.budget.leave_out("multilayer", at.why_not or "the network has no blocks")
    elif at.provide("multilayer", at.layers):
        found.append(
            at.budget.run(
                "multilayer",
                seconds_for(at.whole, _width(at), [sum(at.widths(at.layers))], len(dataset.views)),
                lambda: probe("multilayer", at.vectors(at.layers), folds, "softmax", at.seed, at.watched),
            )
        )
    found.append(
        at.budget.run("knn", at.whole.seconds, lambda: probe("knn", dataset, folds, "knn", at.seed, at.watched))
    )
    found.append(_mlp(at, dataset))
    return [outcome for outcome in found if outcome is not None]


def _mlp(at: Situation, dataset: FeatureDataset) -> Outcome | None:
    """The head ``mlp``: one fold, which tells how long the others take, and these."""
    folds = at.items.folds
    first = at.budget.run(
        f"mlp, fold 1 of {len(folds)}",
        _mlp_seconds(at, len(folds[0][0])),
        lambda: probe("mlp", dataset, folds[:1], "mlp", at.seed, at.watched, within=Deadline(at.budget, Silent())),
    )
    if first is None:
        return None
    rest = at.budget.run(
        "mlp, the other folds",
        1.2 * first.seconds * (len(folds) - 1),
        lambda: probe("mlp", dataset, folds[1:], "mlp", at.seed, at.watched, within=Deadline(at.budget, Silent())),
    )
    return first if rest is None else first.joined(rest)


def _mlp_seconds(at: Situation, learned: int) -> float:
    """About how long the head ``mlp`` takes to learn from so many items, by a few steps."""
    classes, size = len(set(at.items.dataset.y.tolist())), min(_MLP_BATCH, learned)
    with torch.random.fork_rng([]):
        layers = nn.Sequential(nn.Linear(_width(at), _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, classes))
    return _MLP_STEPS * size * step_seconds(layers, torch.zeros(size, _width(at)), classes, steps=20)


def frozen_costs(at: Situation, outcomes: Sequence[Outcome]) -> list[Cost]:
    """What the heads on frozen vectors cost: measured where they were tried, else estimated.

    Args:
        at: what is measured on.
        outcomes: of the heads that were tried.
    """
    count = len(at.items.rows)
    costs = []
    for outcome in outcomes:
        seconds = outcome.seconds / outcome.fits * count / outcome.learned
        costs.append(Cost(outcome.name, seconds, 0, f"measured: {outcome.fits} fits"))
    tried = {outcome.name for outcome in outcomes}
    softmax = at.whole.seconds / at.whole.fits * count / at.whole.learned
    if "multilayer" not in tried:
        storing = at.extraction_seconds(at.layers) if len(at.layers) > 1 else None
        room = None if storing is None else at.missing(at.layers)[1]
        total = None if storing is None else storing + 3 * softmax
        costs.append(Cost("multilayer", total, room, "estimated by the softmax on pooled"))
    if "mlp" not in tried:
        costs.append(Cost("mlp", _mlp_seconds(at, count), 0, f"estimated by a few of {_MLP_STEPS:,} steps"))
    if "knn" not in tried:
        costs.append(Cost("knn", softmax, 0, "estimated by the softmax on pooled, which takes no less"))
    return costs


def _width(at: Situation) -> int:
    return sum(at.items.dataset.widths)
