"""``featcache demo``: the first thing to run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featcache.cli import output as screen
from featcache.cli.command import Answer, Debug, Json, verb

if TYPE_CHECKING:
    from featcache.cli.demo import DemoReport


@verb(interrupted="What was computed is kept as far as it was sealed; featcache demo goes on from there.")
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder for the store and the heads.")] = Path(
        "data/demo"
    ),
    as_json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Show the whole way on 2,000 pictures that pip installed: extract, train twice, evaluate, predict.

    Example: featcache demo
    """
    from featcache.cli.demo import run

    report = run(output, progress=True)
    return Answer(report.to_dict(), lambda: _show(report))


def _show(report: DemoReport) -> None:
    if report.computed:
        rate = f"{report.computed:,} computed in {screen.span(report.extract_seconds)}"
    else:
        rate = f"all in the store already, looked up in {screen.span(report.extract_seconds)}"
    screen.say(f"\n{report.images:,} pictures of textiles in 3 classes, {report.held_out:,} of them held out")
    screen.say(f"  {rate}\n")
    screen.table(
        ["head", "accuracy", "95 % interval", "balanced", "trained in"],
        [
            (
                head.head,
                screen.percent(head.accuracy),
                f"{screen.percent(head.low)} – {screen.percent(head.high)}",
                screen.percent(head.balanced_accuracy),
                screen.span(head.seconds),
            )
            for head in report.heads
        ],
        right=["accuracy", "95 % interval", "balanced", "trained in"],
    )
    if report.faster is None:
        screen.say("Both heads were trained on stored vectors; with a new --output all is timed again.\n")
    else:
        second = report.heads[1]
        screen.say(f"Second head, from the store: {screen.span(second.seconds)}")
        screen.say(
            f"It would have taken {screen.span(report.extract_seconds + second.seconds)} with the backbone: "
            f"{report.faster:.0f} times faster\n"
        )
    screen.table(
        ["held-out picture", "is", "the first head says", "probability"],
        [(a.uri, a.truth, a.label, screen.percent(a.probability)) for a in report.answers],
        right=["probability"],
    )
    screen.say("Written:")
    screen.say(f"  store  {report.store}")
    for head in report.heads:
        screen.say(f"  head   {head.path}")
    screen.say(f"All of it took {screen.span(report.seconds)}.")
    screen.say(f"Next:  {screen.command('featcache', 'predict', report.heads[0].path, 'IMAGE')}")
