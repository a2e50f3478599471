"""Reading, hashing and decoding in threads, never more than a few batches ahead.

An image's bytes are read once; the hash and the pixels come from the same buffer, so no vector can be
stored under the hash of other bytes. Of images with the same bytes one claims them and is prepared; from
the moment an image is given up as too slow its thread can claim nothing any more.
"""

from __future__ import annotations

import functools
import hashlib
import threading
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from featcache.core.errors import TransientImageError, UnusableImageError
from featcache.core.names import VIEW_0
from featcache.core.recipe import StandardTransform
from featcache.extraction.report import Stages
from featcache.extraction.threads import WorkerPool, in_order
from featcache.images.decode import Decoded
from featcache.images.entry import FileStat, pixels_sha256
from featcache.store.sources import Record
from featcache.store.writer import SpaceWriter

if TYPE_CHECKING:
    from PIL.Image import Image

    from featcache.backbones import Extractor
    from featcache.images.augmentation import AugmentedView
    from featcache.images.sources import Entry


@dataclass(frozen=True, slots=True)
class Picture:
    """One view of one image, of which vectors are to be computed."""

    record: Record
    view: str
    missing: tuple[str, ...]
    """Layers of which this view of the image has no vector."""
    pixels: np.ndarray
    """The network's input."""
    last: bool
    """Whether it is the last one of its image."""


@dataclass(frozen=True, slots=True)
class ReadImage:
    """One image after a worker had it."""

    entry: Entry
    record: Record | None
    """None where the bytes could not be read, or not in time."""
    pictures: tuple[Picture, ...] = ()
    """Its views of which vectors are missing."""
    reason: str | None = None
    """Why the image cannot be used."""
    passing: bool = False
    """Whether the reason (time, memory, a transform that failed) says little of the file: another run may try again."""
    duplicate: bool = False
    """Whether another image of this run has the same bytes and was read before."""


class Reader:
    """Turns files into `ReadImage`.

    Args:
        network: prepares the pixels.
        layers: names of the layers wished for.
        views: the views wished for beside view 0.
        space: tells what is stored.
        at_least: ``float32`` counts vectors stored as float16 as missing.
        seconds: how long one image may take.
        stages: is told of the time.
    """

    def __init__(
        self,
        network: Extractor,
        layers: Sequence[str],
        space: SpaceWriter,
        *,
        views: Sequence[AugmentedView] = (),
        at_least: str,
        seconds: float,
        stages: Stages,
    ) -> None:
        self.network, self.layers, self.seconds, self.stages = network, layers, seconds, stages
        self.views: dict[str, AugmentedView | None] = {VIEW_0: None, **{view.name: view for view in views}}
        self._space, self._at_least = space, at_least
        self._claimed: set[bytes] = set()
        self._claiming = threading.Lock()

    def read(
        self, entries: Sequence[Entry], crew: WorkerPool, ahead: int, stopped: Callable[[], bool]
    ) -> Generator[ReadImage, None, None]:
        """Yield one `ReadImage` an entry, in order, with at most *ahead* images waiting, until *stopped*."""
        tasks = (_Reading(self, entry) for entry in entries)
        return in_order(crew, tasks, ahead=ahead, stopped=stopped)

    def claim(self, reading: _Reading, record: Record) -> bool:
        """Whether *reading* is the first with these bytes; that of an image given up is never."""
        with self._claiming:
            if reading.given_up or record.sha256 in self._claimed:
                return False
            self._claimed.add(record.sha256)
            reading.claimed = record
            return True

    def cancel(self, reading: _Reading) -> Record | None:
        """Let *reading* claim nothing from now on; returns what it has claimed."""
        with self._claiming:
            reading.given_up = True
            return reading.claimed

    def missing(self, sha256: bytes) -> dict[str, tuple[str, ...]]:
        """The views of which this image lacks vectors, with the layers of which it does."""
        lacking = {
            view: tuple(
                name for name in self.layers if not self._space.present(name, view, [sha256], at_least=self._at_least)
            )
            for view in self.views
        }
        return {view: layers for view, layers in lacking.items() if layers}

    def pixels(self, image: Image | Decoded, view: str, sha256: bytes) -> np.ndarray:
        """One view of an image as the network's input."""
        augmented = self.views[view]
        if augmented is None:
            return self.network.prepare(image, sha256)
        transform = self.network.recipe.pixels.transform
        assert isinstance(transform, StandardTransform)
        whole = image if isinstance(image, Decoded) else Decoded.whole(image)
        return augmented.pixels(whole.image, transform, sha256, whole.box)


class _Reading:
    """One image's way through a thread; a `Task`."""

    def __init__(self, reader: Reader, entry: Entry) -> None:
        self.reader, self.entry = reader, entry
        self.given_up = False
        self.claimed: Record | None = None

    def do(self) -> ReadImage:
        entry, indexed_ns = self.entry, time.time_ns()
        try:
            sha256, stat, decode = _opened(entry, self.reader.network, self.reader.stages)
        except UnusableImageError as error:
            return ReadImage(entry, None, reason=str(error))
        except BaseException as error:  # a source given by the user may raise anything, in a thread even an exit
            return ReadImage(entry, None, reason=f"the source fails: {error!r}", passing=True)
        record = Record(
            uri=entry.uri,
            sha256=sha256,
            label=entry.label,
            split=entry.split,
            group=entry.group,
            size=stat.size,
            mtime_ns=stat.mtime_ns,
            ctime_ns=stat.ctime_ns,
            inode=stat.inode,
            indexed_ns=indexed_ns,
        )
        if not self.reader.claim(self, record):
            return ReadImage(entry, record, duplicate=True)
        missing = self.reader.missing(record.sha256)
        if not missing:
            return ReadImage(entry, record)
        with self.reader.stages.measured("decode"):
            return self._prepared(record, missing, decode)

    def _prepared(
        self, record: Record, missing: dict[str, tuple[str, ...]], decode: Callable[[], Image | Decoded]
    ) -> ReadImage:
        entry, last = self.entry, list(missing)[-1]
        try:
            image = decode()
        except UnusableImageError as error:
            return self._unusable(record, error)
        try:
            pictures = tuple(
                Picture(record, view, layers, self.reader.pixels(image, view, record.sha256), view == last)
                for view, layers in missing.items()
            )
            return ReadImage(entry, record, pictures)
        except UnusableImageError as error:
            return self._unusable(record, error)
        except BaseException as error:  # a transform given by the user may raise anything, in a thread even an exit
            return ReadImage(entry, record, reason=f"the transform failed: {error!r}", passing=True)

    def _unusable(self, record: Record, error: UnusableImageError) -> ReadImage:
        passing = isinstance(error, TransientImageError)
        return ReadImage(self.entry, record, reason=str(error), passing=passing)

    def cancel(self) -> ReadImage:
        record = self.reader.cancel(self)
        reason = f"it took longer than {self.reader.seconds:g} s to read and decode"
        return ReadImage(self.entry, record, reason=reason, passing=True)


def _opened(entry: Entry, network: Extractor, stages: Stages) -> tuple[bytes, FileStat, Callable[[], Image | Decoded]]:
    """What identifies an image, the state of its file, and what makes its RGB image of the very same content."""
    if entry.picture is not None:
        with stages.measured("read"):
            picture = entry.picture()
        with stages.measured("hash"):
            sha256 = pixels_sha256(picture)
        return sha256, FileStat(3 * picture.width * picture.height, 0, 0, 0), lambda: picture
    with stages.measured("read"):
        data, stat = entry.read()
    with stages.measured("hash"):
        sha256 = hashlib.sha256(data).digest()
    return sha256, stat, functools.partial(network.decode, data)
