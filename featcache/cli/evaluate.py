"""``featcache evaluate``: a head's score, and two heads compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featcache.cli import output
from featcache.cli.command import Answer, Debug, Force, Json, command
from featcache.cli.options import HeadPath, StorePath, Weights, network_of, selects
from featcache.cli.train import (
    if_few,
    quoted,
    tell_unlabeled,
    warn_of_little,
    warn_of_near_duplicates,
    with_interval,
)
from featcache.core.errors import BundleError, UsageError
from featcache.core.outputs import FIGURE
from featcache.core.progress import counted

if TYPE_CHECKING:
    from featcache.training.bundle import Bundle

_SHOWN = 0.0005
"""What is less is shown as 0.000, and as 0.0 points."""


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
        output.say(f"Calibration error: {output.percent(report['ece'])}{if_few(report['n'])}")
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
