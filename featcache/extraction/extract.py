"""`extract`: the vectors of all images of a source, each computed once."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from featcache.backbones.compute import cores
from featcache.backbones.extractor import held
from featcache.backbones.input_size import InputOptions, InputSize
from featcache.backbones.runtimes import passes_for
from featcache.core.arguments import checked
from featcache.core.errors import DiskFullError, UsageError
from featcache.core.labels import contradictions, doubts
from featcache.core.names import GIVEN
from featcache.core.progress import Progress, choose, counted, phase_if_slow
from featcache.extraction.report import ExtractionInterrupted, ExtractReport, NothingUsableError
from featcache.extraction.requests import DEFAULT_BACKBONE, Asked, Request, keep_asked, requests
from featcache.extraction.run import ExtractionConfig, Run
from featcache.extraction.source_settings import ToldSource, open_again, unseen
from featcache.extraction.stored_source import KnownSource
from featcache.images.decode import narrow_note
from featcache.images.entry import notes_of, unread_of
from featcache.images.in_memory import GivenImages
from featcache.store.compact import merge_small_shards
from featcache.store.feature_store import FeatureStore
from featcache.store.folder import has_catalogue
from featcache.store.sources import SourceRecords
from featcache.store.writer import StoreWriter

if TYPE_CHECKING:
    from featcache.backbones import Extractor
    from featcache.images.datasets import Dataset
    from featcache.images.entry import Entry, Source

__all__ = ["DEFAULT_BACKBONE", "extract", "limited"]

_CLASSES = 10_000
"""Of so many the catalogue remembers how many images were listed."""


@checked
def extract(
    source: str | Path | Source | Dataset | Mapping[str, Dataset],
    store: str | Path,
    *,
    backbone: str | Extractor | None = None,
    layers: Sequence[str] | None = None,
    labels: str | Path | None = None,
    split: str | Path | Mapping[str, float] | None = None,
    name: str | None = None,
    limit: int | None = None,
    views: int | None = None,
    seed: int | None = None,
    config: ExtractionConfig | None = None,
    progress: Progress | bool | None = None,
    **pixels: Unpack[InputOptions],
) -> ExtractReport:
    """Compute and store the vectors of all images of a source that are not in the store yet.

    The store remembers what it was told. A call that leaves out labels, split, backbone, layers or views goes on with
    those of earlier calls, in all spaces of the source; layers and views add to them. Another input size is another
    space, beside those that are there.

    Args:
        source: a folder of images, a CSV manifest (``path,label,split,group``) or tar files in WebDataset layout
            (one, a pattern, or a list of paths); a torchvision or Hugging Face dataset, or several by split
            (``{"train": …, "test": …}``), see `featcache.images.datasets.DatasetSource`; or an open `Source`, for which
            *labels*, *split* and *name* are not used: where it gives no labels or splits at all, those stored stay.
        store: the store's folder; created if missing.
        backbone: full name, a `Backbone`, or another `Extractor`; by default all that the store has of this source,
            in a new store ``bundled:efficientnet_lite0``. Weights, device, runtime and precision are chosen with
            ``featcache.backbones.get``.
        layers: ``pooled`` and/or ``<module path>:<mean|mean_std|none>``; a glob matches within one part of the path.
            They add to those of earlier calls, in the views that all of these have; by default ``pooled``.
        labels: ``folder``, ``none``, or a CSV file (``path,label``; images that it does not name have none); by default
            as given before.
        split: ``folder``, a CSV file (``path,split``), fractions such as ``0.8/0.2`` or ``{"train": 0.8, "test":
            0.2}``; by default as given before.
        name: the source's name; the folder's own by default. A dataset needs one.
        limit: use only so many images, spread evenly over the labels. The others stay to be done.
        views: versions per image: the image as the network's transform makes it, and ``views - 1`` random augmentations
            (`featcache.images.augmentation`), which are the same whenever they are made. More of them add to those of
            earlier calls, of all layers or of those given.
        seed: of the augmentations, from 0 on; by default that of the views there are, of several and at first 0. With
            *views*, another seed gives further ones.
        config: batch size, threads, storage and time limits.
        progress: True for a bar, False for none, None for a bar on a terminal, or an object that is told.
        **pixels: ``input_size``, the height and width that the network sees, and ``fit``, ``whole`` (the default with
            a size) or ``crop``, see `featcache.backbones.input_size.InputSize`; as published by default.

    Raises:
        UsageError: a limit or number of views below 1, a seed without views that no view has, views without a seed
            where there are those of several and none of the seed 0, a reserved name, a dataset that has no name or
            cannot be a source, or views of a backbone whose transform is a callable or whose images are aligned first.
        ConversionError: the network does not run on the runtime asked for as it does in torch.
        FeatcacheError: dozens of images hang at one time, so the disk or the transform does.
        SourceError: the source cannot be read, or a table that an earlier call was given names none of its images.
        UnknownNameError: no such backbone or layer.
        WeightsError: the weights of a module given in Python were changed meanwhile.
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
    config = config or ExtractionConfig()
    asked = Asked(backbone, layers, views, seed, config.dtype, config.device, config.runtime, InputSize(**pixels))
    if limit is not None and limit < 1:
        raise UsageError(f"limit is a whole number from 1 on, not {limit}.")
    began, stopped = time.monotonic(), False
    is_reserved = isinstance(source, (GivenImages, KnownSource))  # these alone may have a reserved name
    if isinstance(source, str | Path) and has_catalogue(Path(source)):
        raise UsageError(f"{source} is a store, not a folder of images. Give the images that it was extracted from.")
    place = Path(store).absolute()
    before = FeatureStore.open(place) if has_catalogue(place) else None
    images = open_again(source, before, labels=labels, split=split, name=name)
    if images.name in GIVEN and not is_reserved:
        raise UsageError(f"The name {images.name!r} is reserved for images given in Python. Give another: --name NAME.")
    with held(backbone), choose(progress) as bar:
        with phase_if_slow(bar, "list", "images"):
            listed = images.entries()
        # A source that is read again from the store was told of when it was extracted.
        notes = [] if is_reserved else [*notes_of(images), *doubts(entry.label for entry in listed)]
        entries = limited(listed, limit)
        chosen = requests(asked, before, images.name, notes, alone=is_reserved)
        for note in notes:
            bar.note(note)
        reports: list[ExtractReport] = []
        with StoreWriter(place) as writer:
            told = [*writer.notes]
            if writer.has_company and not is_reserved:  # a list of images is often embedded by several processes
                told.append(
                    f"Another run is writing to {store}. Each vector is stored once, but both may compute the same "
                    "images: to save that, end this run and start it again when the other is done."
                )
            notes += told
            for note in told:
                bar.note(note)
            settings: dict[str, object] = {}
            records = SourceRecords(writer.catalogue, images.name, images.root, moved=config.moved)
            if records.is_new:
                for other, count in records.doubled({entry.uri for entry in listed}).items():
                    bar.note(
                        f"{counted(count, 'images')} of {images.name} are also in the source {other}. For one "
                        f"source, create the store again with --name {other}."
                    )
            if isinstance(images, ToldSource):
                records.settled = images.by_content.settled
                records.expect(listed, unseen(images))
                counts = Counter(entry.label for entry in listed if entry.label is not None)
                settings |= images.settings
                if 0 < len(counts) <= _CLASSES:
                    settings["classes"] = dict(counts)
                records.remember(settings)
                if before is not None:
                    keep_asked(before, writer, records)
            for request in chosen:
                report = ExtractReport(
                    str(store), request.network.recipe.fingerprint, request.network.name, len(entries),
                    1 + len(request.views), ignored=images.ignored, pending=len(listed) - len(entries),
                    notes=[] if reports else notes, unread=unread_of(images),
                )  # fmt: skip
                reports.append(report)
                stopped = _run(_Job(writer, records, images, listed, entries, config, bar), request, report)
                if stopped:
                    break
            if isinstance(images, ToldSource):
                records.keep_groups(images.by_content.joined)
                if images.miss(records.known()):
                    records.remember(settings | images.settings)
                reports[0].from_file = images.from_file
                if (sentence := images.by_content.note) is not None:
                    reports[0].notes.append(sentence)
                    bar.note(sentence)
            if not is_reserved and (contradiction := contradictions(records.contradicting())):
                reports[0].notes.append(contradiction)
                bar.note(contradiction)
    first = reports[0]
    first.others, first.seconds = reports[1:], time.monotonic() - began
    if stopped:
        raise ExtractionInterrupted(first)
    if all(report.quarantined == report.items for report in reports):
        raise NothingUsableError(first)
    return first


@dataclass(frozen=True)
class _Job:
    """One source and store, for all spaces."""

    writer: StoreWriter
    records: SourceRecords
    images: Source
    listed: Sequence[Entry]
    entries: Sequence[Entry]
    config: ExtractionConfig
    bar: Progress


def _run(job: _Job, request: Request, report: ExtractReport) -> bool:
    """Bring one space up to date, and fill its report; returns whether somebody asked to stop."""
    began, started = time.monotonic(), datetime.now(UTC)
    writer, records, images, config = job.writer, job.records, job.images, job.config
    network, is_reserved = request.network, isinstance(images, (GivenImages, KnownSource))
    space = writer.space(network.recipe)
    positions = {layer.name: layer for layer in request.layers}
    for name, view in sorted(request.asked):
        layer = positions[name]
        space.declare(name, view, layer.position, request.dtype or layer.default_dtype)
    if not is_reserved:
        records.request(space.id, request.to_dict())
    run = Run(
        network, request.layers, records, space, report,
        views=request.views, asked=request.asked, config=replace(config, dtype=request.dtype),
    )  # fmt: skip
    try:
        try:
            run.forget_removed({entry.uri for entry in job.listed}, images.incomplete, images.within)
            threads = config.workers or cores()
            concurrency = min(threads, cores())  # more threads read a slow disk, but do not compute faster
            passes = passes_for(network, concurrency=concurrency, cores=concurrency, batch_size=config.batch_size)
            run.over(job.entries, passes, threads, job.bar)
        finally:
            run.finish()
            if run.narrow:
                report.notes.append(narrow_note(run.narrow))
                job.bar.note(report.notes[-1])
            report.pending += report.left
            report.seconds, report.stages = time.monotonic() - began, run.timer.seconds()
            if report.computed or report.added or report.changed or report.removed:
                writer.record_run("extract", started, report.to_dict() | {"interrupted": run.stopped})
    except DiskFullError as error:
        raise DiskFullError(f"{error} {run.room_needed()}") from error
    if report.computed and not run.stopped:
        try:
            merge_small_shards(writer)
        except DiskFullError as error:
            # All vectors are in the store; fewer files are only a convenience.
            job.bar.note(f"Small shards were not merged: {error} `featcache compact {report.store}` does it later.")
    return run.stopped


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
