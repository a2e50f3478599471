"""Entries to vectors: images are read, hashed and decoded ahead, and run through the network in batches.

- An image's bytes are read once; the hash and the pixels come from the same buffer, so no vector can be stored under
  the hash of other bytes. Of images with the same bytes one claims them and is decoded; from the moment an image is
  given up as too slow its thread can claim nothing any more.
- Where the runtime allows it, a batch is computed by one of the threads that read the images, on one core, before that
  thread reads any more. So every core always either decodes or computes, and there are never more threads at work
  than cores. Else (torch) a batch is computed at once by whoever submits it, while the threads read ahead.
"""

from __future__ import annotations

import functools
import hashlib
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from featcache.core.errors import TransientImageError, UnusableImageError
from featcache.core.names import VIEW_0
from featcache.core.recipe import StandardTransform
from featcache.extraction.worker_pool import Job, WorkerPool, in_order
from featcache.images.decode import Decoded
from featcache.images.entry import FileStat, pixels_sha256
from featcache.store.sources import Record

if TYPE_CHECKING:
    from featcache.backbones import Extractor, Layer
    from featcache.backbones.runtimes.passes import Passes
    from featcache.images.augmentation import AugmentedView
    from featcache.images.entry import Entry
    from featcache.store.writer import SpaceWriter

_RACY_NS = 2_000_000_000
STAGES = ("read", "hash", "decode", "forward", "write", "prepare")


@dataclass(frozen=True, slots=True)
class ReadImage:
    """One image after a thread has read it.

    Attributes:
        entry: as the source lists it.
        record: as the catalogue keeps it; None where the bytes could not be read, or not in time.
        missing: the layers of which it has no vector, by view, view 0 first.
        pixels: the network's input, by view; a batch takes it away when it is computed.
        reason: why the image cannot be used.
        transient: whether the reason (time, memory, a transform that failed) says little of the file: another run may
            try again.
        duplicate: whether another image of this run has the same bytes and was read before.
        is_narrow: whether it was decoded and is `Decoded.is_narrow`.
    """

    entry: Entry
    record: Record | None
    missing: dict[str, tuple[str, ...]] = field(default_factory=dict)
    pixels: dict[str, np.ndarray] = field(default_factory=dict)
    reason: str | None = None
    transient: bool = False
    duplicate: bool = False
    is_narrow: bool = False


Batch: TypeAlias = list[tuple[ReadImage, str]]
"""Images with the view that is to be computed."""
Vectors: TypeAlias = dict[str, np.ndarray]
"""By layer, (images of a batch, …) float32."""


class StageTimer:
    """Seconds that threads spend in each of `STAGES`; several threads at one time count several times.

    ``decode`` is from bytes to the network's input, ``write`` the store's part, ``prepare`` the loading, converting and
    checking of the network.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds = dict.fromkeys(STAGES, 0.0)

    @contextmanager
    def measured(self, stage: str) -> Iterator[None]:
        """Count the time in this block as that of *stage*."""
        began = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - began
            with self._lock:
                self._seconds[stage] += spent

    def seconds(self) -> dict[str, float]:
        """Seconds of each stage so far."""
        with self._lock:
            return {stage: round(spent, 3) for stage, spent in self._seconds.items()}


class Reader:
    """Turns entries into `ReadImage`.

    Args:
        network: prepares the pixels.
        layers: names of the layers asked for.
        space: knows what is stored.
        views: the views asked for beside view 0.
        asked: the (layer, view) asked for.
        at_least: ``float32`` counts vectors stored as float16 as missing.
        seconds: how long one image may take.
        timer: is told of the time.
    """

    def __init__(
        self,
        network: Extractor,
        layers: Sequence[str],
        space: SpaceWriter,
        *,
        views: Sequence[AugmentedView] = (),
        asked: Collection[tuple[str, str]],
        at_least: str,
        seconds: float,
        timer: StageTimer,
    ) -> None:
        self.network, self.layers, self.seconds, self.timer = network, layers, seconds, timer
        self.views: dict[str, AugmentedView | None] = {VIEW_0: None, **{view.name: view for view in views}}
        self._asked = asked
        self._space, self._at_least = space, at_least
        self._transform = network.recipe.pixels.transform
        self._claimed: set[bytes] = set()
        self._claiming = threading.Lock()

    def read(
        self, entries: Sequence[Entry], pool: WorkerPool, ahead: int, stopped: Callable[[], bool]
    ) -> Generator[ReadImage, None, None]:
        """Yield one `ReadImage` per entry, in order, with at most *ahead* images waiting, until *stopped*."""
        return in_order(pool, (_Reading(self, entry) for entry in entries), ahead=ahead, stopped=stopped)

    def claim(self, reading: _Reading, record: Record) -> bool:
        """Whether *reading* is the first with these bytes; that of an image given up never is."""
        with self._claiming:
            if reading.given_up or record.sha256 in self._claimed:
                return False
            self._claimed.add(record.sha256)
            reading.claimed = record
            return True

    def give_up(self, reading: _Reading) -> Record | None:
        """Let *reading* claim nothing from now on; returns what it has claimed."""
        with self._claiming:
            reading.given_up = True
            return reading.claimed

    def missing(self, sha256: bytes) -> dict[str, tuple[str, ...]]:
        """The views of which this image lacks vectors, with the layers of which it does."""
        missing = {
            view: tuple(
                name
                for name in self.layers
                if (name, view) in self._asked
                and not self._space.present(name, view, [sha256], at_least=self._at_least)
            )
            for view in self.views
        }
        return {view: layers for view, layers in missing.items() if layers}

    def pixels(self, image: Decoded, view: str, sha256: bytes) -> np.ndarray:
        """One view of an image as the network's input."""
        augmented = self.views[view]
        if augmented is None:
            return self.network.prepare(image, sha256)
        transform = self._transform
        assert isinstance(transform, StandardTransform)
        return augmented.pixels(image.image, transform, sha256, image.box)


class _Reading:
    """One entry's way through a thread; a `Task`."""

    def __init__(self, reader: Reader, entry: Entry) -> None:
        self.reader, self.entry = reader, entry
        self.given_up = False
        self.claimed: Record | None = None

    def do(self) -> ReadImage:
        entry, reader, indexed_ns = self.entry, self.reader, time.time_ns()
        try:
            sha256, stat, decode = self._read()
        except UnusableImageError as error:
            return ReadImage(entry, None, reason=str(error))
        except BaseException as error:  # a source given by the user may raise anything, in a thread even an exit
            return ReadImage(entry, None, reason=f"the source fails: {error!r}", transient=True)
        record = Record(
            entry.uri, sha256, entry.label, entry.split, entry.group,
            stat.size, stat.mtime_ns, stat.ctime_ns, stat.inode, indexed_ns,
        )  # fmt: skip
        if not reader.claim(self, record):
            return ReadImage(entry, record, duplicate=True)
        missing = reader.missing(sha256)
        if not missing:
            return ReadImage(entry, record)
        try:
            with reader.timer.measured("decode"):
                image = decode()
                pixels = self._pixels(image, missing, sha256)
                return ReadImage(entry, record, missing, pixels, is_narrow=image.is_narrow)
        except UnusableImageError as error:
            return ReadImage(entry, record, reason=str(error), transient=isinstance(error, TransientImageError))

    def _pixels(self, image: Decoded, views: Iterable[str], sha256: bytes) -> dict[str, np.ndarray]:
        try:
            return {view: self.reader.pixels(image, view, sha256) for view in views}
        except UnusableImageError:
            raise
        except BaseException as error:  # a transform given by the user may raise anything, in a thread even an exit
            raise TransientImageError(f"the transform failed: {error!r}") from error

    def cancel(self) -> ReadImage:
        record = self.reader.give_up(self)
        reason = f"it took longer than {self.reader.seconds:g} s to read and decode"
        return ReadImage(self.entry, record, reason=reason, transient=True)

    def _read(self) -> tuple[bytes, FileStat, Callable[[], Decoded]]:
        """What identifies the image, the state of its file, and what decodes the very same content."""
        timer = self.reader.timer
        if self.entry.make_image is not None:
            with timer.measured("read"):
                image = self.entry.make_image()
            with timer.measured("hash"):
                sha256 = pixels_sha256(image)
            return sha256, FileStat(3 * image.width * image.height, 0, 0, 0), lambda: Decoded.whole(image)
        with timer.measured("read"):
            data, stat = self.entry.read()
        with timer.measured("hash"):
            sha256 = hashlib.sha256(data).digest()
        return sha256, stat, functools.partial(self.reader.network.decode, data)


class Batches:
    """Batches on their way through the network: a few at one time, their vectors handed back in order.

    Args:
        passes: computes them.
        layers: all layers that may be missing, by name in network order.
        pool: threads that compute, if *passes* allows it.
        in_flight: batches that may wait or be computed at one time; more than there are cores, so that none is idle.
        timer: is told of the time.
    """

    def __init__(
        self, passes: Passes, layers: Mapping[str, Layer], pool: WorkerPool, *, in_flight: int, timer: StageTimer
    ) -> None:
        self.passes, self._layers, self._pool, self._timer = passes, layers, pool, timer
        self._in_flight = in_flight
        self._ready: set[tuple[str, ...]] = set()
        self._submitted: deque[tuple[Batch, Job[Vectors] | Vectors]] = deque()

    @property
    def started(self) -> bool:
        """Whether the network is loaded."""
        return bool(self._ready)

    def submit(self, batch: Batch) -> None:
        """Have the layers computed that any image of the batch misses."""
        wanted = {name for image, view in batch for name in image.missing[view]}
        names = tuple(name for name in self._layers if name in wanted)
        layers = [self._layers[name] for name in names]
        if names not in self._ready:
            with self._timer.measured("prepare"):
                self.passes.ready(np.stack([image.pixels[view] for image, view in batch]), layers)
            self._ready.add(names)
        if self.passes.parallel:
            self._submitted.append((batch, self._pool.submit_urgent(lambda: self._forward(batch, layers))))
        else:
            self._submitted.append((batch, self._forward(batch, layers)))

    def finished(self, *, all_of_them: bool = False) -> Iterator[tuple[Batch, Vectors]]:
        """Hand back batches with their vectors, in the order they were submitted, until few enough are in flight."""
        left = self._in_flight if self.passes.parallel and not all_of_them else 0
        while len(self._submitted) > left:
            batch, vectors = self._submitted.popleft()
            if isinstance(vectors, Job):
                self._pool.wait_for(vectors)
                vectors = vectors.result()
            yield batch, vectors

    def _forward(self, batch: Batch, layers: Sequence[Layer]) -> Vectors:
        with self._timer.measured("forward"):
            return self.passes.forward(np.stack([image.pixels.pop(view) for image, view in batch]), layers)


def is_unchanged(entry: Entry, record: Record) -> bool:
    """Whether, by the file's state, it still holds the bytes that were hashed."""
    now = entry.state()
    if now is None or now.mtime_ns != record.mtime_ns or now.ctime_ns != record.ctime_ns:
        return False
    if now.size != record.size or now.inode != record.inode:
        return False
    # A file touched just before it was read may have changed again within the clock's resolution.
    return record.indexed_ns - max(record.mtime_ns, record.ctime_ns) > _RACY_NS
