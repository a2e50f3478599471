"""`extract`: images into vectors, once."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from featcache.backbones.compute import cores
from featcache.backbones.runtimes import passes_for
from featcache.core.errors import DiskFullError, UsageError
from featcache.core.names import GIVEN, VIEW_0
from featcache.core.progress import Progress, choose, counted, phase_if_slow
from featcache.core.recipe import Recipe, StandardTransform
from featcache.extraction.report import ExtractionInterrupted, ExtractReport, NothingUsableError
from featcache.extraction.run import Run
from featcache.extraction.stored_source import KnownSource
from featcache.images.augmentation import views_beside
from featcache.images.in_memory import GivenImages
from featcache.store.compact import merge_small_shards
from featcache.store.sources import SourceRecords
from featcache.store.writer import StoreWriter

if TYPE_CHECKING:
    from featcache.backbones import Extractor
    from featcache.images.datasets import Dataset
    from featcache.images.entry import Entry, Source

DEFAULT_BACKBONE = "bundled:efficientnet_lite0"
IMAGE_TIMEOUT = 30.0


def extract(
    source: str | Path | Source | Dataset | Mapping[str, Dataset],
    store: str | Path,
    *,
    backbone: str | Extractor = DEFAULT_BACKBONE,
    layers: Sequence[str] = ("pooled",),
    weights: str | Path | None = None,
    labels: str | Path | None = None,
    split: str | Path | None = None,
    name: str | None = None,
    moved: bool = False,
    limit: int | None = None,
    views: int = 1,
    seed: int = 0,
    device: str | None = None,
    runtime: str = "auto",
    precision: str = "float32",
    batch_size: int | None = None,
    workers: int | None = None,
    dtype: str | None = None,
    scaled: bool = False,
    strict: bool = False,
    image_timeout: float = IMAGE_TIMEOUT,
    progress: Progress | bool | None = None,
) -> ExtractReport:
    """Compute and keep the vectors of all images of a source that are not in the store yet.

    Args:
        source: a folder of images, a CSV manifest (``path,label,split,group``) or tar files in WebDataset layout
            (one, a pattern, or a list of paths); a torchvision or Hugging Face dataset, or several by split
            (``{"train": …, "test": …}``), see `featcache.images.datasets.DatasetSource`; images given one by one; or a
            `Source` that was opened before, for which *labels*, *split* and *name* mean nothing.
        store: the store's folder, made where there is none.
        backbone: full name, a `Backbone`, or another `Extractor`.
        layers: ``pooled`` and/or ``<module path>:<mean|mean_std|none>``; globs stay within one part of
            the path.
        weights: a file of weights for the backbone instead of its published ones.
        labels: ``folder``, ``none``, or a CSV file (``path,label``).
        split: ``folder``, a CSV file (``path,split``), or fractions such as ``0.8/0.2``.
        name: the source's name; the folder's own by default. A dataset needs one.
        moved: the source of this name now lies here.
        limit: only so many images, spread evenly over the labels.
        views: versions of each image: the image as the network's transform makes it, and ``views - 1`` that are cut
            out, mirrored and coloured at random (`featcache.images.augmentation`), the same whenever they are made.
        seed: of what is random about the views, from 0 on; another seed gives further views.
        device: torch device of the backbone.
        runtime: ``openvino``, ``torch``, or ``auto`` for the fastest that proves on this run's first images that it
            agrees with eager torch.
        precision: ``float32``, or ``bfloat16`` where the processor or GPU has it; its vectors are a space of their own.
        batch_size: images in one pass; by default what the runtime is best with.
        workers: threads that read, decode and, in OpenVINO, compute; by default, and for 0, one for each core.
        dtype: ``float32`` or ``float16`` storage; by default float32 for vectors and float16 for whole
            maps. Asking for float32 computes again what is stored as float16.
        scaled: decode large JPEG photographs at half, a quarter or an eighth of their size, which is quicker and
            changes vectors a little; a recipe of its own. See `featcache.images.decode.reduction`.
        strict: raise at the first image that cannot be used.
        image_timeout: seconds that one image may take to be read, decoded and transformed. One that takes
            longer goes into quarantine, and the next run tries it again.
        progress: True for a bar, False for none, None for a bar on a terminal, or an object that is told.

    Raises:
        UsageError: a time-out that is not above 0, a limit or batch below 1, workers below 0, ``scaled`` with a
            callable transform, a name that is kept for images given in Python, a dataset that has no name or cannot
            be a source, a runtime or precision that this machine does not have, fewer views than one, or several of
            a backbone whose transform is a callable or whose images are aligned first.
        ConversionError: the network does not run on the runtime asked for as it does in torch.
        FeatcacheError: dozens of images hang at one time, so the disk or the transform does.
        SourceError: the source cannot be read as one.
        UnknownNameError: no such backbone, layer, runtime or precision.
        NotAStoreError: the store's path holds something else.
        DiskFullError: no room is left; what was sealed is kept, and the message says how much is needed.
        UnusableImageError: with ``strict``, an image cannot be used.
        NothingUsableError: no image could be used.
        ExtractionInterrupted: Ctrl-C or SIGTERM; what was done is kept.
    """
    from featcache import backbones
    from featcache.images.sources import Source, open_source

    if not image_timeout > 0:
        raise UsageError(f"An image may take a number of seconds above 0, not {image_timeout}.")
    if views < 1 or seed < 0:
        raise UsageError(f"There are 1 view or more and a seed from 0 on, not {views} views and the seed {seed}.")
    for option, number, least in (("limit", limit, 1), ("batch_size", batch_size, 1), ("workers", workers, 0)):
        if number is not None and number < least:
            raise UsageError(f"{option} is a whole number from {least} on, not {number}.")
    began, started = time.monotonic(), datetime.now(timezone.utc)
    # These may bear the names that are kept for images given in Python.
    in_part = isinstance(source, (GivenImages, KnownSource))
    images: Source = (
        source if isinstance(source, Source) else open_source(source, labels=labels, split=split, name=name)
    )
    if images.name in GIVEN and not in_part:
        raise UsageError(
            f"The name {images.name!r} is kept for images that are given in Python. Give another one: --name NAME."
        )
    with choose(progress) as shown:
        with phase_if_slow(shown, "list", "images"):
            listed = images.entries()
        entries = limited(listed, limit)
        network: Extractor
        if isinstance(backbone, str):
            network = backbones.get(backbone, weights, device, runtime=runtime, precision=precision)
        else:
            network = _running(backbone, runtime, precision)
        if scaled:
            if not isinstance(network, backbones.Backbone):
                raise UsageError(f"{network.name} decodes its images in full. Leave out scaled.")
            network = network.scaled()
        recipe, chosen = network.recipe, network.resolve_layers(layers)
        beside = views_beside(views, seed)
        if beside:
            _check_augmentable(recipe)
        report = ExtractReport(
            str(store), recipe.fingerprint, network.name, len(entries), views, ignored=images.ignored
        )  # fmt: skip
        with StoreWriter(Path(store)) as writer:
            records = SourceRecords(writer.catalogue, images.name, images.root, moved=moved)
            if records.is_new:
                for other, count in records.doubled({entry.uri for entry in listed}).items():
                    shown.note(
                        f"{counted(count, 'images')} of {images.name} are in the source {other} too. To have "
                        f"one source, make the store anew with --name {other}."
                    )
            space = writer.space(recipe)
            for layer in chosen:
                for view in (VIEW_0, *(view.name for view in beside)):
                    space.declare(layer.name, view, layer.position, dtype or layer.default_dtype)
            run = Run(
                network, chosen, records, space, report,
                views=beside, dtype=dtype, strict=strict, image_timeout=image_timeout,
            )  # fmt: skip
            try:
                try:
                    run.forget_removed({entry.uri for entry in listed}, images.incomplete, images.within)
                    threads = workers or cores()
                    concurrency = min(threads, cores())  # more threads read a slow disk, but do not compute faster
                    passes = passes_for(network, concurrency=concurrency, cores=concurrency, batch_size=batch_size)
                    run.over(entries, passes, threads, shown)
                finally:
                    run.finish()
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
                    shown.note(f"Small shards were not merged: {error} `featcache compact {store}` does it later.")
    if run.stopped:
        raise ExtractionInterrupted(report)
    if report.quarantined == report.items:
        raise NothingUsableError(report)
    return report


def _running(backbone: Extractor, runtime: str, precision: str) -> Extractor:
    """The backbone with what was asked for; what was not is left as it is."""
    from featcache import backbones

    if (runtime, precision) == ("auto", "float32"):
        return backbone
    if not isinstance(backbone, backbones.Backbone):
        raise UsageError(f"{backbone.name} has a runtime and a precision of its own. Leave both out.")
    return backbone.with_runtime(runtime=runtime, precision=precision)


def _check_augmentable(recipe: Recipe) -> None:
    """Refuse views of images whose way to the network's input is not known, or is not the image's own."""
    if recipe.detection is not None:
        raise UsageError(f"{recipe.backbone} reads aligned images, of which there are no views. Leave --views away.")
    if not isinstance(recipe.pixels.transform, StandardTransform):
        raise UsageError(
            f"The transform of {recipe.backbone} is a callable, so it is not known how it would treat a view. Give "
            "a StandardTransform, or leave --views away."
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
