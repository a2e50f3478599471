"""``featcache train`` and ``evaluate``: vectors to heads, heads to scores."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from featcache.cli import screen
from featcache.cli.conduct import Answer, Debug, Json, verb
from featcache.cli.options import (
    HeadPath,
    Labels,
    Layers,
    Source,
    Space,
    Split,
    StorePath,
    layer_list,
)
from featcache.progress import counted

LISTED = 10


@verb(interrupted="No head was written.")
def train(
    context: typer.Context,
    store: Annotated[
        Path,
        typer.Argument(
            metavar="STORE|FILE",
            help="A store that `featcache extract` made, or a file .h5 or .npz with features and labels.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="HEAD.fch", help="The head to write.")],
    head: Annotated[
        str,
        typer.Option(
            metavar="softmax|logreg|ridge|knn|centroid|torch",
            help="softmax: multinomial logistic regression, its C chosen by cross-validation over the whole path;"
            " logreg: the same by scikit-learn on standardised vectors; ridge: ridge"
            " regression, in a second or two, also for caches larger than memory; knn: the nearest vectors vote;"
            " centroid: the nearest class mean; torch: a softmax layer trained by mini-batches, for caches larger"
            " than memory.",
        ),
    ] = "logreg",
    task: Annotated[
        str,
        typer.Option(
            metavar="classify|multilabel",
            help="classify: one label an image; multilabel: several, separated by | in the labels, each with a"
            " probability of its own (with --head softmax).",
        ),
    ] = "classify",
    layers: Layers = None,
    cv: Annotated[
        int | None, typer.Option(min=2, metavar="K", help="Score by K-fold cross-validation, not a hold-out.")
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The split to learn from; train, where the source has splits."),
    ] = None,
    labels: Labels = None,
    source: Source = None,
    space: Space = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of all that is drawn.")] = 0,
    refit_all: Annotated[
        bool, typer.Option("--refit-all", help="After scoring, train once more on everything and save that.")
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Train a head on the vectors in a store, score it, save it.

    Without a split, a part of every class is set aside for the score and kept for all later heads.

    Example: featcache train pets.fcache -o pets.fch
    """
    from featcache.bundle import check_target
    from featcache.training import train as run

    check_target(output)
    bundle = run(
        store,
        head,
        task=task,
        layers=layer_list(context, layers) or None,
        cv=cv,
        split=split,
        labels=labels,
        source=source,
        space=space,
        seed=seed,
        refit_all=refit_all,
        progress=True,
    )
    bundle.save(output)
    report = {**bundle.report, "path": str(output)}
    return Answer(report, lambda: _show_train(report))


@verb(interrupted="Nothing was changed.")
def evaluate(
    head: HeadPath,
    store: StorePath,
    split: Split = None,
    source: Source = None,
    space: Space = None,
    labels: Labels = None,
    as_json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Score a head on items of a store: those of the split test, else those it was not trained on.

    Example: featcache evaluate pets.fch pets.fcache
    """
    from featcache.prediction import evaluate as run

    report = run(head, store, split=split, source=source, space=space, labels=labels).to_dict()
    return Answer(report, lambda: _show_evaluate(report))


def _show_train(report: dict[str, Any]) -> None:
    score = report["score"]
    screen.say(f"Head: {report['head']}, {len(report['classes'])} classes, trained on {report['n']:,} items")
    if report["task"] == "multilabel":
        screen.say(f"Mean average precision: {_with_interval(score, 'mean_average_precision')}")
    else:
        screen.say(f"Accuracy: {_with_interval(score)}")
    screen.say(f"  on {score['protocol']}")
    _warn_of_missing(report)
    if report["chosen"]:
        by = f" ({report['chosen_by']})" if report.get("chosen_by") else ""
        screen.say("Chosen: " + ", ".join(f"{name} = {value}" for name, value in report["chosen"].items()) + by)
    if report.get("converged") is False:
        screen.say("Beware: the fit stopped before it converged.")
    screen.say(f"Took {screen.span(report['seconds'])}, the fit {screen.span(report['fit_seconds'])} of it")
    screen.say(f"Saved: {report['path']}")
    if report["predicts"] == "images":
        screen.say(f"Next:  {screen.command('featcache', 'predict', report['path'], 'IMAGE')}")
    else:
        screen.say("It answers for vectors only (Bundle.predict_vectors): the file does not say what made them.")


def _show_evaluate(report: Mapping[str, Any]) -> None:
    several = "mean_average_precision" in report
    if several:
        screen.say(f"Mean average precision: {_with_interval(report, 'mean_average_precision')}")
    else:
        screen.say(f"Accuracy: {_with_interval(report)}")
    screen.say(f"  on {report['n']:,} items: {report['protocol']}")
    if several:
        screen.say(f"All labels right: {screen.percent(report['exact_match'])}")
        screen.say(f"Micro F1: {screen.percent(report['micro_f1'])}")
    else:
        screen.say(f"Balanced accuracy: {screen.percent(report['balanced_accuracy'])}")
    screen.say(f"Macro F1: {screen.percent(report['macro_f1'])}")
    if report["log_loss"] is not None:
        screen.say(f"Log-loss: {report['log_loss']:.3f}")
    if report["unknown_labels"]:
        unknown = list(report["unknown_labels"])
        named = ", ".join(map(repr, unknown[:LISTED])) + (" …" if len(unknown) > LISTED else "")
        items = counted(sum(report["unknown_labels"].values()), "items")
        screen.say(f"Beware: {items} counted as wrong, as the head does not know their labels: {named}")
        screen.say("  If a class was renamed or added since, train again.")
    _warn_of_missing(report)
    if report["overlap"] is None:
        screen.say("Beware: the head does not know which images it was trained on; they may be among these.")
    if report["overlap"]:
        screen.say(f"Beware: the head was trained on {report['overlap']:,} of these items.")


def _warn_of_missing(report: Mapping[str, Any]) -> None:
    if report["without_vectors"]:
        images = counted(report["without_vectors"], "labelled images")
        screen.say(f"Beware: {images} left out for want of vectors; `featcache extract` computes them.")


def _with_interval(score: Mapping[str, Any], name: str = "accuracy") -> str:
    if score[name] is None:
        return "unknown: no label occurs"
    if score["low"] is None:
        return f"{screen.percent(score[name])}  (no interval: it is the same on every resample)"
    low, high = screen.percent(score["low"]), screen.percent(score["high"])
    return f"{screen.percent(score[name])}  (95 % interval {low} – {high})"
