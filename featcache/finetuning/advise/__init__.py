"""`advise`: which strategy suits these images, by measurement on the training items."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

import numpy as np
import torch

from featcache.core import progress as bars
from featcache.core.arguments import checked
from featcache.core.errors import UsageError
from featcache.finetuning.advise.choose import ORDER, cheapest_first, compare, kind_of, recommend
from featcache.finetuning.advise.measure import curve_seconds, learning_curve
from featcache.finetuning.advise.prepare import least, near_duplicates_in_time, network_in_time, probe_seconds
from featcache.finetuning.advise.report import FOLDS, Advice, about_items, command, draw_advice, reasons
from featcache.finetuning.advise.trials import SPEED, linear_probe, try_depth, try_finetuning, try_heads
from featcache.store import FeatureStore
from featcache.training.activations import StoredItems, extraction_rate
from featcache.training.dataset import FeatureDataset
from featcache.training.holdout import check_classes, divide, held_out
from featcache.training.label_notes import note_incomplete, note_labels
from featcache.training.leakage import folds_without_leakage
from featcache.training.own_splits import split_rows, without_splits
from featcache.training.selection import Selection, SelectionOptions
from featcache.training.spaces import choose_space

if TYPE_CHECKING:
    from featcache.backbones import Backbone
    from featcache.core.progress import Progress

__all__ = ["Advice", "advise", "draw_advice"]


@checked
def advise(
    store: str | Path | FeatureStore,
    *,
    budget: float | str = 600.0,
    seed: int = 0,
    backbone: Backbone | None = None,
    progress: Progress | bool | None = None,
    **selection: Unpack[SelectionOptions],
) -> Advice:
    """Measure which strategy suits these images, and recommend one.

    All is measured by cross-validation on the training items; the hold-out (or split ``test``) takes no part, so the
    score of what is trained afterwards is honest. First the linear probe on ``pooled`` and on all blocks, ``knn`` and
    ``mlp``; then the learning curve and the accuracy of each block; then short trials of partial and full fine-tuning.
    A part whose estimate does not fit what is left of the budget is not measured, and the reason is given; that holds
    for the search for near-duplicates and for loading the network too. Only the vectors are read and one linear probe
    is fitted in any case; `Advice.floor` says how long that took. Missing layers are extracted into the store.
    Of several spaces that *space* leaves open the best by ridge is taken.

    Args:
        store: a store with ``pooled`` vectors, or its path.
        budget: seconds, or a time such as ``"10m"``.
        seed: of all that is drawn.
        backbone: needed only where the vectors were made by a module given in Python, or with a file of weights that
            this machine has not seen.
        progress: as for `featcache.train`.
        **selection: as for `featcache.train`.

    Returns:
        An `Advice`; `draw_advice` draws it.

    Raises:
        UsageError: a budget that is not above 0, fewer than two classes, or one of a single independent item.
        MissingVectorsError: no labeled item has ``pooled`` vectors, or some lack a view that others have.

    Example:
        >>> advice = fc.advise("pets.fcache", budget=1)
        >>> advice.recommendation
        'softmax'
    """
    seconds = bars.seconds_of(budget) if isinstance(budget, str) else budget
    if not 0 < seconds < math.inf:
        raise UsageError(f"The budget is a number of seconds above 0, not {budget}.")
    return advise_within(bars.Budget(seconds), store, seed=seed, backbone=backbone, progress=progress, **selection)


def advise_within(
    time: bars.Budget,
    store: str | Path | FeatureStore,
    *,
    seed: int = 0,
    backbone: Backbone | None = None,
    progress: Progress | bool | None = None,
    **selection: Unpack[SelectionOptions],
) -> Advice:
    """`advise` within a budget that may have begun before; the other arguments are its."""
    time.failures += (torch.OutOfMemoryError,)
    opened = FeatureStore.open(store)
    with bars.choose(progress) as bar:
        select, spaces = choose_space(opened, Selection(**selection), seed, bar, time)
        chosen = opened.space(select.space)
        where = replace(select, split=None, space=chosen.fingerprint)
        dataset = FeatureDataset.from_store(opened, "pooled", where, views=True)
        note_incomplete(opened, dataset, bar)
        dataset.tell_labels(bar)
        check_classes(dataset)
        note_labels(dataset, bar)
        loose = without_splits(dataset)
        likely, compared = np.flatnonzero(loose & ~held_out(dataset, opened, seed)), np.flatnonzero(loose)
        if not loose.all():
            own = split_rows(dataset, select.split or "train")
            likely, compared = np.union1d(likely, own), np.union1d(compared, own)
        probe, before = probe_seconds(dataset, likely, FOLDS, time), time.spent()
        bar.note(least(time, before + probe))
        twins = near_duplicates_in_time(dataset, compared, seed, probe, time, bar)
        sides = divide(dataset, select.split, seed, opened, bar, grouped=twins)
        train_rows = sides.train_rows
        items, folds, rare, near = folds_without_leakage(sides.dataset, train_rows, twins, FOLDS, seed)
        units, where = items.groups, replace(where, source=opened.source_names(where.source))
        whole, first = linear_probe(items, folds, seed, time, bar)
        measured = folds[: whole.fits]  # fewer where the budget is spent by then
        network, layers, why_not = network_in_time(chosen.recipe, backbone, time, bar)
        layers = layers or [*(name for name in chosen.layers if name.endswith(":mean_std")), "pooled"]

        @cache
        def rate() -> tuple[float, float] | None:
            assert network is not None  # else nothing is missing
            watched = bars.Deadline(time.left, bars.Silent())
            measure = partial(extraction_rate, opened, network, layers, items.items[0].source, watched)
            return time.run(SPEED, 15.0, measure)

        stored = StoredItems(opened.path, items, where, seed, network, why_not, rate)
        outcomes, costs = try_heads(stored, layers, measured, whole, time, bar)
        drawn = partial(learning_curve, whole, items, measured, seed, bars.Deadline(time.left, bar))
        curve = time.run("learning curve", curve_seconds(whole), drawn) or [whole]
        depth, late = try_depth(stored, layers, measured, whole, time, bar)
        tuned, more_costs = try_finetuning(stored, layers, measured, whole, time, bar)
        bar.finish()
    outcomes = {name: (outcomes | tuned)[name] for name in cheapest_first(outcomes | tuned)}
    choice = recommend(outcomes, units, seed)
    more_data = compare(curve[-1], curve[-2], units, seed=seed) if len(curve) > 1 else None
    told = reasons(choice, outcomes, more_data, depth, late)
    given = {**selection, "space": select.space, "seed": seed or None}
    in_python = network is not None and network.is_custom
    named = layers if network is None or in_python else []
    return Advice(
        store=str(opened.path), backbone=chosen.recipe.backbone, classes=sorted(set(items.y.tolist())),
        items=len(train_rows), units=len(np.unique(units)), held_out=len(sides.test_rows),
        folds=len(folds), views=list(items.views), rare_classes=rare, near_duplicates=near,
        seed=seed, budget=time.seconds, floor=before + first, seconds=time.spent(),
        learning_curve=[outcome.to_dict(units, seed) for outcome in curve],
        more_data=None if more_data is None else more_data.to_dict(), depth=depth,
        spaces=[space.to_dict() for space in spaces],
        strategies=[outcome.to_dict(units, seed) for outcome in outcomes.values()],
        comparisons=[found.to_dict() for found in choice.comparisons],
        costs=sorted(costs + more_costs, key=lambda cost: ORDER.index(kind_of(cost["strategy"]))), parts=time.parts,
        recommendation=choice.name, runner_up=None if choice.second is None else choice.second.a,
        reasons=told + about_items(len(folds), len(items.views), rare, near),
        command=command(choice.name, str(opened.path), given, named, in_python=in_python),
    )  # fmt: skip
