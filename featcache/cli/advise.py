"""``featcache advise``: which strategy suits these images, by measurement."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featcache.cli import output
from featcache.cli.command import Answer, Debug, Force, Json, command
from featcache.cli.options import Weights, backbone_of, network_for, selects
from featcache.core.errors import UsageError
from featcache.core.outputs import FIGURE

if TYPE_CHECKING:
    from featcache.backbones import Backbone
    from featcache.core.progress import Budget
    from featcache.finetuning.advise import Advice

_AROUND, _DRAWING = 0.7, 2.0
"""Seconds of processor time to start and end the command, and to draw the figure."""


@command(interrupted="Layers that were extracted stay in the store.", writes={"figure": FIGURE})
@selects(split="The split to train on; train by default, if the source has splits.")
def advise(
    store: Annotated[
        Path, typer.Argument(metavar="STORE|SOURCE", help="A store; or images, which -o says where to extract into.")
    ],
    selection: Mapping[str, Any],
    target: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="STORE", help="Extract SOURCE into this store first.")
    ] = None,
    budget: Annotated[str, typer.Option(metavar="10m", help="Time to measure, such as 90s, 10m or 2h.")] = "10m",
    figure: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw learning curve, depth, and all strategies.")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Random seed.")] = 0,
    weights: Weights = None,
    force: Force = False,
    as_json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Measure which strategy suits these images, and recommend one.

    The hold-out takes no part. The budget counts from the start of the command. What does not fit is not measured, and
    listed; only one linear probe always is, and if that alone takes longer, this is said. Missing blocks and
    activations are extracted into the store if its images are still there. With a SOURCE, sizes of the network's input
    are tried on some of its images, and all blocks are extracted at the one that suits them, which counts too. Of the
    spaces of a STORE the one that suits its images is taken.

    Example: featcache advise pets.fcache --budget 10m --figure advice.png
    """
    from featcache.core.progress import Budget, seconds_of

    # It begins here: imports take seconds, and an extraction minutes.
    time = Budget(seconds_of(budget), reserved=_AROUND + (0.0 if figure is None else _DRAWING))
    from featcache.core.errors import NotAStoreError
    from featcache.store import FeatureStore

    tried: list[dict[str, Any]] = []
    if target is not None:
        network, tried = _extract(store, target, selection, weights, seed, time)
        store = target
    else:
        try:
            opened = FeatureStore.open(store)
        except NotAStoreError as error:
            if not store.exists():
                raise
            raise UsageError(f"{error} If these are images, add -o {store.stem}.fcache.") from None
        opened.source_names(selection["source"])
        opened.space(selection["space"])
        network = network_for(store, selection, weights)
    from featcache.finetuning.advise import advise_within, draw_advice  # takes seconds

    found = advise_within(time, store, seed=seed, backbone=network, progress=True, **selection)
    if figure is not None:
        draw_advice(found, figure, force=force)
    found = dataclasses.replace(found, spaces=found.spaces or tried)
    return Answer({**found.to_dict(), "figure": None if figure is None else str(figure)}, lambda: _show(found, figure))


def _extract(
    source: Path, store: Path, selection: Mapping[str, Any], weights: Path | None, seed: int, time: Budget
) -> tuple[Backbone | None, list[dict[str, Any]]]:
    """Extract all blocks; a new store at the size of the input that suits the images.

    Returns:
        The network, if it has weights of its own, and how the sizes did.
    """
    from featcache.backbones import get
    from featcache.core.progress import choose
    from featcache.extraction.extract import DEFAULT_BACKBONE, extract
    from featcache.store.folder import has_catalogue
    from featcache.training.all_blocks import block_layers
    from featcache.training.input_sizes import try_input_sizes
    from featcache.training.spaces import SpaceScore

    network = None if weights is None else get(backbone_of(store), weights)
    labels = None if selection["labels_only"] is None else "none"
    sized, tried = network or get(DEFAULT_BACKBONE), list[SpaceScore]()
    layers = block_layers(sized)
    if not has_catalogue(store):
        with choose(True) as bar:
            sized, tried = try_input_sizes(
                source, sized, seconds=time.left() / 4, seed=seed, labels=labels, progress=bar
            )
        network = network and sized
    extract(source, store, backbone=sized if tried else network, layers=layers, labels=labels, progress=True)
    return network, [score.to_dict() for score in tried]


def _show(advice: Advice, figure: Path | None) -> None:
    output.say_spaces(advice.spaces)
    known = {outcome["name"]: outcome for outcome in advice.strategies}
    output.table(
        ["strategy", "accuracy, %", "items", "time", "disk"],
        [
            (
                cost["strategy"],
                _accuracy(known.get(cost["strategy"])),
                f"{known[cost['strategy']]['items']:,}" if cost["strategy"] in known else "",
                "?" if cost["seconds"] is None else output.span(cost["seconds"]),
                "?" if cost["bytes"] is None else output.size(cost["bytes"]) if cost["bytes"] else "",
            )
            for cost in advice.costs
        ],
        right=["accuracy, %", "items", "time", "disk"],
    )
    output.say(
        f"{advice.items:,} training items, {advice.folds} folds; 95 % intervals in brackets. Time and disk: about what"
    )
    output.say("the whole training takes on this machine. Compare accuracies on the same items only.")
    dear = [part for part in advice.parts if part["seconds"] is None and part["estimate"] is not None]
    if dear:
        listed = ", ".join(f"{part['name']} ({output.span(part['estimate'])})" for part in dear)
        enough = math.ceil((advice.seconds + sum(part["estimate"] for part in dear)) / 60)
        output.say(f"Not measured, as the budget is too small: {listed}. --budget {enough}m would be enough.")
    others: dict[str, list[str]] = {}
    for part in advice.parts:
        if part["reason"] is not None and part not in dear:
            others.setdefault(part["reason"].rstrip("."), []).append(part["name"])
    for reason, names in others.items():
        output.say(f"Not measured: {', '.join(names)}: {reason}.")
    if advice.floor > advice.budget:
        floor = output.span(advice.floor)
        output.say(f"To read the vectors and fit one linear probe took {floor}, so no smaller budget can be kept.")
    output.say()
    output.say(f"Recommended: {advice.recommendation}")
    for reason in advice.reasons:
        output.say(f"  {reason}")
    if figure is not None:
        output.say(f"Figure: {figure}")
    output.say(f"Next:  {advice.command}")


def _accuracy(outcome: dict[str, Any] | None) -> str:
    if outcome is None:
        return "not tried"
    accuracy = outcome["accuracy"]
    text = f"{100 * accuracy['value']:.1f}"
    if accuracy["low"] is None:
        return text
    return f"{text} ({100 * accuracy['low']:.1f}–{100 * accuracy['high']:.1f})"
