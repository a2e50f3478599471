"""``featcache advise``: which strategy suits these images, by measurement."""

from __future__ import annotations

import math
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featcache.cli import screen
from featcache.cli.conduct import Answer, Debug, Json, verb
from featcache.cli.options import Labels, Source, Space
from featcache.errors import UsageError

if TYPE_CHECKING:
    from featcache.strategies.advise import Advice

_UNITS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600}


@verb(interrupted="Layers that were extracted stay in the store.")
def advise(
    store: Annotated[
        Path, typer.Argument(metavar="STORE|SOURCE", help="A store; or images, which -o says where to extract into.")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="STORE", help="Extract SOURCE into this store first.")
    ] = None,
    budget: Annotated[str, typer.Option(metavar="10m", help="Time to measure, such as 90s, 10m or 2h.")] = "10m",
    figure: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw learning curve, depth, and all strategies.")
    ] = None,
    labels: Labels = None,
    source: Source = None,
    space: Space = None,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Seed of all that is drawn.")] = 0,
    as_json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Measure which strategy suits these images, and recommend one.

    Nothing is taken from the hold-out. What does not fit the budget is left out, and said. Blocks and activations that
    are missing are extracted into the store, where its images are still there. Of a SOURCE all blocks are extracted
    first, in the time of the budget.

    Example: featcache advise pets.fcache --budget 10m --figure advice.png
    """
    from featcache.errors import NotAStoreError
    from featcache.evaluation.figures import check_png
    from featcache.store import FeatureStore
    from featcache.strategies.advise import advise as run
    from featcache.strategies.advise.figure import draw_advice

    seconds = seconds_of(budget)
    if figure is not None:
        check_png(figure)
    if output is not None:
        began = time.monotonic()
        _extract(store, output, labels)
        store, seconds = output, max(1.0, seconds - (time.monotonic() - began))
    else:
        try:
            FeatureStore.open(store)
        except NotAStoreError as error:
            if not store.exists():
                raise
            raise UsageError(f"{error} Or are these images? Then say where to: -o {store.stem}.fcache.") from None
    found = run(store, budget=seconds, source=source, space=space, labels=labels, seed=seed, progress=True)
    if figure is not None:
        draw_advice(found, figure)
    return Answer({**found.to_dict(), "figure": None if figure is None else str(figure)}, lambda: _show(found, figure))


def _extract(source: Path, store: Path, labels: Path | None) -> None:
    from featcache.backbones import get
    from featcache.extraction import DEFAULT_BACKBONE, extract
    from featcache.strategies.block_layers import block_layers

    layers = block_layers(get(DEFAULT_BACKBONE))
    extract(source, store, layers=layers, labels=None if labels is None else "none", progress=True)


def seconds_of(text: str) -> float:
    """A time such as ``90``, ``90s``, ``10m`` or ``1.5h`` in seconds.

    Raises:
        UsageError: it is no such time, or not above 0.
    """
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(s|m|min|h)?\s*", text, flags=re.ASCII)
    seconds = math.nan if found is None else float(found[1]) * _UNITS[found[2] or ""]
    if not 0 < seconds < math.inf:
        raise UsageError(f"The budget is a time above 0 such as 90s, 10m or 2h, not {text!r}.")
    return seconds


def _show(advice: Advice, figure: Path | None) -> None:
    known = {outcome["name"]: outcome for outcome in advice.strategies}
    screen.table(
        ["strategy", "accuracy, %", "items", "time", "disk"],
        [
            (
                cost["strategy"],
                _accuracy(known.get(cost["strategy"])),
                f"{known[cost['strategy']]['items']:,}" if cost["strategy"] in known else "",
                "?" if cost["seconds"] is None else screen.span(cost["seconds"]),
                "?" if cost["bytes"] is None else screen.size(cost["bytes"]) if cost["bytes"] else "",
            )
            for cost in advice.costs
        ],
        right=["accuracy, %", "items", "time", "disk"],
    )
    screen.say(
        f"{advice.items:,} items outside the hold-out, {advice.folds} folds; in brackets 95 % intervals. Time and disk:"
    )
    screen.say("estimates for the whole training here, at most. Accuracies compare on equal items alone.")
    for part in advice.parts:
        if part["reason"] is not None:
            screen.say(f"Not measured: {part['name']}: {part['reason'].rstrip('.')}.")
    screen.say(f"\nRecommended: {advice.recommendation}")
    for reason in advice.reasons:
        screen.say(f"  {reason}")
    if figure is not None:
        screen.say(f"Figure: {figure}")
    screen.say(f"Next:  {advice.command}")


def _accuracy(outcome: dict[str, Any] | None) -> str:
    if outcome is None:
        return "not tried"
    accuracy = outcome["accuracy"]
    text = f"{100 * accuracy['value']:.1f}"
    if accuracy["low"] is None:
        return text
    return f"{text} ({100 * accuracy['low']:.1f}–{100 * accuracy['high']:.1f})"
