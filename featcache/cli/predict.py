"""``featcache predict`` and ``featcache similar``."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featcache.cli import output
from featcache.cli.command import Answer, Debug, Force, Json, command
from featcache.cli.options import HeadPath, StorePath, selects
from featcache.core.outputs import PREDICTIONS, written_output

if TYPE_CHECKING:
    from featcache.store import Item
    from featcache.training.evaluate import Prediction


@command(interrupted="Nothing was written.", writes={"table": PREDICTIONS})
def predict(
    head: HeadPath,
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE|FOLDER", help="Images, folders, and tar files of images.")
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
            help="Write a CSV file with the columns uri,rank,label,probability, one row per image and label.",
        ),
    ] = None,
    force: Force = False,
    as_json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Predict the labels of images, with probabilities.

    Example: featcache predict pets.fch new-photos a.jpg --csv answers.csv
    """
    from featcache.training.evaluate import predict as run

    found = run(head, images, top=top, progress=True)
    if table is not None:
        _write(found, table, force)
    data = {
        "predictions": [
            {"uri": p.uri, "labels": [{"label": label, "probability": q} for label, q in p.labels]}
            | ({"problem": p.problem} if p.problem else {})
            for p in found
        ]
    }
    return Answer(data, lambda: _show_predictions(found, table), 1 if all(p.problem for p in found) else 0)


@command(interrupted="")
@selects("source", "space")
def similar(
    store: StorePath,
    selection: Mapping[str, Any],
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="The image to look for.")],
    k: Annotated[int, typer.Option("-k", min=1, metavar="N", help="How many images to list.")] = 10,
    as_json: Json = False,
    debug: Debug = False,
) -> Answer:
    """List the images of a store that are most similar to one image, by the cosine of their vectors.

    Example: featcache similar pets.fcache a.jpg -k 5
    """
    from featcache.extraction.search import similar as run

    found = run(store, image, k=k, **selection)
    data = {
        "similar": [
            {"source": item.source, "uri": item.uri, "label": item.label, "cosine": cosine} for item, cosine in found
        ]
    }
    return Answer(data, lambda: _show_similar(found))


def _show_predictions(found: Sequence[Prediction], table: Path | None) -> None:
    for prediction in found:
        if prediction.problem:
            output.say(f"{prediction.uri}: cannot be used: {prediction.problem}")
        elif table is None:
            output.say(prediction.uri)
            for label, probability in prediction.labels:
                output.say(f"  {'' if probability is None else output.percent(probability):>7}  {label}")
    if table is not None:
        output.say(f"{sum(not p.problem for p in found):,} images")
        output.say(f"Table: {table}")


def _write(found: Sequence[Prediction], path: Path, force: bool) -> None:
    """One row per image and label, the most probable first. Images that cannot be used have none."""
    with (
        written_output(path, PREDICTIONS, force=force) as aside,
        aside.open("w", encoding="utf-8", newline="") as file,
    ):
        rows = csv.writer(file)
        rows.writerow(["uri", "rank", "label", "probability"])
        for prediction in found:
            for rank, (label, probability) in enumerate(prediction.labels, start=1):
                rows.writerow([prediction.uri, rank, label, "" if probability is None else f"{probability:.6f}"])


def _show_similar(found: Sequence[tuple[Item, float]]) -> None:
    width = max((len(item.label or "–") for item, _ in found), default=0)
    output.say(f"cosine  {'label':{width}}  image")
    for item, cosine in found:
        output.say(f"{cosine:6.4f}  {item.label or '–':{width}}  {item.uri}")
