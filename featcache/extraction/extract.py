"""`extract`: the vectors of all images of a source, each computed once."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from featcache.backbones.compute import cores
from featcache.backbones.runtimes import passes_for
from featcache.core.arguments import checked
from featcache.core.errors import DiskFullError, UsageError
from featcache.core.labels import contradictions, doubts
from featcache.core.names import GIVEN, VIEW_0
from featcache.core.progress import Progress, choose, counted, phase_if_slow
from featcache.core.recipe import Recipe, StandardTransform
from featcache.extraction.report import ExtractionInterrupted, ExtractReport, NothingUsableError
from featcache.extraction.run import ExtractionConfig, Run
from featcache.extraction.stored_source import KnownSource
from featcache.images.augmentation import views_beside
from featcache.images.entry import notes_of
from featcache.images.in_memory import GivenImages
from featcache.store.compact import merge_small_shards
from featcache.store.folder import has_catalogue
from featcache.store.sources import SourceRecords
from featcache.store.writer import StoreWriter

if TYPE_CHECKING:
    from featcache.backbones import Extractor
    from featcache.images.datasets import Dataset
    from featcache.images.entry import Entry, Source

DEFAULT_BACKBONE = "bundled:efficientnet_lite0"


@checked
def extract(
    source: str | Path | Source | Dataset | Mapping[str, Dataset],
    store: str | Path,
    *,
    backbone: str | Extractor = DEFAULT_BACKBONE,
    layers: Sequence[str] = ("pooled",),
    labels: str | Path | None = None,
    split: str | Path | None = None,
    name: str | None = None,
    limit: int | None = None,
    views: int = 1,
    seed: int = 0,
    config: ExtractionConfig | None = None,
    progress: Progress | bool | None = None,
) -> ExtractReport:
    """Compute and store the vectors of all images of a source that are not in the store yet.

    Args:
        source: a folder of images, a CSV manifest (``path,label,split,group``) or tar files in WebDataset layout
            (one, a pattern, or a list of paths); a torchvision or Hugging Face dataset, or several by split
            (``{"train": …, "test": …}``), see `featcache.images.datasets.DatasetSource`; or an open `Source`, for which
            *labels*, *split* and *name* are not used.
        store: the store's folder; created if missing.
        backbone: full name, a `Backbone`, or another `Extractor`. Weights, device, runtime and precision are chosen
            with ``featcache.backbones.get``.
        layers: ``pooled`` and/or ``<module path>:<mean|mean_std|none>``; a glob matches within one part of the path.
        labels: ``folder``, ``none``, or a CSV file (``path,label``).
        split: ``folder``, a CSV file (``path,split``), or fractions such as ``0.8/0.2``.
        name: the source's name; the folder's own by default. A dataset needs one.
        limit: use only so many images, spread evenly over the labels.
        views: versions per image: the image as the network's transform makes it, and ``views - 1`` random augmentations
            (`featcache.images.augmentation`), which are the same whenever they are made.
        seed: of the augmentations, from 0 on; another seed gives further views.
        config: batch size, threads, storage and time limits.
        progress: True for a bar, False for none, None for a bar on a terminal, or an object that is told.

    Raises:
        UsageError: a limit or number of views below 1, a reserved name, a dataset that has no name or cannot be a
            source, or views of a backbone whose transform is a callable or whose images are aligned first.
        ConversionError: the network does not run on the runtime asked for as it does in torch.
        FeatcacheError: dozens of images hang at one time, so the disk or the transform does.
        SourceError: the source cannot be read.
        UnknownNameError: no such backbone or layer.
        NotAStoreError: the store's path holds something else.
        DiskFullError: no room is left; what was sealed is kept, and the message says how much is needed.
        UnusableImageError: with ``strict``, an image cannot be used.
        NothingUsableError: no image could be used.
        ExtractionInterrupted: Ctrl-C or SIGTERM; what was done is kept.

    Example:
        >>> report = fc.extract("photos", "new.fcache")
        >>> report.items, report.computed
        (24, 24)
        >>> fc.extract("photos", "new.fcache").computed
        0
    """
    from featcache import backbones
    from featcache.images.sources import Source, open_source

    config = config or ExtractionConfig()
    if views < 1 or seed < 0:
        raise UsageError(f"There is 1 view or more and a seed from 0 on, not {views} views and the seed {seed}.")
    if limit is not None and limit < 1:
        raise UsageError(f"limit is a whole number from 1 on, not {limit}.")
    began, started = time.monotonic(), datetime.now(UTC)
    is_reserved = isinstance(source, (GivenImages, KnownSource))  # these alone may have a reserved name
    if isinstance(source, str | Path) and has_catalogue(Path(source)):
        raise UsageError(f"{source} is a store, not a folder of images. Give the images that it was extracted from.")
    images: Source = (
        source if isinstance(source, Source) else open_source(source, labels=labels, split=split, name=name)
    )
    if images.name in GIVEN and not is_reserved:
        raise UsageError(f"The name {images.name!r} is reserved for images given in Python. Give another: --name NAME.")
    with choose(progress) as bar:
        with phase_if_slow(bar, "list", "images"):
            listed = images.entries()
        # A source that is read again from the store was told of when it was extracted.
        notes = [] if is_reserved else [*notes_of(images), *doubts(entry.label for entry in listed)]
        for note in notes:
            bar.note(note)
        entries = limited(listed, limit)
        network: Extractor = backbones.get(backbone) if isinstance(backbone, str) else backbone
        recipe, chosen = network.recipe, network.resolve_layers(layers)
        beside = views_beside(views, seed)
        if beside:
            _check_augmentable(recipe)
        report = ExtractReport(
            str(store), recipe.fingerprint, network.name, len(entries), views, ignored=images.ignored,
            notes=notes,
        )  # fmt: skip
        with StoreWriter(Path(store)) as writer:
            records = SourceRecords(writer.catalogue, images.name, images.root, moved=config.moved)
            if records.is_new:
                for other, count in records.doubled({entry.uri for entry in listed}).items():
                    bar.note(
                        f"{counted(count, 'images')} of {images.name} are also in the source {other}. For one "
                        f"source, create the store again with --name {other}."
                    )
            space = writer.space(recipe)
            for layer in chosen:
                for view in (VIEW_0, *(view.name for view in beside)):
                    space.declare(layer.name, view, layer.position, config.dtype or layer.default_dtype)
            run = Run(network, chosen, records, space, report, views=beside, config=config)
            try:
                try:
                    run.forget_removed({entry.uri for entry in listed}, images.incomplete, images.within)
                    threads = config.workers or cores()
                    concurrency = min(threads, cores())  # more threads read a slow disk, but do not compute faster
                    passes = passes_for(
                        network, concurrency=concurrency, cores=concurrency, batch_size=config.batch_size
                    )
                    run.over(entries, passes, threads, bar)
                finally:
                    run.finish()
                    report.seconds, report.stages = time.monotonic() - began, run.timer.seconds()
                    if report.computed or report.added or report.changed or report.removed:
                        writer.record_run("extract", started, report.to_dict() | {"interrupted": run.stopped})
            except DiskFullError as error:
                raise DiskFullError(f"{error} {run.room_needed()}") from error
            if not is_reserved and (contradiction := contradictions(records.contradicting())):
                report.notes.append(contradiction)
                bar.note(contradiction)
            if report.computed and not run.stopped:
                try:
                    merge_small_shards(writer)
                except DiskFullError as error:
                    # All vectors are in the store; fewer files are only a convenience.
                    bar.note(f"Small shards were not merged: {error} `featcache compact {store}` does it later.")
    if run.stopped:
        raise ExtractionInterrupted(report)
    if report.quarantined == report.items:
        raise NothingUsableError(report)
    return report


def _check_augmentable(recipe: Recipe) -> None:
    """Refuse views where the transform is a callable or images are aligned first."""
    if recipe.detection is not None:
        raise UsageError(f"{recipe.backbone} reads aligned images, which have no views. Omit --views.")
    if not isinstance(recipe.pixels.transform, StandardTransform):
        raise UsageError(
            f"The transform of {recipe.backbone} is a callable, which cannot be applied to a view. Give a "
            "StandardTransform, or omit --views."
        )


def limited(entries: Sequence[Entry], limit: int | None) -> list[Entry]:
    """The first *limit* entries when the labels take turns; in the source's own order."""
    if limit is None or limit >= len(entries):
        return list(entries)
    seen: dict[str | None, int] = {}
    turns = []
    for place, entry in enumerate(entries):
        turn = seen.get(entry.label, 0)
        seen[entry.label] = turn + 1
        turns.append((turn, place))
    return [entries[place] for place in sorted(place for _, place in sorted(turns)[:limit])]
