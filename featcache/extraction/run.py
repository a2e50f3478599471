"""One run of extraction: decides which images need work, and records what became of each.

- Only what is missing is computed: a file whose state on disk is unchanged is not read, known content is not decoded, a
  stored (image, layer, view) is not computed again.
- Whatever happens to one image, the others go on; it is quarantined with the reason. A later run does not try it again
  while the file is unchanged, unless the reason may be transient (time, memory, a transform that failed).
- An image with values that are not finite is quarantined for those layers and views alone: all others are stored, and
  computed when asked for, so neither batches nor the order of runs decide what is stored.
- Stopping (Ctrl-C, SIGTERM) seals what is done. The same call continues from there.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from featcache.backbones.compute import cores
from featcache.core.arguments import check_fields
from featcache.core.errors import UnusableImageError, UsageError
from featcache.core.names import VIEW_0
from featcache.core.progress import Progress, counted
from featcache.core.signals import stop_when_safe
from featcache.extraction.pipeline import Batch, Batches, Reader, ReadImage, StageTimer, is_unchanged
from featcache.extraction.worker_pool import WorkerPool
from featcache.images.formats import versions
from featcache.store.sources import Record, Rejected, SourceRecords

if TYPE_CHECKING:
    from featcache.backbones import Extractor, Layer
    from featcache.backbones.runtimes.passes import Passes
    from featcache.extraction.report import ExtractReport
    from featcache.images.augmentation import AugmentedView
    from featcache.images.entry import Entry
    from featcache.store.writer import SpaceWriter

_SAVE_EVERY = 1000
_AHEAD = 4
"""Batches that are read ahead: for so long a slow image does not hold up the other threads."""
_CATALOGUE_BYTES = 600
"""Roughly what each image adds to the catalogue and its backup."""

IMAGE_TIMEOUT = 30.0


@dataclass(frozen=True, slots=True)
class ExtractionConfig:
    """How an extraction runs; the defaults suit nearly all.

    Attributes:
        batch_size: images per forward pass; by default what the runtime is best with.
        workers: threads that read, decode and, in OpenVINO, compute; by default one per core.
        dtype: ``float32`` or ``float16`` storage; by default float32 for vectors and float16 for whole activation maps.
            Asking for float32 recomputes what is stored as float16.
        moved: the source of this name has moved: take its new root.
        strict: raise at the first image that cannot be used.
        image_timeout: seconds that one image may take to be read, decoded and transformed. One that takes longer is
            quarantined, and the next run tries it again.
        device, runtime: of networks that are given by name or that the store remembers, as for
            ``featcache.backbones.get``.

    Raises:
        UsageError: a batch size or a number of workers below 1, or a timeout that is not above 0.

    Example:
        ``fc.extract("photos", "pets.fcache", config=fc.ExtractionConfig(batch_size=64, strict=True))``
    """

    batch_size: int | None = None
    workers: int | None = None
    dtype: str | None = None
    moved: bool = False
    strict: bool = False
    image_timeout: float = IMAGE_TIMEOUT
    device: str | None = None
    runtime: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.image_timeout > 0:
            raise UsageError(f"image_timeout is a number of seconds above 0, not {self.image_timeout}.")
        for option, number in (("batch_size", self.batch_size), ("workers", self.workers)):
            if number is not None and number < 1:
                raise UsageError(f"{option} is a whole number from 1 on, not {number}.")


class Run:
    """One extraction of one source with one backbone.

    Args:
        network: the backbone.
        layers: the layers asked for, in network order.
        records: the source's records in the catalogue.
        views: the views asked for beside view 0.
        asked: the (layer, view) asked for; by default all layers in all views.
        space: where the vectors go; the layers are declared there, in all views.
        report: filled as the run goes on.
        config: how it runs.
    """

    def __init__(
        self,
        network: Extractor,
        layers: Sequence[Layer],
        records: SourceRecords,
        space: SpaceWriter,
        report: ExtractReport,
        *,
        views: Sequence[AugmentedView] = (),
        asked: Collection[tuple[str, str]] | None = None,
        config: ExtractionConfig,
    ) -> None:
        self.network, self.records, self.space, self.report = network, records, space, report
        self.layers = {layer.name: layer for layer in layers}
        self.views = views
        self.config = config
        self.stopped = False
        self.narrow = 0
        """Images that were decoded and are `Decoded.is_narrow`."""
        self.timer = StageTimer()
        self._at_least = "float32" if config.dtype == "float32" else "float16"
        # Another release of either may read what this one refuses, and so may other settings.
        self._versions = versions()
        if network.quarantine_key:
            self._versions += f"; {network.quarantine_key}"
        every = {(name, view) for name in self.layers for view in (VIEW_0, *(view.name for view in views))}
        self._asked = every if asked is None else set(asked)
        self._known = records.known()
        self._before = records.rejected(space.id, self._versions)
        self._non_finite_before = {
            r.sha256: r.columns for r in self._before.values() if r.sha256 is not None and r.columns
        }
        self._unusable = records.unusable() & self._before.keys()
        self._new: dict[str, str] = {}
        self._judged: set[str] = set()
        self._rejected: dict[str, Rejected] = {}
        self._non_finite: dict[str, tuple[Record, set[tuple[str, str]]]] = {}
        self._transient: dict[bytes, str] = {}
        self._shape: tuple[int, ...] | None = None
        self._duplicates: list[Record] = []
        # An image is recorded once its vectors are sealed: until then a kill leaves it among those to do.
        self._computing: dict[str, Record] = {}
        self._computed: list[Record] = []
        self._unsaved: list[Record] = []
        self._settled: list[Record] = []
        self._todo = self._complete = 0

    def forget_removed(self, scanned: set[str], incomplete: Sequence[str] = (), within: Sequence[str] = ("",)) -> None:
        """Remove images from the catalogue that the source does not list any more.

        Args:
            scanned: the URIs it lists.
            incomplete: prefixes of URIs of which it could not list all; no image there is removed.
            within: prefixes of the URIs that it looked at; no image elsewhere is removed.
        """
        seen, unseen = tuple(within), tuple(incomplete)

        def missed(uris: set[str]) -> set[str]:
            # With its slash, a tar file that is itself in quarantine is within what it holds.
            return {uri for uri in uris - scanned if f"{uri}/".startswith(seen) and not f"{uri}/".startswith(unseen)}

        gone = missed(set(self._known))
        self.records.remove(gone)
        self._judged |= gone | missed(self.records.in_quarantine(self.space.id))
        for uri in self._judged:
            self._before.pop(uri, None)
        self.report.removed = len(gone - self._unusable)

    def over(self, entries: Sequence[Entry], passes: Passes, workers: int, progress: Progress) -> None:
        """Go through the source; afterwards `stopped` tells whether somebody asked to stop."""
        todo = self._settle_unchanged(entries)
        self._todo = len(todo)
        progress.start("extract", len(entries), "images")
        progress.advance(len(entries) - len(todo))
        reader = Reader(
            self.network, list(self.layers), self.space, views=self.views, asked=self._asked,
            at_least=self._at_least, seconds=self.config.image_timeout, timer=self.timer,
        )  # fmt: skip
        began, batch_size = time.monotonic(), passes.batch_size
        with stop_when_safe() as stop, WorkerPool(workers, self.config.image_timeout) as pool:
            batches = Batches(passes, self.layers, pool, in_flight=min(workers, cores()) + 1, timer=self.timer)
            batch: Batch = []
            # All views of an image are made at one time, so fewer images fill as much memory.
            ahead = max(_AHEAD * batch_size // (1 + len(self.views)), 2 * workers)
            with closing(reader.read(todo, pool, ahead, lambda: stop.asked)) as images:
                for image in images:
                    for view in self._settle(image):
                        batch.append((image, view))
                        if len(batch) >= batch_size:
                            self._compute(batches, batch, progress)
                            batch, batch_size = [], passes.batch_size  # another one where torch had to be taken
                    with self.timer.measured("write"):
                        self.space.seal_aged()
                        self._save_sealed()
                    progress.advance()
                    if stop.asked:
                        break
                self.stopped = stop.asked
                if batch and (batches.started or not self.stopped):  # after Ctrl-C no network is loaded
                    self._compute(batches, batch, progress)
                self._store(batches, all_of_them=True)
        if self.report.computed:
            self.report.runtime = passes.runtime
            seconds = time.monotonic() - began - self.timer.seconds()["prepare"]
            self.report.images_per_second = self.report.computed / max(seconds, 1e-3)  # stages are given in ms

    def finish(self) -> None:
        """Seal and record what was done, however the run ended."""
        with self.timer.measured("write"):
            self.space.seal()
            self._save_sealed()
        for record, columns in self._non_finite.values():
            self._book(self._not_finite(record.uri, record.sha256, columns))
        rejected = {r.sha256: r for r in self._rejected.values() if r.sha256 is not None}
        missing = self._missing({record.sha256 for record in self._duplicates})
        for record in self._duplicates:
            if record.sha256 in rejected:
                self._book(replace(rejected[record.sha256], uri=record.uri))
            elif record.sha256 in self._transient:
                self._book(Rejected(record.uri, None, self._transient[record.sha256]))
            elif record.sha256 in missing:
                self._settled = [one for one in self._settled if one is not record]
                self._judged.discard(record.uri)  # the run ended before the image with the same bytes had its turn
            else:
                self.report.reused += 1
        self._duplicates = []
        kinds = list(self._new.values())
        self.report.added, self.report.changed = kinds.count("added"), kinds.count("changed")
        self.report.left = self.report.items - self.report.reused - self.report.quarantined - self._complete
        self._keep_non_finite_before()
        self.records.quarantine(self.space.id, self._versions, list(self._rejected.values()), among=self._judged)
        self._unsaved += self._settled
        self._settled = []
        self._save()

    def _keep_non_finite_before(self) -> None:
        """Keep layers and views in quarantine that earlier runs found not finite and this one did not ask for."""
        for uri, before in self._before.items():
            rest = before.columns - self._asked
            now = self._rejected.get(uri)
            if uri in self._judged and rest and (now is None or now.columns):
                columns = rest | (now.columns if now else frozenset())
                self._rejected[uri] = self._not_finite(uri, before.sha256, columns)

    def room_needed(self) -> str:
        """For the message when the disk is full: how much is stored, and how much space the rest needs."""
        views = 1 + len(self.views)
        rows = max(views * self._todo - self.space.sealed, 0)
        needed, left = rows * (self.space.row_bytes + _CATALOGUE_BYTES), -(-rows // views)
        done = f"{self.space.sealed // views:,} images of this run"
        room = f"the {left:,} images left need about {needed / 1e6:,.1f} MB more" if self.space.row_bytes else ""
        return (
            f"What was sealed is kept ({done}){'; ' + room if room else ''}. "
            "Free some space and run the same command again to continue."
        )

    def _settle_unchanged(self, entries: Sequence[Entry]) -> list[Entry]:
        """Book the files that need not be read; return the others."""
        same: dict[str, Record] = {}
        todo: list[Entry] = []
        for entry in entries:
            record = self._known.get(entry.uri)
            if record is not None and is_unchanged(entry, record):
                if (record.label, record.split, record.group) != (entry.label, entry.split, entry.group):
                    record = replace(record, label=entry.label, split=entry.split, group=entry.group)
                    self._unsaved.append(record)
                same[entry.uri] = record
        missing = self._missing({record.sha256 for record in same.values()})
        for entry in entries:
            record = same.get(entry.uri)
            rejected = self._before.get(entry.uri)
            if record is None:
                todo.append(entry)
            elif rejected is not None and rejected.sha256 == record.sha256 and not rejected.columns:
                self._judged.add(entry.uri)
                self._reject(rejected)
            elif record.sha256 in missing:
                todo.append(entry)
            elif columns := self._asked & self._non_finite_before.get(record.sha256, frozenset()):
                self._judged.add(entry.uri)
                self._note_non_finite(record, columns)
            else:
                self._judged.add(entry.uri)
                self.report.reused += 1
        return todo

    def _missing(self, sha256s: set[bytes]) -> set[bytes]:
        """Those that lack a vector that could be computed."""
        wanted, nowhere = list(sha256s), frozenset[tuple[str, str]]()
        missing: set[bytes] = set()
        for name, view in self._asked:
            lacking = sha256s - self.space.present(name, view, wanted, at_least=self._at_least)
            missing |= {
                sha256 for sha256 in lacking if (name, view) not in self._non_finite_before.get(sha256, nowhere)
            }
        return missing

    def _settle(self, read: ReadImage) -> Iterable[str]:
        """Book one image; returns its views whose vectors have to be computed."""
        entry, record = read.entry, read.record
        self._judged.add(entry.uri)
        if entry.uri in self._before and (record is None or record.sha256 != self._before[entry.uri].sha256):
            del self._before[entry.uri]  # that was another image
        if record is not None:
            before = None if entry.uri in self._unusable else self._known.get(entry.uri)
            if before is None or before.sha256 != record.sha256:
                self._new[entry.uri] = "added" if before is None else "changed"
        if read.reason is not None:
            if record is None and entry.uri in self._known:
                # Its content is unknown now, so the old hash must not speak for it.
                self.records.remove([entry.uri])
            sha256 = None if record is None else record.sha256
            if read.transient and sha256 is not None:
                # With its hash in quarantine an unchanged file would not be tried again, so it goes without.
                self._transient[sha256] = read.reason
                sha256 = None
            if record is not None:
                self._settled.append(record)
            self._reject(Rejected(entry.uri, sha256, read.reason))
            return ()
        assert record is not None
        if read.duplicate:
            self._duplicates.append(record)
            self._settled.append(record)
            return ()
        self.narrow += read.is_narrow
        if not read.pixels:
            self.report.reused += 1
            self._unsaved.append(record)
            if len(self._unsaved) >= _SAVE_EVERY:
                self._save()
            return ()
        for pixels in read.pixels.values():
            self._shape = self._shape or pixels.shape
            if pixels.shape != self._shape:
                reason = f"the transform gave shape {pixels.shape}, for other images {self._shape}"
                self._settled.append(record)
                self._reject(Rejected(entry.uri, record.sha256, reason))
                return ()
        self._computing[entry.uri] = record
        return read.missing

    def _compute(self, batches: Batches, batch: Batch, progress: Progress) -> None:
        """Submit a batch, and store the vectors of those that are done."""
        batches.submit(batch)
        for note in batches.passes.notes:
            if note not in self.report.notes:
                self.report.notes.append(note)
                progress.note(note)
        self._store(batches)

    def _store(self, batches: Batches, *, all_of_them: bool = False) -> None:
        """Give the store the vectors of finished batches, but for those that are not finite."""
        for batch, vectors in batches.finished(all_of_them=all_of_them):
            groups: dict[tuple[str, tuple[str, ...]], list[int]] = {}
            done: list[Record] = []
            for row, (image, view) in enumerate(batch):
                assert image.record is not None
                missing = image.missing[view]
                finite = tuple(name for name in missing if np.isfinite(vectors[name][row]).all())
                if finite:
                    groups.setdefault((view, finite), []).append(row)
                if finite != missing:
                    self._note_non_finite(image.record, {(name, view) for name in missing if name not in finite})
                is_last = view == next(reversed(image.missing))
                if is_last and (record := self._computing.pop(image.record.uri, None)) is not None:
                    done.append(record)
                self._complete += is_last and image.record.uri not in self._non_finite
            for (view, finite), rows in groups.items():
                sha256s = [record.sha256 for row in rows if (record := batch[row][0].record) is not None]
                with self.timer.measured("write"):
                    self.space.append(sha256s, {(name, view): vectors[name][rows] for name in finite})
                self.report.computed += len(rows)
            self._computed += done
            self._save_sealed()

    def _save_sealed(self) -> None:
        """Record the images whose vectors are on the disk."""
        if self._computed and self.space.is_sealed:
            self._unsaved += self._computed
            self._computed = []
            self._save()

    def _note_non_finite(self, record: Record, columns: Iterable[tuple[str, str]]) -> None:
        """Note layers and views of an image that are not finite; it is booked when all are known."""
        self._non_finite.setdefault(record.uri, (record, set()))[1].update(columns)
        if self.config.strict:
            self._raise(self._not_finite(record.uri, record.sha256, self._non_finite[record.uri][1]))

    def _not_finite(self, uri: str, sha256: bytes | None, columns: Iterable[tuple[str, str]]) -> Rejected:
        non_finite = frozenset(columns)
        layers = [name for name in self.layers if any(name == layer for layer, _ in non_finite)]
        layers += sorted({layer for layer, _ in non_finite}.difference(layers))
        views = {view for _, view in non_finite}
        where = " and ".join(layers) + ("" if views == {VIEW_0} else f" in {counted(len(views), 'views')}")
        reason = f"the backbone {self.network.name} gives values that are not finite at {where}"
        return Rejected(uri, sha256, reason, non_finite)

    def _book(self, rejected: Rejected) -> None:
        self._rejected[rejected.uri] = rejected
        if not rejected.columns or rejected.columns >= self._asked:
            self._new.pop(rejected.uri, None)  # what cannot be used is no item
        self.report.quarantined += 1
        self.report.quarantine.append((rejected.uri, rejected.reason))

    def _reject(self, rejected: Rejected) -> None:
        self._book(rejected)
        if self.config.strict:
            self._raise(rejected)

    def _raise(self, rejected: Rejected) -> NoReturn:
        raise UnusableImageError(
            f"{rejected.uri}: {rejected.reason}. Without --strict it is quarantined and the run continues."
        )

    def _save(self) -> None:
        self.records.save(self._unsaved)
        self._unsaved = []
