"""``featcache extract``: images to vectors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featcache.cli import output
from featcache.cli.command import ADVANCED, Answer, Debug, Json, command
from featcache.cli.options import (
    BatchSize,
    Device,
    Fit,
    ImageTimeout,
    InputSize,
    LabelsOfSource,
    Layers,
    Moved,
    PrecisionGiven,
    RuntimeGiven,
    SourceName,
    SplitOfSource,
    Strict,
    Weights,
    Workers,
    backbone_of,
    layer_list,
)
from featcache.core.progress import counted

if TYPE_CHECKING:
    from featcache.extraction import ExtractReport


@command(interrupted="What was sealed is kept. Run the same command again to continue.")
def extract(
    context: typer.Context,
    source: Annotated[
        Path,
        typer.Argument(metavar="SOURCE", help="A folder of images, one folder per class; a CSV file; tar files."),
    ],
    store: Annotated[Path, typer.Option("--output", "-o", metavar="STORE", help="The store; created if missing.")],
    backbone: Annotated[
        str | None,
        typer.Option(
            metavar="B",
            help="The frozen network; `featcache models` lists them. By default those of earlier runs, at first "
            "bundled:efficientnet_lite0.",
        ),
    ] = None,
    layers: Layers = None,
    labels: LabelsOfSource = None,
    split: SplitOfSource = None,
    name: SourceName = None,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Use only N images, spread evenly over the labels.")
    ] = None,
    views: Annotated[
        int | None,
        typer.Option(min=1, metavar="K", help="Versions per image: the original and K - 1 random augmentations."),
    ] = None,
    input_size: InputSize = None,
    fit: Fit = None,
    device: Device = None,
    precision: PrecisionGiven = None,
    weights: Weights = None,
    runtime: RuntimeGiven = None,
    seed: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Seed of the augmentations.", rich_help_panel=ADVANCED)
    ] = None,
    batch_size: BatchSize = None,
    workers: Workers = None,
    dtype: Annotated[
        str | None,
        typer.Option(metavar="float32|float16", help="How vectors are stored.", rich_help_panel=ADVANCED),
    ] = None,
    scaled: Annotated[
        bool,
        typer.Option(
            "--scaled",
            help="Decode large JPEGs at reduced size: faster, and the vectors differ slightly.",
            rich_help_panel=ADVANCED,
        ),
    ] = False,
    moved: Moved = False,
    strict: Strict = False,
    image_timeout: ImageTimeout = 30.0,
    as_json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Compute the vectors of all images that are not in the store yet.

    Running it again computes only what is new: added or changed images, more layers, more views. The store remembers
    labels, split, backbone, layers and views, so that they need not be given again; --layers, --views, --backbone,
    --input-size and --fit add to them.

    Example: featcache extract photos -o pets.fcache

    Example: featcache extract photos -o pets.fcache --layers pooled blocks.4:mean

    Example: featcache extract photos -o pets.fcache --views 4

    Example: featcache extract photos -o pets.fcache --input-size 288
    """
    from featcache import backbones
    from featcache.extraction import ExtractionInterrupted
    from featcache.extraction.extract import DEFAULT_BACKBONE
    from featcache.extraction.extract import extract as run
    from featcache.extraction.run import ExtractionConfig
    from featcache.images.sources import open_source

    network = None
    if backbone is not None or weights is not None or precision is not None or scaled:
        network = backbones.get(
            backbone or (DEFAULT_BACKBONE if weights is None else backbone_of(store)), weights, device,
            runtime=runtime or "auto", precision=precision or "float32",
        )  # fmt: skip
    config = ExtractionConfig(batch_size, workers, dtype, moved, strict, image_timeout, device, runtime)
    try:
        report = run(
            source,
            store,
            backbone=network.scaled() if network is not None and scaled else network,
            layers=layer_list(context, layers) or None,
            labels=labels,
            split=split,
            name=name,
            limit=limit,
            views=views,
            seed=seed,
            config=config,
            progress=True,
            input_size=input_size,
            fit=fit,
        )
    except ExtractionInterrupted as stop:
        return Answer(stop.report.to_dict() | {"interrupted": True}, _showing(stop.report, None), 130)
    called = name or open_source(source).name
    return Answer(report.to_dict() | {"interrupted": False}, _showing(report, called))


def _showing(report: ExtractReport, source: str | None) -> Callable[[], None]:
    return lambda: _show(report, source)


def _show(report: ExtractReport, source: str | None) -> None:
    """Print what was done to *source*; None after an interruption."""
    counts = {"new": report.added, "changed": report.changed, "removed": report.removed}
    since = ", ".join(f"{n:,} {word}" for word, n in counts.items() if n)
    output.say(counted(report.items, "images") + (f" ({since})" if since else ""))
    several = report.views > 1
    done = f"{counted(report.computed, 'views')} of images" if several else f"{report.computed:,}"
    rate = "views/s" if several else "images/s"
    pace = f" at {report.images_per_second:.1f} {rate}" if report.computed else ""
    there = "already in the store, or duplicates" if report.computed else "already in the store"
    reused = counted(report.reused, "images") if several else f"{report.reused:,}"
    output.say(f"  {done} computed{pace}, {reused} {there}")
    if source is None and report.left > 0:
        output.say(f"  {report.left:,} left to do")
    elif report.pending:
        output.say(f"  {report.pending:,} of the images listed are not extracted yet")
    if report.ignored:
        from featcache.images.formats import unread_among

        output.say(f"  {counted(report.ignored, 'other files')} ignored{unread_among(report.unread)}")
    output.say_quarantine(report.quarantine, report.store)
    on = f" on {report.runtime}" if report.runtime else ""
    prepare = sum(one.stages.get("prepare", 0.0) for one in [report, *report.others])
    made_ready = f", {output.span(prepare)} of it to load, convert or check the network" if prepare >= 1 else ""
    output.say(f"  {output.span(report.seconds)} in total{made_ready}, {report.backbone}{on}")
    for other in report.others:
        output.say(f"  {other.backbone}: {other.computed:,} computed, {other.reused:,} already in the store")
        output.say_quarantine(other.quarantine, report.store)
    output.say(f"Store: {report.store}")
    if source is None:
        output.say("Interrupted. What was computed is kept; run the same command again to continue.")
    else:
        _say_next(report, source)


def _say_next(report: ExtractReport, source: str) -> None:
    """Print the next command, with the options that choose this run's vectors if the store holds others."""
    from featcache.store import FeatureStore

    store = FeatureStore.open(report.store)
    choices: list[str] = []
    if len(store.sources()) > 1:
        choices += ["--source", source]
    if sum(bool(space.layers) for space in store.spaces) > 1:
        choices += ["--space", report.space[:12]]
    if len({item.label for item in store.items(source=source)} - {None}) < 2:
        output.say(f"Next:  {output.command('featcache', 'similar', report.store, 'IMAGE', *choices)}")
        output.say("  A head needs two classes: one folder per class, or `featcache train --labels FILE` (path,label).")
        return
    layers = list(store.space(report.space).layers)
    if "pooled" not in layers and len(layers) > 1:
        choices += ["--layers", "+".join(layers)]
    head = Path(report.store).absolute().with_suffix(".fch").name
    output.say(f"Next:  {output.command('featcache', 'train', report.store, '-o', head, *choices)}")
