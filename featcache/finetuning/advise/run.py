"""`advise`: the measurements in order, cheapest first, and what follows from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from featcache.core.errors import FeatcacheError, UsageError
from featcache.core.progress import Progress, choose
from featcache.extraction.embed import backbone_for
from featcache.finetuning.advise import words
from featcache.finetuning.advise.budget import Budget, Deadline, seconds_of
from featcache.finetuning.advise.costs import Cost
from featcache.finetuning.advise.frozen import frozen_costs, measured_curve, measured_depth, measured_heads
from featcache.finetuning.advise.learning_items import learning_items
from featcache.finetuning.advise.outcome import Compared, Outcome, compare, plain
from featcache.finetuning.advise.probes import probe
from featcache.finetuning.advise.report import Advice
from featcache.finetuning.advise.rule import ORDER, base_of, cheapest_first, confidence_for, recommend
from featcache.finetuning.advise.situation import Situation
from featcache.finetuning.advise.trials import tried
from featcache.store import FeatureStore
from featcache.training.all_blocks import block_layers
from featcache.training.dataset import FeatureDataset, Selection
from featcache.training.holdout import check_classes, train_test_split

if TYPE_CHECKING:
    from featcache.backbones import Backbone

BUDGET = 600.0


def advise(
    store: str | Path,
    *,
    budget: float | str = BUDGET,
    source: str | None = None,
    space: str | None = None,
    labels: str | Path | None = None,
    seed: int = 0,
    backbone: Backbone | None = None,
    progress: Progress | bool | None = None,
) -> Advice:
    """Measure which strategy suits these images, and recommend one.

    All is measured by cross-validation on the items to learn from; the hold-out (or split ``test``) of the store takes
    no part, so that the score of what is trained afterwards is honest. What decides comes first: the head
    ``softmax`` on ``pooled``, on all blocks together, ``knn``, ``mlp``; then a learning curve and the accuracy of each
    block; then short trials of partial fine-tuning from the last blocks and of full fine-tuning.

    Heads on ``pooled`` learn from all of its stored
    views, as `featcache.train` does; blocks, alone or together, from view 0, as with ``layers="all-blocks"``. A part
    whose estimate does not fit what is left of the budget is left out with the reason; only the first softmax is always
    measured. Layers and activations that are missing are extracted into the store, where its images are still there,
    and serve what is trained afterwards.
    How the recommendation follows is said in `featcache.finetuning.advise.rule`.

    Args:
        store: a store with ``pooled`` vectors.
        budget: seconds, or a time such as ``"10m"``.
        source: which source, where the store has several.
        space: which space, where the store has several.
        labels: a CSV file (``path,label``) whose labels take the place of the stored ones.
        seed: of the hold-out, the folds, the heads, the trainings and the bootstrap.
        backbone: needed only where the vectors were made by a module given in Python.
        progress: as for `featcache.train`.

    Returns:
        An `Advice`; `featcache.finetuning.advise.figure.draw_advice` draws it.

    Raises:
        UsageError: a budget that is not above 0, fewer than two classes, or one of a single independent item.
        MissingVectorsError: no labelled item has ``pooled`` vectors, or some lack a view that others have.
    """
    budget = seconds_of(budget) if isinstance(budget, str) else budget
    if not 0 < budget < math.inf:
        raise UsageError(f"The budget is a number of seconds above 0, not {budget}.")
    time = Budget(budget)
    path = Path(store)
    opened = FeatureStore.open(path)
    chosen = opened.space(space)
    with choose(progress) as shown:
        dataset = FeatureDataset.from_store(
            opened, "pooled", Selection(source, chosen.fingerprint, labels=labels), views=True
        )
        check_classes(dataset)
        train_rows, held_out, _ = train_test_split(dataset, None, seed, opened, shown)
        items = learning_items(dataset, train_rows, seed, shown)
        whole = time.run("softmax", None, lambda: probe("softmax", items.dataset, items.folds, "softmax", seed, shown))
        assert whole is not None
        shown.start("load the network", None, "items")
        network, why_not = _network(opened, chosen.fingerprint, backbone)
        stored = [name for name in chosen.layers if name.endswith(":mean_std")]
        layers = [*stored, "pooled"]
        if network is not None:
            try:
                layers = block_layers(network)
            except FeatcacheError as error:
                why_not = str(error)
        shown.finish()
        at = Situation(
            path, chosen.fingerprint, dataset.items[0].source, labels, seed, network, why_not, items, time, shown,
            Deadline(time, shown),
            whole, layers,
        )  # fmt: skip
        heads = [whole, *measured_heads(at)]
        curve = measured_curve(at)
        depth = measured_depth(at)
        trials, costs = tried(at)
        outcomes = heads + trials
        costs = [*frozen_costs(at, heads), *costs]
        shown.finish()
    units = items.dataset.groups
    by_name = {outcome.name: outcome for outcome in outcomes}
    names = cheapest_first(list(by_name))

    @cache
    def compared(a: str, b: str) -> Compared | None:
        confidence = confidence_for(len(names))
        return compare(by_name[a], by_name[b], units, confidence=confidence, seed=seed)

    made: dict[frozenset[str], Compared] = {}

    def noted(a: str, b: str) -> Compared | None:
        found = compared(a, b)
        if found is not None:
            made.setdefault(frozenset((a, b)), found)
        return found

    choice = recommend(names, noted, base_of(by_name))
    more = compare(curve[-1], curve[-2], units, seed=seed) if len(curve) > 1 else None
    comparisons = list(made.values())
    given = {"source": source, "space": space, "labels": labels, "seed": seed or None}
    return Advice(
        store=str(store),
        backbone=chosen.recipe.backbone,
        classes=sorted(set(items.dataset.y.tolist())),
        items=len(train_rows),
        units=len(np.unique(units)),
        held_out=len(held_out),
        folds=len(items.folds),
        views=list(dataset.views),
        rare_classes=items.rare,
        near_duplicates=items.near_duplicates,
        seed=seed,
        budget=budget,
        seconds=time.spent,
        learning_curve=[_point(outcome, units, seed) for outcome in curve],
        more_data=None if more is None else more.to_dict(),
        depth=None if depth is None else depth.to_dict(units, seed),
        strategies=[by_name[name].to_dict(units, seed) for name in names],
        comparisons=[found.to_dict() for found in comparisons],
        costs=[cost.to_dict() for cost in _sorted(costs)],
        parts=[part.to_dict() for part in time.parts],
        recommendation=choice.name,
        runner_up=choice.runner_up,
        reasons=[
            *words.reasons(choice, names, comparisons, more, depth, {name: by_name[name] for name in names}),
            *words.of_items(items),
        ],
        command=words.command(
            choice.name,
            str(store),
            given,
            [] if network is not None else layers,
            several_views=any(len(chosen.layers[name].views) > 1 for name in layers if name in chosen.layers),
            in_python=network is not None and network.is_custom,
        ),
    )


def _network(store: FeatureStore, space: str, backbone: Backbone | None) -> tuple[Backbone | None, str]:
    """The network of a space, or why it cannot be had."""
    try:
        return backbone_for(store.space(space).recipe, backbone), ""
    except FeatcacheError as error:
        return None, " ".join(str(error).split())


def _point(outcome: Outcome, units: np.ndarray, seed: int) -> dict[str, object]:
    return {
        "learned": outcome.learned,
        "accuracy": plain(outcome.accuracy(units, seed)),
        "log_loss": plain(outcome.log_loss(units, seed)),
        "seconds": outcome.seconds,
    }


def _sorted(costs: Sequence[Cost]) -> list[Cost]:
    return sorted(costs, key=lambda cost: ORDER.index(cost.strategy.partition(" ")[0]))
