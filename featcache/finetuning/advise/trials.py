"""What fits the time budget: heads on frozen vectors, and short trials of partial and full fine-tuning."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from featcache.backbones.split import split_points
from featcache.core.progress import Budget, Deadline, Progress, Silent, duration
from featcache.finetuning import cells, config
from featcache.finetuning.advise import measure
from featcache.finetuning.advise.choose import ALL_BLOCKS, FROM, SCRATCH, Compared, Outcome, kind_of
from featcache.finetuning.advise.measure import Fold
from featcache.finetuning.cells import Cell
from featcache.finetuning.finetune import VIEWS
from featcache.store import FeatureStore
from featcache.training.activations import SAFETY, StoredItems

if TYPE_CHECKING:
    from featcache.training.dataset import FeatureDataset

Run = Callable[[Fold], Outcome]
Timed = tuple[Cell, float]  # a way of fine-tuning, and the seconds of an epoch per training item
CONFIGS = {FROM: config.PRETRAINED, "finetune": config.PRETRAINED, SCRATCH: config.SCRATCH}
FEWEST = {FROM: 5, "finetune": 3, SCRATCH: 15}
"""Of each kind of fine-tuning the whole training, and the epochs below which a trial would say nothing of it."""
_MLP_FLOPS, _FLOPS_PER_SECOND = 6 * 20 * 512, 2e10
"""Of the head ``mlp`` per vector, input and class: 20 epochs, 512 hidden units; and what small products reach."""
SPEED, GUESS, _SPLIT_POINTS = "speed of extraction", 12.0, 2
"""A part; seconds to measure a speed before anything is known; and how many of the last blocks are tried."""


def tried(
    candidates: Mapping[str, tuple[float, Run]], folds: Sequence[Fold], at: Iterable[int], budget: Budget
) -> dict[str, Outcome]:
    """The answers to the folds *at*; *candidates* have the seconds of the first fold, and what answers a fold."""
    running, found = dict(candidates), dict[str, Outcome]()
    for number in at:
        for name, (seconds, run) in list(running.items()):
            part = f"{name}, fold {number + 1} of {len(folds)}"
            outcome = budget.run(part, seconds, partial(run, folds[number]))
            if outcome is None:
                del running[name]
            else:
                found[name] = outcome if name not in found else found[name].joined(outcome)
                running[name] = 1.1 * found[name].seconds / found[name].fits, run
    return found


def linear_probe(
    items: FeatureDataset, folds: Sequence[Fold], seed: int, budget: Budget, progress: Progress
) -> tuple[Outcome, float]:
    """The answers of the softmax on ``pooled``, to which all is compared: one fold in any case, the others in time.

    Returns:
        The answers, and the seconds of the first fold.
    """
    run = partial(measure.answer, "softmax", items, "softmax", seed)
    first = budget.run("softmax, fold 1", None, partial(run, progress, folds[0]))
    assert first is not None  # without an estimate what fails is raised
    watched = Deadline(budget.left, progress)
    others = tried({"softmax": (1.1 * first.seconds, partial(run, watched))}, folds, range(1, len(folds)), budget)
    return first.joined(others["softmax"]) if others else first, first.seconds


def provide(
    what: str, layers: Sequence[str], views: int, stored: StoredItems, budget: Budget, progress: Progress
) -> bool:
    """Whether these layers are in the store, after an extraction where that fits; else the reason is noted."""
    if stored.backbone is None and not stored.has(layers):
        budget.skip(what, stored.why_not)
        return False
    seconds = stored.seconds(layers, views)
    if seconds is None:
        why = next((part["reason"] for part in budget.parts if part["name"] == SPEED), None)
        budget.skip(what, f"its layers are not stored, and how long that takes is not known: {why}")
    if not seconds:
        return seconds is not None
    watched = Deadline(budget.left, progress)
    return budget.run(f"{what}, extraction", seconds, lambda: stored.extract(layers, views, watched)) is not None


def cost(name: str, seconds: float | None, room: int | None, how: str) -> dict[str, Any]:
    """What a strategy costs on all training items: seconds at most, bytes in the store, and how that is known."""
    return {"strategy": name, "seconds": seconds, "bytes": room, "how": how}


def try_heads(
    stored: StoredItems,
    layers: Sequence[str],
    folds: Sequence[Fold],
    whole: Outcome,
    budget: Budget,
    progress: Progress,
) -> tuple[dict[str, Outcome], list[dict[str, Any]]]:
    """The heads on frozen vectors within the budget, and their cost; *whole* is the softmax on ``pooled``."""
    items, found, watched = stored.items, {whole.name: whole}, Deadline(budget.left, progress)
    softmax, n = whole.seconds / whole.fits, len(items.y)
    mlp = _MLP_FLOPS * whole.learned * (sum(items.widths) + len(set(items.y.tolist()))) / _FLOPS_PER_SECOND
    candidates, room = {"knn": (items, softmax), "mlp": (items, mlp)}, 0
    guesses: dict[str, float | None] = {ALL_BLOCKS: None, "knn": softmax, "mlp": mlp}
    if len(layers) == 1:
        budget.skip(ALL_BLOCKS, stored.why_not or "the network has no blocks")
    elif provide(ALL_BLOCKS, layers, 1, stored, budget, progress):
        blocks = stored.select(layers)
        fold_seconds = guesses[ALL_BLOCKS] = measure.probe_seconds(whole, items, [sum(blocks.widths)]) / len(folds)
        candidates = {ALL_BLOCKS: (blocks, fold_seconds), **candidates}
    elif (storing := stored.seconds(layers, 1)) is not None:
        guesses[ALL_BLOCKS], room = storing * whole.learned / n + 3 * softmax, stored.missing(layers)[1]
    for name, (dataset, estimate) in candidates.items():
        run = partial(measure.answer, name, dataset.in_memory(), name.partition(" ")[0], stored.seed, watched)
        found |= tried({name: (estimate, run)}, folds, range(len(folds)), budget)
    costs = []
    for name, guess in {whole.name: softmax, **guesses}.items():
        one = found.get(name)
        per_fold = guess if one is None else one.seconds / one.fits
        how = "estimated" if one is None else f"measured: {one.fits} fits"
        total = None if per_fold is None else per_fold * n / (one or whole).learned
        costs.append(cost(name, total, room if one is None and name == ALL_BLOCKS else 0, how))
    return found, costs


def try_depth(
    stored: StoredItems,
    layers: Sequence[str],
    folds: Sequence[Fold],
    whole: Outcome,
    budget: Budget,
    progress: Progress,
) -> tuple[dict[str, Any] | None, Compared | None]:
    """Accuracy by depth, see `measure.depth_report`; None where it was not measured; as `try_heads`."""
    what, several = "accuracy by depth", len(stored.items.views) > 1
    blocks, depths = measure.probed_blocks([layer for layer in layers if layer != "pooled"])
    if not blocks:
        budget.skip(what, stored.why_not or "the network has no blocks")
    if not blocks or not provide(what, layers, 1, stored, budget, progress):
        return None, None
    # Blocks have no other views, so they are compared with what pooled gives without them.
    probed = {layer: stored.select([layer]) for layer in [*blocks, *(["pooled"] if several else [])]}

    def measured() -> tuple[dict[str, Any], Compared | None]:
        watched = Deadline(budget.left, progress)
        outcomes = [
            measure.cross_validate(f"softmax on {layer}", dataset.in_memory(), folds, stored.seed, watched)
            for layer, dataset in probed.items()
        ] + ([] if several else [whole])
        return measure.depth_report([*blocks, "pooled"], [*depths, 1.0], outcomes, stored.items.groups, stored.seed)

    widths = [sum(dataset.widths) for dataset in probed.values()]
    return budget.run(what, measure.probe_seconds(whole, stored.items, widths), measured) or (None, None)


def try_finetuning(
    stored: StoredItems,
    layers: Sequence[str],
    folds: Sequence[Fold],
    whole: Outcome,
    budget: Budget,
    progress: Progress,
) -> tuple[dict[str, Outcome], list[dict[str, Any]]]:
    """Short trials of partial and full fine-tuning as far as the budget goes, and the cost of each; as `try_heads`."""
    timed, output = _timed(stored, layers, budget), whole.seconds / whole.fits
    found, begun, costs = dict[str, Outcome](), dict[str, tuple[float, Run]](), []
    for name in timed:
        trial = _trial(name, timed, whole, stored, budget, progress)
        if trial is not None and (first := tried({name: trial}, folds, [0], budget)):
            found |= first
            begun[name] = 1.1 * first[name].seconds, trial[1]
    for name, outcome in tried(begun, folds, range(1, len(folds)), budget).items():
        found[name] = found[name].joined(outcome)
    for name, (cell, epoch) in timed.items():
        epochs, wanted = CONFIGS[kind_of(name)].epochs, [cell.cached] if cell.cached else []
        # The last layer is fitted before the training, and again where that is kept.
        seconds = epochs * epoch * len(stored.items.y) + (0 if name == SCRATCH else 2 * output)
        storing = stored.seconds(wanted, VIEWS) if wanted else 0.0
        room = stored.missing(wanted, VIEWS)[1] if wanted else 0
        how = f"{epochs} epochs at most, {1000 * epoch:.3g} ms per image and epoch, measured"
        costs.append(cost(name, None if storing is None else seconds + storing, room, how))
    known = {kind_of(name) for name in timed}
    return found, costs + [cost(kind, None, None, "not known") for kind in CONFIGS if kind not in known]


def _timed(stored: StoredItems, layers: Sequence[str], budget: Budget) -> dict[str, Timed]:
    """Ways of fine-tuning by name, those that train least first, with the seconds of an epoch per training item."""
    backbone = stored.backbone
    if backbone is None:
        for kind in CONFIGS:
            budget.skip(kind, stored.why_not)
        return {}

    def timed(kind: str, make: Callable[[], Cell]) -> Timed:
        cell = make()
        watched = Deadline(budget.left, Silent())
        return cell, SAFETY * cell.seconds(stored.items, replace(CONFIGS[kind], seed=stored.seed), watched)

    points = budget.run("split points of the network", GUESS, lambda: split_points(backbone.network)) or []
    blocks, store = {layer.rpartition(":")[0] for layer in layers}, FeatureStore.open(stored.path)
    points = [point for point in points if point in blocks] or points
    full = partial(cells.full_cell, backbone, store=store)
    ways = {
        f"{FROM} {layer}": partial(cells.partial_cell, backbone, layer, stored)
        for layer in points[: -_SPLIT_POINTS - 1 : -1]
    }
    ways["finetune"] = partial(full, init="pretrained")
    found = dict[str, Timed]()
    for name, make in ways.items():
        one = budget.run(f"speed of {name}", GUESS, partial(timed, kind_of(name), make))
        found |= {} if one is None else {name: one}
    if backbone.is_custom:
        budget.skip(SCRATCH, f"only the code of {backbone.name} knows how its weights are initialized")
    elif "finetune" in found:
        found[SCRATCH] = full(init="scratch"), found["finetune"][1]
    return found


def _trial(
    name: str, timed: dict[str, Timed], whole: Outcome, stored: StoredItems, budget: Budget, progress: Progress
) -> tuple[float, Run] | None:
    """A trial and its seconds, its activations stored and its epochs decided; None where it does not fit."""
    (cell, speed), whole_run, fewest = timed[name], CONFIGS[kind_of(name)], FEWEST[kind_of(name)]
    epoch, output = speed * whole.learned, whole.seconds / whole.fits
    views, storing = VIEWS, 0.0
    for views in (VIEWS, 1) if cell.cached else ():  # views of the images help, but are not needed
        storing = stored.seconds([cell.cached or ""], views) or 0.0
        if storing + fewest * epoch + output <= budget.left():
            break
    if (wanted := storing + fewest * epoch + output) > budget.left():
        budget.skip(name, f"{fewest} epochs on one fold would take about {duration(wanted)}", wanted)
        return None
    if cell.cached and not provide(name, [cell.cached], views, stored, budget, progress):
        return None
    # Half of what is left, so that the other strategies have their turn.
    epochs = min(whole_run.epochs, max(fewest, int(budget.left() / 2 / epoch)))
    short = epochs if epochs < whole_run.epochs else None
    notes = [] if short is None else [f"a trial of {epochs} epochs at most, of {whole_run.epochs}"]
    notes += [] if views == VIEWS else ["trained on the images as they are, without augmented views"]

    def run(fold: Fold) -> Outcome:
        began, trained = time.monotonic(), replace(whole_run, epochs=epochs, seed=stored.seed)
        right, losses, spent = cell.answer(stored.items, fold, trained, views, Deadline(budget.left, progress))
        timed[name], seconds, note = (cell, spent), time.monotonic() - began, "; ".join(notes) or None
        return Outcome(name, fold[1], right, losses, len(fold[0]), seconds, note=note, shortened=short)

    return epochs * epoch + output, run
