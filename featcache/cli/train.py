"""``featcache train``."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featcache.cli import output
from featcache.cli.command import Answer, Debug, Force, Json, command
from featcache.cli.options import (
    LayersOrBlocks,
    WeightsOfBlocks,
    check_savable,
    layer_list,
    network_for,
    selects,
)
from featcache.core.errors import GridEdgeWarning, UsageError
from featcache.core.outputs import HEAD
from featcache.core.progress import counted

if TYPE_CHECKING:
    pass

LISTED = 10
FEW, FEW_CALIBRATED = 10, 50
"""On fewer items than these a score, and a calibration error, is unreliable."""


@command(interrupted="No head was written.", writes={"target": HEAD})
@selects(split="The split to train on; train by default, if the source has splits.")
def train(
    context: typer.Context,
    store: Annotated[
        Path,
        typer.Argument(
            metavar="STORE|FILE",
            help="A store that `featcache extract` made, or a file .h5 or .npz with features and labels.",
        ),
    ],
    target: Annotated[Path, typer.Option("--output", "-o", metavar="HEAD.fch", help="The head to write.")],
    selection: Mapping[str, Any],
    head: Annotated[
        str | None,
        typer.Option(
            metavar="stack|softmax|ridge|knn|centroid|mlp|torch|MODULE:CLASS(…)",
            help="stack: ridge and softmax, on pooled and on all layers, as one matrix; the default on several layers."
            " softmax: multinomial logistic regression, C chosen by cross-validation; the default on one layer. ridge:"
            " ridge regression, in a second or two, also for caches larger than memory; knn: the nearest vectors vote;"
            " centroid: the nearest class mean; mlp: hidden layers (--hidden), for classes no line separates;"
            " torch: a softmax layer trained in mini-batches, for caches larger than memory; or any scikit-learn"
            ' classifier, for example "sklearn.svm:LinearSVC(C=0.1)"; linear ones can be saved.',
        ),
    ] = None,
    task: Annotated[
        str,
        typer.Option(
            metavar="classify|multilabel",
            help="classify: one label per image; multilabel: several, separated by | in the labels (| alone: none of"
            " them), each with its own probability. Only for the head softmax.",
        ),
    ] = "classify",
    layers: LayersOrBlocks = None,
    cv: Annotated[
        int | None, typer.Option(min=2, metavar="K", help="Score by K-fold cross-validation, not a hold-out.")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Random seed.")] = 0,
    refit_all: Annotated[
        bool, typer.Option("--refit-all", help="After scoring, train again on all images and save that head.")
    ] = False,
    class_weight: Annotated[
        str | None,
        typer.Option(
            metavar="balanced",
            help="balanced: all classes weigh the same. For the heads softmax and torch, and scikit-learn classifiers"
            " with that parameter.",
        ),
    ] = None,
    group_near_duplicates: Annotated[
        bool,
        typer.Option(
            "--group-near-duplicates",
            help="Keep near-duplicates (re-encoded, resized, cropped images) on one side of the source's own split"
            " and of each fold. Those of held-out images are left out in any case.",
        ),
    ] = False,
    views: Annotated[
        str,
        typer.Option(metavar="all|first", help="Train on all stored views, or on view 0 alone."),
    ] = "all",
    hidden: Annotated[
        str | None,
        typer.Option(metavar="N,N,…", help="Of --head mlp: widths of the hidden layers, separated by commas; 512."),
    ] = None,
    dropout: Annotated[
        float | None,
        typer.Option(metavar="P", help="Of --head mlp: fraction of the hidden values dropped in each step; 0.2."),
    ] = None,
    weights: WeightsOfBlocks = None,
    force: Force = False,
    as_json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Train a head on stored vectors, score it and save it.

    Without splits, about one image in five is held out for the score, the same for all heads of the store.

    Example: featcache train pets.fcache -o pets.fch
    """
    from featcache.heads import with_hidden_layers
    from featcache.training.train import train as run

    if class_weight not in (None, "balanced"):
        raise UsageError(f"--class-weight is 'balanced', not {class_weight!r}. Weights per class are given in Python.")
    if task == "classify":
        check_savable([head])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GridEdgeWarning)  # the report has it
        bundle = run(
            store,
            head if hidden is None and dropout is None else with_hidden_layers(head or "softmax", hidden, dropout),
            task=task,
            layers=layer_list(context, layers) or None,
            cv=cv,
            seed=seed,
            refit_all=refit_all,
            class_weight=class_weight,
            group_near_duplicates=group_near_duplicates,
            views=views,
            backbone=network_for(store, selection, weights),
            progress=True,
            **selection,
        )
    bundle.save(target, force=force)
    report = {**bundle.report, "path": str(target)}
    return Answer(report, lambda: show_train(report))


def show_train(report: dict[str, Any], *, chosen: str | None = None) -> None:
    """Show the report of a head that was trained and saved; *chosen* tells what was."""
    score = report["score"]
    output.say(f"Head: {report['head']}, {len(report['classes'])} classes, trained on {report['n']:,} items")
    if report["task"] == "multilabel":
        output.say(f"Mean average precision: {with_interval(score, 'mean_average_precision')}")
    else:
        output.say(f"Accuracy: {with_interval(score)}")
    output.say(f"  {'on ' if score['n'] else ''}{score['protocol']}")
    warn_of_little(report["unscored"], score["n"])
    tell_unlabeled(report)
    if report["chosen"]:
        output.say(f"Chosen: {chosen if chosen is not None else _chosen(report)}")
    _show_members(report)
    if report.get("grid_note"):
        output.say(f"Warning: {report['grid_note']}")
    if report.get("converged") is False:
        output.say("Warning: the fit stopped before it converged.")
    calibration = report["calibration"]
    if calibration is not None and score["n"]:
        before, after = (output.percent(calibration[f"ece_{when}"]) for when in ("before", "after"))
        output.say(
            f"Calibration error: {after} (before scaling by temperature {calibration['temperature']:.2f}: {before})"
            f"{if_few(score['n'])}"
        )
    warn_of_near_duplicates(report["near_duplicates"])
    output.say(f"Took {output.took()}, the fit {output.span(report['fit_seconds'])} of it")
    output.say(f"Saved: {report['path']}")
    if report["predicts"] == "images":
        output.say(f"Next:  {output.command('featcache', 'predict', report['path'], 'IMAGE')}")
    elif report["predicts"] == "faces":
        output.say(
            "It predicts from the vectors of aligned faces: in Python featcache.faces.embed_faces makes them of images "
            "for Bundle.predict_vectors. `featcache faces train` makes a head that compares two faces."
        )
    else:
        output.say("It predicts from vectors only (Bundle.predict_vectors), because the file has no recipe.")


def _show_members(report: Mapping[str, Any]) -> None:
    """How the layers are weighed, and the members of a stack with what each alone has out of fold."""
    if weighting := report.get("layer_weighting"):
        losses = ", ".join(f"{name} {loss:.3f}" for name, loss in weighting["log_loss"].items())
        found = f" (log-loss {losses}, on {counted(weighting['compared_on'], 'items')})" if losses else ""
        output.say(f"Layers weighed by {weighting['weighting']}{found}")
    if members := report.get("members"):
        output.table(
            ["member", "log-loss", "accuracy", "weight"],
            [
                [m["name"], output.number(m["log_loss"]), output.percent(m["accuracy"]), f"{m['weight']:.2f}"]
                if m["log_loss"] is not None
                else [m["name"], "–", "–", f"{m['weight']:.2f}"]
                for m in members
            ],
            right=["log-loss", "accuracy", "weight"],
        )


def _chosen(report: Mapping[str, Any]) -> str:
    by = f" ({report['chosen_by']})" if report.get("chosen_by") else ""
    return ", ".join(f"{name} = {output.number(value)}" for name, value in report["chosen"].items()) + by


def quoted(labels: Sequence[str]) -> str:
    """The first labels, quoted."""
    return ", ".join(map(repr, labels[:LISTED])) + (" …" if len(labels) > LISTED else "")


def warn_of_little(unscored: Sequence[str], n: int) -> None:
    """Warn of classes that were not scored, and of a score on few items; of no score the protocol says why."""
    if not n:
        return
    if unscored:
        output.say(f"Warning: no scored item has the label{'s' if len(unscored) > 1 else ''} {quoted(unscored)}.")
    if n < FEW:
        output.say(f"Warning: a score on {counted(n, 'items')} is unreliable; label more images, or train with --cv 5.")


def if_few(n: int) -> str:
    """What stands behind a calibration error, which has no interval."""
    return f"; unreliable, as it rests on {counted(n, 'items')} only" if n < FEW_CALIBRATED else ""


def warn_of_near_duplicates(found: Mapping[str, Any] | None) -> None:
    """Warn of near-duplicates across the split, as a report has them."""
    if not found:
        return
    first = f" (first: {found['examples'][0]['a']}, {found['examples'][0]['b']})" if found["examples"] else ""
    if found["left_out"]:
        output.say(f"Left out: {counted(found['left_out'], 'near-duplicates')} of held-out items{first}")
    if found["note"]:
        output.say(f"Near-duplicates: {found['note']}")
    if found["across"]:
        output.say(f"Warning: {counted(found['across'], 'pairs')} of near-duplicates across the split{first}.")


def tell_unlabeled(report: Mapping[str, Any]) -> None:
    """Tell of images that were left out because they have no label; of those without vectors the protocol tells."""
    if report.get("without_labels"):
        output.say(f"Left out: {counted(report['without_labels'], 'images')} without a label")
        if report["task"] == "multilabel":
            output.say("  If they have none of the labels, give them the label |.")


def with_interval(score: Mapping[str, Any], name: str = "accuracy") -> str:
    """A score in per cent with its interval, or why it has none."""
    if score[name] is None:
        return "unknown" if not score.get("n") else "unknown: no label occurs"
    if score["low"] is None:
        return f"{output.percent(score[name])}  (no interval: it is the same on every resample)"
    low, high = output.percent(score["low"]), output.percent(score["high"])
    return f"{output.percent(score[name])}  (95 % interval {low} – {high})"
