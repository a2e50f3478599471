"""``featcache train`` and ``featcache evaluate``."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featcache.cli import output
from featcache.cli.command import Answer, Debug, Force, Json, command
from featcache.cli.options import (
    HeadPath,
    LayersOrBlocks,
    StorePath,
    Weights,
    WeightsOfBlocks,
    check_savable,
    layer_list,
    network_for,
    network_of,
    selects,
)
from featcache.core.errors import BundleError, GridEdgeWarning, UsageError
from featcache.core.outputs import FIGURE, HEAD
from featcache.core.progress import counted

if TYPE_CHECKING:
    from featcache.training.bundle import Bundle

LISTED = 10
FEW, FEW_CALIBRATED = 10, 50
"""On fewer items than these a score, and a calibration error, is unreliable."""
_SHOWN = 0.0005
"""What is less is shown as 0.000, and as 0.0 points."""


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
            help="stack (the default on several layers): ridge and softmax, on pooled and on all layers, as one matrix;"
            " softmax (the default on one layer): multinomial logistic regression, C chosen by cross-validation; ridge:"
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


@command(interrupted="Nothing was changed.", writes={"confusion": FIGURE})
@selects(split="The split to score; test by default, if the source has it.")
def evaluate(
    head: HeadPath,
    store: StorePath,
    selection: Mapping[str, Any],
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="OTHER.fch",
            help="Another head to compare with on the same items; only for one label per image.",
        ),
    ] = None,
    confusion: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png", help="Draw the confusion matrix; only for one label per image."),
    ] = None,
    weights: Weights = None,
    force: Force = False,
    as_json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Score a head on images of a store: the split test, else held-out images it was not trained on.

    Example: featcache evaluate pets.fch pets.fcache --confusion pets.png
    """
    from featcache.metrics.plots import draw_confusion
    from featcache.training.bundle import Bundle
    from featcache.training.evaluate import EvaluateReport
    from featcache.training.evaluate import evaluate as run

    bundle = Bundle.load(head)
    if bundle.task == "multilabel" and (confusion or against):
        option = "--confusion" if confusion else "--against"
        raise UsageError(
            f"{head} predicts several labels per image: it has no confusion matrix and cannot be compared in pairs. "
            f"Omit {option}."
        )
    other = None if against is None else _other(against)
    if (network := network_of(bundle, weights)) is not None:
        other = other.on(network) if other is not None and other.recipe == bundle.recipe else other
        bundle = bundle.on(network)
    found = run(bundle, store, progress=True, **selection)
    report = found.to_dict()
    if confusion is not None and isinstance(found, EvaluateReport):
        draw_confusion(found.confusion, found.labels, confusion, force=force)
        report["confusion"] = str(confusion)
    if other is not None:
        from featcache.training.compare import compare

        # The other head may need another space.
        compared = compare(bundle, other, store, **{**selection, "space": None})
        report["against"] = {"path": str(against), **compared.to_dict()}
    return Answer(report, lambda: _show_evaluate(report, head))


def _other(path: Path) -> Bundle:
    """The head to compare with.

    Raises:
        UsageError: there is none, or it predicts several labels per image.
    """
    from featcache.training.bundle import Bundle

    try:
        other = Bundle.load(path)
    except BundleError as error:
        raise UsageError(f"--against needs a head that `featcache train` saved. {error}") from error
    if other.task == "multilabel":
        raise UsageError(f"{path} predicts several labels per image, so it cannot be compared in pairs.")
    return other


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
            f"{_if_few(score['n'])}"
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


def _show_evaluate(report: Mapping[str, Any], head: Path) -> None:
    several = "mean_average_precision" in report
    if several:
        output.say(f"Mean average precision: {with_interval(report, 'mean_average_precision')}")
    else:
        output.say(f"Accuracy: {with_interval(report)}")
    output.say(f"  on {counted(report['n'], 'items')}: {report['protocol']}")
    warn_of_little([], report["n"])
    _warn_of_unknown(report["unknown_labels"])
    if several:
        _warn_of_other_labels(report)
        output.say(f"All labels right: {output.percent(report['exact_match'])}")
        output.say(f"Micro F1: {output.percent(report['micro_f1'])}")
    else:
        output.say(f"Balanced accuracy: {output.percent(report['balanced_accuracy'])}")
    output.say(f"Macro F1: {output.percent(report['macro_f1'])}")
    if report["log_loss"] is not None:
        output.say(f"Log-loss: {report['log_loss']:.3f}")
    if not several and report["ece"] is not None:
        output.say(f"Calibration error: {output.percent(report['ece'])}{_if_few(report['n'])}")
    if several:
        _show_classes(report["per_label"], "label")
    else:
        _show_classes(report["per_class"])
    tell_unlabeled(report)
    if report["overlap"] is None:
        output.say("Warning: the head does not know which images it was trained on; they may be among these.")
    if report["overlap"]:
        output.say(f"Warning: the head was trained on {report['overlap']:,} of these items.")
    warn_of_near_duplicates(report["near_duplicates"])
    if "against" in report:
        _show_against(report["against"], head)
    if "confusion" in report:
        output.say(f"Confusion matrix: {report['confusion']}")


def _warn_of_unknown(labels: Mapping[str, int]) -> None:
    if labels:
        items, named = counted(sum(labels.values()), "items"), quoted(list(labels))
        output.say(f"Warning: {items} counted as wrong, because the head does not know their labels: {named}")
        output.say("  If a class was renamed or added since, train again.")


def _warn_of_other_labels(report: Mapping[str, Any]) -> None:
    # By chance this is rare; it is usual where a head is scored with other labels than its own.
    if report["unscored"]:
        known = counted(len(report["unscored"]), "labels")
        output.say(f"Warning: {known} of the head occur in none of these items: {quoted(report['unscored'])}")
        output.say("  If the head was trained with --labels FILE, give that file here too.")


def quoted(labels: Sequence[str]) -> str:
    """The first labels, quoted."""
    return ", ".join(map(repr, labels[:LISTED])) + (" …" if len(labels) > LISTED else "")


def _show_classes(classes: Sequence[Mapping[str, Any]], kind: str = "class") -> None:
    percent = output.percent
    ranked = ["AP"] if kind == "label" else []  # average precision
    output.table(
        [kind, "items", "precision", "recall", "95 % interval", "F1", *ranked],
        [
            [
                c["label"],
                f"{c['items']:,}",
                percent(c["precision"]),
                percent(c["recall"]),
                f"{percent(c['recall_low'])} – {percent(c['recall_high'])}" if c["items"] else "–",
                percent(c["f1"]),
                *(percent(c["average_precision"]) for _ in ranked),
            ]
            for c in classes
        ],
        right=["items", "precision", "recall", "95 % interval", "F1", "AP"],
    )


def warn_of_little(unscored: Sequence[str], n: int) -> None:
    """Warn of classes that were not scored, and of a score on few items; of no score the protocol says why."""
    if not n:
        return
    if unscored:
        output.say(f"Warning: no scored item has the label{'s' if len(unscored) > 1 else ''} {quoted(unscored)}.")
    if n < FEW:
        output.say(f"Warning: a score on {counted(n, 'items')} is unreliable; label more images, or train with --cv 5.")


def _if_few(n: int) -> str:
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


def _show_against(against: Mapping[str, Any], head: Path) -> None:
    """Both heads' scores, and the difference in words: of a loss, less is better."""
    output.say(f"Against {against['path']}, on {counted(against['n'], 'items')}: {against['protocol']}")
    for name, called, sign in (("accuracy", "Accuracy", 1), ("log_loss", "Log-loss", -1)):
        found = against[name]
        if found is None:
            continue
        a, b = (output.percent(found[of]) if sign > 0 else f"{found[of]:.3f}" for of in ("a", "b"))
        output.say(f"  {called}: {head} {a}, {against['path']} {b}")
        output.say(f"    {_verdict(found, name, sign, str(head), against['n'])}")


def _verdict(found: Mapping[str, Any], name: str, sign: int, head: str, n: int) -> str:
    """Which head is better by one measure, or why that cannot be said; *sign* is -1 for a loss."""
    gain = sign * found["difference"]
    if found["low"] is None:
        if abs(gain) < _SHOWN:
            return "Equal; no interval: equal on all items."
        return f"{head} is {_better(gain, name)}; no interval, as all resamples are equal."
    low, high = sorted((sign * found["low"], sign * found["high"]))
    if max(abs(low), abs(high)) < _SHOWN:
        return "Equal, to the digits shown."
    interval = f"95 % interval: {_better(low, name)} to {_better(high, name)}"
    if low <= 0 <= high:
        return f"They cannot be told apart on {counted(n, 'items')}: {head} is {_better(gain, name)} ({interval})."
    share = f"better in {output.percent(found['better'])} of the resamples"
    return f"{head} is {_better(gain, name)} ({interval}), and {share}."


def _better(gain: float, name: str) -> str:
    """``6.7 points worse``, ``0.162 better``; *gain* is above 0 where the first head is the better one."""
    if abs(gain) < _SHOWN:
        return "equal"
    size = f"{100 * abs(gain):.1f} points" if name == "accuracy" else f"{abs(gain):.3f}"
    return f"{size} {'better' if gain > 0 else 'worse'}"


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
