"""``featcache verify``, ``repair``, ``compact`` and ``gc``: what keeps a store sound and small.

``featcache status`` and ``export``: what a store holds, and a copy of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featcache.cli import output
from featcache.cli.command import Answer, Debug, Force, Json, command
from featcache.cli.options import Layers, Sources, Space, Split, StorePath, layer_list, selected
from featcache.core.names import seeds
from featcache.core.outputs import VECTORS
from featcache.core.progress import counted
from featcache.core.visible import visible

if TYPE_CHECKING:
    from featcache.store.compact import CompactReport
    from featcache.store.gc import GcReport
    from featcache.store.repair import RepairReport
    from featcache.store.verify import VerifyReport

_WIDTH = 80
_LINES = 3
"""Lines of `featcache status` that name the classes of a source."""


@command(interrupted="Nothing was changed; the check was not finished.")
def verify(
    store: StorePath,
    quick: Annotated[bool, typer.Option("--quick", help="Do not read the vectors: no hashes, no values.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Check a store against its checksums. Damage ends with exit code 1; nothing is changed.

    Example: featcache verify pets.fcache
    """
    from featcache.store.verify import verify as run

    report = run(store, quick=quick, progress=True)
    return Answer(report.to_dict(), lambda: _show_verify(report, str(store), quick), 0 if report.ok else 1)


@command(interrupted="What was repaired so far stays so; run the same command again.")
def repair(store: StorePath, as_json: Json = False, debug: Debug = False) -> Answer:
    """Set damaged parts of a store aside, take the backup of a lost catalogue, save what can be saved.

    Nothing is deleted: damaged files go to STORE/damaged. `featcache extract` computes what is missing then.

    Example: featcache repair pets.fcache
    """
    from featcache.store.repair import repair as run

    report = run(store, progress=True)
    return Answer(report.to_dict(), lambda: _show_repair(report))


@command(interrupted="What was merged so far stays so; run the same command again.")
def compact(store: StorePath, as_json: Json = False, debug: Debug = False) -> Answer:
    """Merge small shards, and free the room of vectors that `featcache gc` took away.

    Example: featcache compact pets.fcache
    """
    from featcache.store.compact import compact as run

    report = run(store, progress=True)
    return Answer(report.to_dict(), lambda: _show_compact(report), 1 if report.damaged else 0)


@command(interrupted="Nothing was taken away.")
def gc(
    context: typer.Context,
    store: StorePath,
    space: Space = None,
    layers: Layers = None,
    source: Annotated[
        str | None, typer.Option(metavar="NAME", help="Forget this source, with the vectors that no other one needs.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do it; without it, only say what would be done.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Do it even if a source is absent or more than half gone.")
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Take away vectors of images that no source holds any more; or all of a space, of layers, or of a source.

    It only says what it would do, unless told --yes. The sources memory and paths, of images that were given
    in Python, lose images only when they are named with --source.

    Example: featcache gc pets.fcache

    Example: featcache gc pets.fcache --layers blocks.4:mean --yes
    """
    from featcache.store.gc import gc as run

    chosen = layer_list(context, layers) or None
    report = run(store, space=space, layers=chosen, source=source, apply=yes, force=force)
    return Answer(report.to_dict(), lambda: _show_gc(report))


def _show_verify(report: VerifyReport, store: str, quick: bool) -> None:
    state = (
        "DAMAGED" if not report.ok else "in order, as far as can be told without reading them" if quick else "all whole"
    )
    output.say(f"{counted(report.shards, 'shards')}, {counted(report.rows, 'vectors')}: {state}")
    for damage in report.damaged:
        output.say(f"  {damage['shard']}: {damage['problem']}")
    if report.unnamed:
        files = counted(len(report.unnamed), "shard files")
        output.say(f"{files} not in the catalogue; a repair adopts what is whole.")
    if report.damaged or report.unnamed:
        output.say(f"Next:  {output.command('featcache', 'repair', store)}")


def _show_repair(report: RepairReport) -> None:
    from featcache.core.names import GIVEN, IN_PYTHON

    if not report.changed:
        output.say("Nothing had to be repaired.")
        return
    output.say(f"Catalogue: {report.catalogue}; its backup: {report.backup}")
    if report.catalogue == "made anew":
        output.say("  Labels, names and splits come back when `featcache extract` runs again on each source.")
    if report.lost:
        output.say(f"{counted(len(report.lost), 'shards')} taken out, with {counted(report.rows_lost, 'vectors')}:")
        for shard in report.lost:
            output.say(f"  {shard['shard']}: {shard['reason']}")
    if report.adopted:
        output.say(f"{counted(report.adopted, 'vectors')} taken back in from shards that the catalogue did not name")
    if report.set_aside:
        output.say("Set aside (delete them when you no longer want to look into them):")
        for file in report.set_aside:
            output.say(f"  {Path(report.store) / file['file']}")
    for lack in report.to_compute:
        if lack["source"] in GIVEN or lack["root"].startswith(IN_PYTHON):
            output.say(f"{lack['images']:,} images given in Python are computed again when they are given again.")
            continue
        command = output.command("featcache", "extract", lack["root"], "-o", report.store, "--name", lack["source"])
        output.say(f"{counted(lack['images'], 'images')} to compute again ({lack['layer']}):  {command}")


def _show_compact(report: CompactReport) -> None:
    output.say(
        f"{counted(report.shards_before, 'shards')}, {output.size(report.bytes_before)} → "
        f"{counted(report.shards_after, 'shards')}, {output.size(report.bytes_after)}"
    )
    if report.damaged:
        output.say(f"Left alone, as they are damaged: {', '.join(report.damaged)}")
        output.say(f"Next:  {output.command('featcache', 'repair', report.store)}")


def _show_gc(report: GcReport) -> None:
    for note in report.notes:
        output.say(note)
    if report.forgotten:
        output.say(
            f"{report.forgotten:,} images {'are' if report.applied else 'would be'} forgotten with their source."
        )
    if not report.vectors and not report.forgotten:
        output.say(f"No vectors to take away; {report.kept:,} are in use.")
        _show_former(report)
        return
    output.table(
        ["space", "backbone", "layer", "vectors"],
        [(e["fingerprint"][:12], e["backbone"], e["layer"], f"{e['vectors']:,}") for e in report.layers],
        right=["vectors"],
    )
    done = "taken away" if report.applied else "would be taken away"
    taken = f"{counted(report.vectors, 'vectors')} {done}, {report.kept:,} stay"
    output.say(f"{taken}; {output.size(report.bytes)} of disk")
    _show_former(report)
    for source in report.doubtful:
        output.say(f"  {source['source']}: {source['reason']}")
    if not report.applied:
        output.say("Nothing was changed. To apply, add --yes" + (" --force" if report.doubtful else ""))
    elif report.bytes_in_part:
        command = output.command("featcache", "compact", report.store)
        output.say(f"Next:  {command}  (frees about {output.size(report.bytes_in_part)} more)")


def _show_former(report: GcReport) -> None:
    if report.former:
        output.say(f"The former catalogue {'was removed' if report.applied else 'goes with --yes'}: {report.former}")


@command(interrupted="Nothing was changed.")
def status(store: StorePath, as_json: Json = False, debug: Debug = False) -> Answer:
    """Show what a store holds: images, classes and splits of each source, layers and views of each space.

    Example: featcache status pets.fcache
    """
    from featcache.store import FeatureStore

    opened = FeatureStore.open(store)
    found = opened.status()
    return Answer(found, lambda: _show_status(found))


@command(interrupted="The file was not written.", writes={"file": VECTORS})
def export(
    context: typer.Context,
    store: StorePath,
    file: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="A file .h5 or .npz.")],
    split: Split = None,
    layers: Layers = None,
    source: Sources = None,
    space: Space = None,
    force: Force = False,
    as_json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Write vectors and labels to one plain HDF5 or NumPy file.

    Example: featcache export pets.fcache -o pets.h5
    """
    from featcache.store import FeatureStore

    opened = FeatureStore.open(store)
    incomplete = [
        note for name in opened.source_names(selected(source)) for note in opened.incomplete(name, space=space)
    ]
    made = opened.export(
        file, split=split, layers=layer_list(context, layers) or None, source=selected(source), space=space, force=force
    )
    made["incomplete"] = incomplete
    return Answer(made, lambda: _show_export(made))


def _show_status(found: dict[str, Any]) -> None:
    in_part = len({(bad["source"], bad["uri"]) for bad in found["quarantine"]}) - found["quarantined"]
    output.say(
        f"{counted(found['items'], 'items')}{f' ({in_part:,} used in part)' if in_part else ''}"
        f", {found['quarantined']:,} in quarantine"
        + (f", {found['pending']:,} not extracted yet" if found["pending"] else "")
    )
    for source in found["sources"]:
        origin = f"from {source['root']}" if source["root"] else "given in memory"
        output.say(f"Source {source['name']}: {source['items']:,} items {origin}")
        _show_numbers(("class", "classes"), source["classes"], source["items"])
        _show_numbers(("split", "splits"), source["splits"], source["items"])
        for lack in found["incomplete"]:
            if lack["source"] == source["name"]:
                output.say(f"  {lack['missing']}")
        for bad in found["quarantine"]:
            if bad["source"] == source["name"]:
                output.say(f"  cannot be used: {bad['uri']}: {bad['reason']}")
    if not found["spaces"]:
        output.say("No vectors yet.")
        return
    _show_spaces(found["spaces"])


def _show_numbers(words: tuple[str, str], numbers: dict[str, int], items: int) -> None:
    """Print names with their counts on at most `_LINES` lines; what does not fit is counted.

    Args:
        words: what they are names of, as singular and plural.
        numbers: items by name.
        items: of the source, with or without such a name.
    """
    if not numbers:
        return
    lacking = items - sum(numbers.values())
    without = f", {counted(lacking, 'items')} without" if lacking else ""
    output.say(f"  {len(numbers):,} {words[len(numbers) > 1]}{without}:")
    named = [f"{visible(name)} ({n:,})" for name, n in numbers.items()]
    lines = [[named[0]]]
    for at, one in enumerate(named[1:], 1):
        if len("    " + ", ".join([*lines[-1], one])) < _WIDTH:
            lines[-1].append(one)
        elif len(lines) < _LINES:
            lines.append([one])
        else:
            lines.append([f"… and {len(named) - at:,} more"])
            break
    for line in lines:
        output.say(f"    {', '.join(line)}")


def _show_spaces(spaces: list[dict[str, Any]]) -> None:
    rows = []
    for space in spaces:
        about = [part for part in [space["backbone"], space["differs"]] if part]
        first: list[str | list[str]] = [space["fingerprint"][:12], about]
        last = [f"{space['rows']:,}", output.size(space["bytes"])]
        for layer, views in space["layer_views"].items() or [("", [])]:
            rows.append([*first, layer, [part for part in [f"{len(views):,}", _seeds(seeds(views))] if part], *last])
            first, last = ["", ""], ["", ""]
    columns = ["space", "backbone", "layer", "views", "vectors", "size"]
    output.table(columns, rows, right=["views", "vectors", "size"])


def _seeds(found: list[int]) -> str:
    return f"{'seeds' if len(found) > 1 else 'seed'} {', '.join(map(str, found))}" if found else ""


def _show_export(made: dict[str, Any]) -> None:
    output.say(f"{made['n']:,} vectors of length {made['d']:,} ({' + '.join(made['layers'])})")
    if made["views_left_out"]:
        output.say(f"  of view 0 alone; {counted(made['views_left_out'], 'other views')} stay in the store")
    for sentence in made["incomplete"]:
        output.say(f"Warning: {sentence}")
    output.say(f"File: {made['path']}")
