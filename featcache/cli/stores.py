"""``featcache status`` and ``export``: what a store holds, and a copy of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from featcache.cli import output as screen
from featcache.cli.command import Answer, Debug, Json, verb
from featcache.cli.options import Layers, Source, Space, Split, StorePath, layer_list
from featcache.core.progress import counted


@verb(interrupted="Nothing was changed.")
def status(store: StorePath, as_json: Json = False, debug: Debug = False) -> Answer:
    """Show what a store holds.

    Example: featcache status pets.fcache
    """
    from featcache.store import FeatureStore

    opened = FeatureStore.open(store)
    found = opened.status()
    return Answer(found, lambda: _show_status(found))


@verb(interrupted="The file was not written.")
def export(
    context: typer.Context,
    store: StorePath,
    file: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="A file .h5 or .npz.")],
    split: Split = None,
    layers: Layers = None,
    source: Source = None,
    space: Space = None,
    as_json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Write vectors and labels to one plain HDF5 or NumPy file.

    Example: featcache export pets.fcache -o pets.h5
    """
    from featcache.store import FeatureStore

    opened = FeatureStore.open(store)
    made = opened.export(file, split=split, layers=layer_list(context, layers) or None, source=source, space=space)
    return Answer(made, lambda: _show_export(made))


def _show_status(found: dict[str, Any]) -> None:
    screen.say(f"{found['items']:,} items, {found['quarantined']:,} in quarantine")
    for source in found["sources"]:
        origin = f"from {source['root']}" if source["root"] else "given in memory"
        screen.say(f"Source {source['name']}: {source['items']:,} items {origin}")
        for bad in found["quarantine"]:
            if bad["source"] == source["name"]:
                screen.say(f"  cannot be used: {bad['uri']}: {bad['reason']}")
    if not found["spaces"]:
        screen.say("No vectors yet.")
        return
    screen.table(
        ["space", "backbone", "layers", "views", "vectors", "size"],
        [
            (
                space["fingerprint"][:12],
                "\n".join(filter(None, [space["backbone"], space["differs"]])),
                "\n".join(space["layers"]),
                "\n".join(filter(None, [f"{len(space['views']):,}", _seeds(space["seeds"])])),
                f"{space['rows']:,}",
                screen.size(space["bytes"]),
            )
            for space in found["spaces"]
        ],
        right=["views", "vectors", "size"],
    )


def _seeds(seeds: list[int]) -> str:
    return f"{'seeds' if len(seeds) > 1 else 'seed'} {', '.join(map(str, seeds))}" if seeds else ""


def _show_export(made: dict[str, Any]) -> None:
    screen.say(f"{made['n']:,} vectors of length {made['d']:,} ({' + '.join(made['layers'])})")
    if made["views_left_out"]:
        screen.say(f"  of view 0 alone; {counted(made['views_left_out'], 'other views')} stay in the store")
    screen.say(f"File: {made['path']}")
