"""What comes before all that is tried, as far as the budget goes: near-duplicates and the network.

What a step takes is estimated in processor time and multiplied by the pace of the process so far, since that is all
that is known before anything was measured.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import numpy as np

from featcache.core.errors import FeatcacheError
from featcache.core.progress import Budget, Deadline, OutOfTimeError, Progress, duration
from featcache.extraction.embed import backbone_for
from featcache.finetuning.advise.report import TOO_LITTLE_TIME
from featcache.finetuning.advise.trials import GUESS
from featcache.heads import resolve_head
from featcache.metrics import near_duplicates
from featcache.training import leakage
from featcache.training.all_blocks import block_layers

if TYPE_CHECKING:
    from featcache.backbones import Backbone
    from featcache.core.recipe import Recipe
    from featcache.training.dataset import FeatureDataset

_LOADING, _LOADED = 4.0, 1.0
"""Seconds of processor time to load a network, and where the library of networks is loaded already."""


def probe_seconds(dataset: FeatureDataset, rows: np.ndarray, folds: int, budget: Budget) -> float:
    """About how long one fit of the softmax on the rows of all folds but one takes."""
    learned, classes = len(rows) * len(dataset.views) * (folds - 1) // folds, len(np.unique(dataset.y[rows]))
    return float(budget.pace() * resolve_head("softmax").make().seconds_needed(learned, sum(dataset.widths), classes))


def least(budget: Budget, floor: float) -> str:
    """What is said of the budget before anything is measured; *floor* is the least that it takes."""
    text = f"Budget: {duration(budget.seconds)}, of which {duration(budget.spent())} are spent."
    if floor <= budget.seconds:
        return text
    return (
        f"{text} To read the vectors and fit one linear probe takes {duration(floor)} at least, so that alone is done."
    )


def near_duplicates_in_time(
    dataset: FeatureDataset, rows: np.ndarray, seed: int, probe: float, budget: Budget, progress: Progress
) -> leakage.Found:
    """The near-duplicates among the rows, unless the search would take the *probe* seconds of the linear probe."""
    what, seconds = "near-duplicates", budget.pace() * near_duplicates.about_seconds(len(rows), sum(dataset.widths))
    if not seconds:
        return leakage.search(dataset, rows, seed=seed, progress=progress)
    if seconds + probe > budget.left():
        budget.skip(what, f"it would take about {duration(seconds)}", seconds)
        return leakage.Found.nothing(TOO_LITTLE_TIME)
    try:
        return leakage.search(dataset, rows, seed=seed, progress=Deadline(budget.left, progress))
    except OutOfTimeError as error:
        budget.skip(what, str(error), seconds)
        return leakage.Found.nothing(TOO_LITTLE_TIME)


def network_in_time(
    recipe: Recipe, backbone: Backbone | None, budget: Budget, progress: Progress
) -> tuple[Backbone | None, list[str], str]:
    """The network, its blocks, and why one of them is not known; it is loaded if time is left for what needs it."""
    seconds = budget.pace() * (_LOADED if backbone is not None or "timm" in sys.modules else _LOADING) + GUESS
    if seconds > budget.left():
        budget.skip("what needs the network", f"to load and use it would take about {duration(seconds)}", seconds)
        return None, [], "the network was not loaded, as the budget is too small"
    network, layers, why_not = None, list[str](), ""
    progress.start("load the network", None, "items")
    try:
        network = backbone_for(recipe, backbone)
        layers = block_layers(network)
    except FeatcacheError as error:
        why_not = " ".join(str(error).split())
    progress.finish()
    return network, layers, why_not
