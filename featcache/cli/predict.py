"""``featcache predict`` and ``featcache similar``."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from featcache.cli import output
from featcache.cli.command import ADVANCED, STDOUT, Answer, Debug, Force, Json, command
from featcache.cli.options import HeadPath, StorePath, Weights, network_for, network_of, selects
from featcache.core.errors import SourceError, UsageError
from featcache.core.outputs import PREDICTIONS, PREDICTIONS_HEADER
from featcache.core.progress import counted

if TYPE_CHECKING:
    from featcache.store import Item
    from featcache.training.bundle import Prediction
    from featcache.training.predict import Run
    from featcache.training.prediction_table import PredictionTable


@command(
    interrupted="With --csv FILE what was answered is kept in FILE.partial; the same command goes on from there.",
    writes={"table": PREDICTIONS},
)
def predict(
    head: HeadPath,
    images: Annotated[
        list[Path],
        typer.Argument(
            metavar="IMAGE|FOLDER|STORE", help="Images, folders, tar files of images, or a store for those it lists."
        ),
    ],
    top: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="How many labels per image; by default 5, or with several labels per image all above 50 %.",
        ),
    ] = None,
    table: Annotated[
        Path | None,
        typer.Option(
            "--csv",
            metavar="FILE",
            help="Write a CSV file with the columns uri,rank,label,probability,problem, one row per image and label;"
            " one that was cut off goes on. - for stdout.",
        ),
    ] = None,
    csv_safe: Annotated[
        bool,
        typer.Option(
            "--csv-safe",
            help="Put an apostrophe before cells that a spreadsheet would take for formulas.",
            rich_help_panel=ADVANCED,
        ),
    ] = False,
    store: Annotated[
        Path | None,
        typer.Option(metavar="STORE", help="Take the vectors of images that it knows, and compute only the others."),
    ] = None,
    weights: Weights = None,
    force: Force = False,
    as_json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Predict the labels of images, with probabilities.

    Each image has an answer or a problem. Exits with 1 if there is no answer at all.

    Example: featcache predict pets.fch new-photos a.jpg --csv answers.csv
    """
    from featcache.training.bundle import Bundle
    from featcache.training.predict import Run

    _check_order(head, images)
    bundle = Bundle.load(head)
    if csv_safe and table is None:
        raise UsageError("--csv-safe goes with --csv FILE.")
    if table is not None and str(table) == STDOUT and as_json:
        raise UsageError("--csv - and --json both print on stdout. Give --csv FILE, or omit one of them.")
    run = Run(bundle, images, top=top, store=store, backbone=network_of(bundle, weights))
    if str(table) == STDOUT:
        return _to_stdout(run, csv_safe)
    found = _Found()
    if table is None:
        for batch in run.batches():
            found.add(batch)
        return Answer(found.data(), lambda: _show_predictions(found), 0 if found.answered else 1)
    with run.table(head, table, safe=csv_safe, force=force) as made:
        begun = made.done
        found.add(made.read() if as_json else ())
        for batch in run.batches(begun):
            made.add(batch)
            found.add(batch if as_json else ())
        made.finish()
    return Answer(found.data(), lambda: _show_table(made, begun, csv_safe), 0 if made.answered else 1)


def _check_order(head: Path, images: Sequence[Path]) -> None:
    """Check that the head comes first, and that there is something to ask about.

    Raises:
        UsageError: it does not.
        SourceError: nothing is there, and no name looks like that of a file.
    """
    heads = [path for path in images if path.suffix.lower() == ".fch"]
    if heads and head.suffix.lower() != ".fch":
        what = "a folder" if head.is_dir() else "an image"
        words = ["featcache", "predict", heads[0], head]
        raise UsageError(
            f"{head} comes first and is {what}, while the head {heads[0]} comes after it. The order is HEAD IMAGES: "
            f"{output.command(*words)}"
        )
    if not any(os.path.lexists(path) or path.suffix for path in images):
        raise SourceError(
            f"There is nothing at {images[0]}. Give images, folders of images, tar files of images, or a store."
        )


class _Found:
    """Predictions that wait, in a temporary file, to be shown once all are there: there may be very many."""

    def __init__(self) -> None:
        self.answered = 0
        self._file = tempfile.TemporaryFile("w+", encoding="ascii")  # noqa: SIM115  (it is read after `predict` returned)
        weakref.finalize(self, self._file.close)

    def add(self, predictions: Iterable[Prediction]) -> None:
        for one in predictions:
            self.answered += not one.problem
            self._file.write(json.dumps([one.uri, one.labels, one.problem]) + "\n")

    def __iter__(self) -> Iterator[Prediction]:
        from featcache.training.bundle import Prediction

        self._file.seek(0)
        for line in self._file:
            uri, labels, problem = json.loads(line)
            yield Prediction(uri, [(label, probability) for label, probability in labels], problem)

    def data(self) -> dict[str, Any]:
        return {
            "predictions": (
                {"uri": p.uri, "labels": [{"label": label, "probability": q} for label, q in p.labels]}
                | ({"problem": p.problem} if p.problem else {})
                for p in self
            )
        }


def _to_stdout(run: Run, safe: bool) -> Answer:
    """The table goes to stdout as it is made; what is for a person to stderr."""
    from featcache.training.prediction_table import as_csv, rows_of
    from featcache.training.prediction_table import formulas as count_formulas

    answered = formulas = unusable = 0
    problems: list[str] = []
    sys.stdout.flush()
    with output.quiet_pipe():
        sys.stdout.buffer.write(as_csv([PREDICTIONS_HEADER]))
        for batch in run.batches():
            for prediction in batch:
                answered += not prediction.problem
                formulas += count_formulas(rows_of(prediction))
                unusable += bool(prediction.problem)
                if prediction.problem and unusable <= output.LISTED:
                    problems.append(f"{prediction.uri}: cannot be used: {prediction.problem}")
            sys.stdout.buffer.write(as_csv(row for one in batch for row in rows_of(one, safe=safe)))
            sys.stdout.buffer.flush()

    def show() -> None:
        for problem in problems:
            output.say(problem, sys.stderr)
        if unusable > len(problems):
            output.say(f"… and {unusable - len(problems):,} more that cannot be used", sys.stderr)
        _warn_of_formulas(formulas, safe, sys.stderr)

    return Answer({}, show, 0 if answered else 1)


@command(interrupted="")
@selects("source", "space")
def similar(
    store: StorePath,
    selection: Mapping[str, Any],
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="The image to look for.")],
    k: Annotated[int, typer.Option("-k", min=1, metavar="N", help="How many images to list.")] = 10,
    weights: Weights = None,
    as_json: Json = False,
    debug: Debug = False,
) -> Answer:
    """List the images of a store that are most similar to one image, by the cosine of their vectors.

    Example: featcache similar pets.fcache a.jpg -k 5
    """
    from featcache.extraction.search import similar as run

    found = run(store, image, k=k, backbone=network_for(store, selection, weights), **selection)
    data = {
        "similar": [
            {"source": item.source, "uri": item.uri, "label": item.label, "cosine": cosine} for item, cosine in found
        ]
    }
    return Answer(data, lambda: _show_similar(found))


def _show_predictions(found: Iterable[Prediction]) -> None:
    for prediction in found:
        if prediction.problem:
            output.say(f"{prediction.uri}: cannot be used: {prediction.problem}")
            continue
        output.say(prediction.uri)
        for label, probability in prediction.labels:
            output.say(f"  {'' if probability is None else output.percent(probability):>7}  {label}")
        if not prediction.labels:
            output.say("           no label above 50 %")


def _show_table(made: PredictionTable, begun: int, safe: bool) -> None:
    for uri, problem in made.problems:
        output.say(f"{uri}: cannot be used: {problem}")
    more = made.done - made.answered - len(made.problems)
    if more:
        output.say(f"… and {more:,} more that cannot be used, see the column problem")
    if begun:
        output.say(f"{counted(begun, 'images')} were answered before")
    output.say(f"{made.answered:,} of {counted(made.done, 'images')} answered")
    output.say(f"Table: {made.path}")
    _warn_of_formulas(made.formulas, safe, sys.stdout)


def _warn_of_formulas(count: int, safe: bool, stream: TextIO) -> None:
    if count and not safe:
        output.say(
            f"Warning: {counted(count, 'cells')} of the table would be formulas in a spreadsheet (they begin with = + "
            "- @ or a tab); --csv-safe puts an apostrophe before them.",
            stream,
        )


def _show_similar(found: Sequence[tuple[Item, float]]) -> None:
    width = max((len(item.label or "–") for item, _ in found), default=0)
    output.say(f"cosine  {'label':{width}}  image")
    for item, cosine in found:
        output.say(f"{cosine:6.4f}  {item.label or '–':{width}}  {item.uri}")
