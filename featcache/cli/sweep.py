"""``featcache sweep``: heads × layers in one command."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featcache.cli import output
from featcache.cli.command import Answer, Debug, Force, Json, command
from featcache.cli.options import (
    StorePath,
    WeightsOfBlocks,
    check_savable,
    layer_list,
    network_for,
    repeated,
    selects,
)
from featcache.cli.train import quoted, tell_unlabeled, warn_of_little, warn_of_near_duplicates, with_interval
from featcache.core.errors import GridEdgeWarning
from featcache.core.outputs import HEAD

if TYPE_CHECKING:
    from featcache.training.sweep_report import SweepReport


@command(interrupted="What was finished is kept; the same command goes on from there.", writes={"target": HEAD})
@selects(split="The split to train on; train by default, if the source has splits.")
def sweep(
    context: typer.Context,
    store: StorePath,
    selection: Mapping[str, Any],
    target: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="HEAD.fch", help="Save the winner as this head.")
    ] = None,
    heads: Annotated[
        str | None,
        typer.Option(
            metavar="H,H,…",
            help="Heads separated by commas, as of `train --head`; softmax,ridge,centroid,knn by default.",
        ),
    ] = None,
    layers: Annotated[
        list[str] | None,
        typer.Option(
            "--layers",
            metavar="SET ...",
            help="Layer sets, each one word: a layer, several joined by +, or a glob in quotes. Several may follow one"
            " --layers. By default every stored layer alone and all together.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Random seed.")] = 0,
    weights: WeightsOfBlocks = None,
    force: Force = False,
    as_json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Score heads on layers, choose the best pair, and score it on items that took no part in the choice.

    For one label per image; with several use `featcache train --task multilabel`. Results of earlier sweeps are
    reused. Table and figure are kept in STORE/runs.

    Example: featcache sweep pets.fcache -o pets.fch

    Example: featcache sweep pets.fcache --heads ridge,knn --layers pooled pooled+blocks.4:mean
    """
    from featcache.heads import split_heads
    from featcache.training.sweep import sweep as run

    named = None if heads is None else split_heads(heads)
    if target is not None:
        check_savable(named or ())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GridEdgeWarning)  # the report has that of the winner
        report = run(
            store,
            named,
            layer_list(context, layers) or None,
            seed=seed,
            backbone=network_for(store, selection, weights),
            progress=True,
            **selection,
        )
    if target is not None:
        report.bundle.save(target, force=force)
    data = report.to_dict()
    data["paths"] = {**report.paths, "head": None if target is None else str(target)}
    space = next((one["space"][:12] for one in report.spaces if one["chosen"]), selection["space"])
    chosen = {**selection, "space": space, "seed": seed or None}
    following = repeated(chosen)
    return Answer(data, lambda: _show(report, target, following))


def _show(report: SweepReport, target: Path | None, following: Sequence[str]) -> None:
    """Print the report; *following* are options to repeat in the next command."""
    from featcache.training.sweep_report import called

    output.say_spaces(report.spaces)
    scored = [cell for cell in report.cells if cell.problem is None]
    output.table(
        ["head", "layers", "accuracy, %", "log-loss", "time"],
        [
            (
                cell.head,
                called(cell.layers),
                _short(cell.accuracy, cell.low, cell.high),
                "–" if cell.log_loss is None else f"{cell.log_loss:.3f}",
                "known" if cell.reused else output.span(cell.seconds or 0.0),
            )
            for cell in scored
        ],
        right=["accuracy, %", "log-loss", "time"],
    )
    for cell in report.cells:
        if cell.problem is not None:
            output.say(f"No score for {cell.head} on {called(cell.layers)}: {cell.problem}")
    if report.folds:
        output.say(f"Out-of-fold scores, {report.folds} folds on {report.n:,} items; the least log-loss wins.")
        output.say("In brackets: 95 % interval.")
    if report.left_out:
        output.say(f"Left out of the choice, with one independent image each: {quoted(report.left_out)}")
    score, winner = report.score, report.winner
    output.say()
    output.say(f"Winner: {winner['head']} on {' + '.join(winner['layers'])}")
    output.say(f"Accuracy on items that took no part: {with_interval(score)}")
    output.say(f"  {'on ' if score['n'] else ''}{score['protocol']}")
    warn_of_little(report.bundle.report["unscored"], score["n"])
    tell_unlabeled(report.bundle.report)
    warn_of_near_duplicates(report.near_duplicates)
    if report.bundle.report.get("grid_note"):
        output.say(f"Warning: {report.bundle.report['grid_note']}")
    for name, path in report.paths.items():
        if path is not None:
            output.say(f"{name.upper() if name == 'json' else name.capitalize()}: {path}")
    if target is None:
        words = ["featcache", "train", report.store, "-o", "HEAD.fch", "--head", winner["head"], *following]
        output.say(f"Next:  {output.command(*words, '--layers', *winner['layers'])}")
    else:
        output.say(f"Saved: {target}")


def _short(accuracy: float | None, low: float | None, high: float | None) -> str:
    """``91.7 (87.4–95.0)``: in few columns, so that the table fits a screen of 80."""
    if accuracy is None:
        return "–"
    return f"{100 * accuracy:.1f}" + ("" if low is None or high is None else f" ({100 * low:.1f}–{100 * high:.1f})")
