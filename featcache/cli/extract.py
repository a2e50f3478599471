"""``featcache extract``: images to vectors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featcache.cli import output as screen
from featcache.cli.command import Answer, Debug, Json, verb
from featcache.cli.options import Device, Layers, Precision, Runtime, Weights, layer_list
from featcache.core.progress import counted

if TYPE_CHECKING:
    from featcache.extraction import ExtractReport

LISTED = 10


@verb(interrupted="What was computed is kept as far as it was sealed; the same command goes on from there.")
def extract(
    context: typer.Context,
    source: Annotated[
        Path,
        typer.Argument(metavar="SOURCE", help="A folder of images, one folder a class; a CSV file; tar files."),
    ],
    store: Annotated[Path, typer.Option("--output", "-o", metavar="STORE", help="The store; made if it is missing.")],
    backbone: Annotated[
        str, typer.Option(metavar="B", help="The frozen network; `featcache models` lists them.")
    ] = "bundled:efficientnet_lite0",
    weights: Weights = None,
    layers: Layers = None,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="Use only N images, all classes alike.")] = None,
    views: Annotated[
        int,
        typer.Option(
            min=1, metavar="K", help="Versions of each image: K - 1 of them cut, mirrored, coloured at random."
        ),
    ] = 1,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Seed of the views; another one gives others.")] = 0,
    device: Device = None,
    runtime: Runtime = "auto",
    precision: Precision = "float32",
    batch_size: Annotated[int | None, typer.Option(min=1, metavar="N", help="Images in one pass.")] = None,
    workers: Annotated[int | None, typer.Option(min=0, metavar="N", help="Threads; by default one a core.")] = None,
    dtype: Annotated[str | None, typer.Option(metavar="float32|float16", help="How vectors are stored.")] = None,
    scaled: Annotated[
        bool, typer.Option("--scaled", help="Decode large JPEGs at a fraction of their size: quicker, vectors differ.")
    ] = False,
    labels: Annotated[
        str | None,
        typer.Option(metavar="folder|FILE|none", help="Where labels come from: folders, a CSV file."),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            metavar="folder|FILE|FRACTIONS",
            help="Where the split comes from: folders train, val, test; a CSV file; fractions: 0.8/0.2.",
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="The source's name; otherwise the folder's own.")
    ] = None,
    moved: Annotated[bool, typer.Option("--moved", help="The source of this name has a new place.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Fail if an image cannot be used.")] = False,
    image_timeout: Annotated[
        float, typer.Option(metavar="SECONDS", help="What takes longer to read goes to quarantine.")
    ] = 30.0,
    as_json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Compute the vectors of all images that the store does not have yet.

    Running it again computes only what is new: added or changed images, another layer, or more views.

    Example: featcache extract photos -o pets.fcache

    Example: featcache extract photos -o pets.fcache --layers pooled blocks.4:mean

    Example: featcache extract photos -o pets.fcache --views 4
    """
    from featcache.extraction import ExtractionInterrupted
    from featcache.extraction.extract import extract as run
    from featcache.images.sources import open_source

    try:
        report = run(
            source,
            store,
            backbone=backbone,
            layers=layer_list(context, layers) or ("pooled",),
            weights=weights,
            labels=labels,
            split=split,
            name=name,
            moved=moved,
            limit=limit,
            views=views,
            seed=seed,
            device=device,
            runtime=runtime,
            precision=precision,
            batch_size=batch_size,
            workers=workers,
            dtype=dtype,
            scaled=scaled,
            strict=strict,
            image_timeout=image_timeout,
            progress=True,
        )
    except ExtractionInterrupted as stop:
        return Answer(stop.report.to_dict() | {"interrupted": True}, _shown(stop.report, None), 130)
    called = name or open_source(source).name
    return Answer(report.to_dict() | {"interrupted": False}, _shown(report, called))


def _shown(report: ExtractReport, source: str | None) -> Callable[[], None]:
    return lambda: _show(report, source)


def _show(report: ExtractReport, source: str | None) -> None:
    """Show what was done to *source*; None after an interruption."""
    counts = {"new": report.added, "changed": report.changed, "no longer there": report.removed}
    since = ", ".join(f"{n:,} {word}" for word, n in counts.items() if n)
    screen.say(counted(report.items, "images") + (f" ({since})" if since else ""))
    several = report.views > 1
    done = f"{counted(report.computed, 'views')} of images" if several else f"{report.computed:,}"
    rate = "views/s" if several else "images/s"
    pace = f" at {report.images_per_second:.1f} {rate}" if report.computed else ""
    there = "there already, or copies of others" if report.computed else "there already"
    reused = counted(report.reused, "images") if several else f"{report.reused:,}"
    screen.say(f"  {done} computed{pace}, {reused} {there}")
    if source is None and report.left > 0:
        screen.say(f"  {report.left:,} still to do")
    if report.ignored:
        screen.say(f"  {counted(report.ignored, 'other files')} ignored")
    if report.quarantined:
        screen.say(f"  {report.quarantined:,} in quarantine, since they cannot be used:")
        for uri, reason in report.quarantine[:LISTED]:
            screen.say(f"    {uri}: {reason}")
        if report.quarantined > LISTED:
            rest = f"{report.quarantined - LISTED:,} more"
            screen.say(f"    … and {rest}: {screen.command('featcache', 'status', report.store)}")
    on = f" on {report.runtime}" if report.runtime else ""
    screen.say(f"  {screen.span(report.seconds)} in all, with {report.backbone}{on}")
    screen.say(f"Store: {report.store}")
    if source is None:
        screen.say("Stopped before the end. What was computed is kept; the same command goes on from here.")
    else:
        _say_next(report, source)


def _say_next(report: ExtractReport, source: str) -> None:
    """The next command, with what it needs to choose where the store holds more than this run's vectors."""
    from featcache.store import FeatureStore

    store = FeatureStore.open(report.store)
    choices: list[str] = []
    if len(store.sources()) > 1:
        choices += ["--source", source]
    if sum(bool(space.layers) for space in store.spaces) > 1:
        choices += ["--space", report.space[:12]]
    if len({item.label for item in store.items(source=source)} - {None}) < 2:
        screen.say(f"Next:  {screen.command('featcache', 'similar', report.store, 'IMAGE', *choices)}")
        screen.say("  A head needs two classes: one folder a class, or `featcache train --labels FILE` (path,label).")
        return
    layers = list(store.space(report.space).layers)
    if "pooled" not in layers and len(layers) > 1:
        choices += ["--layers", "+".join(layers)]
    head = Path(report.store).with_suffix(".fch").name
    screen.say(f"Next:  {screen.command('featcache', 'train', report.store, '-o', head, *choices)}")
