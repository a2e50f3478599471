"""Reading, hashing and decoding in threads, never more than a few batches ahead.

An image's bytes are read once; the hash and the pixels come from the same buffer, so no vector can be
stored under the hash of other bytes.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from featcache.errors import UnusableImageError
from featcache.images.decode import decode_rgb
from featcache.images.reading import read_image_file
from featcache.store.source_records import Record
from featcache.store.writer import SpaceWriter

if TYPE_CHECKING:
    from featcache.backbones import Backbone
    from featcache.images.sources import Entry

VIEW_0 = "0"


@dataclass(frozen=True, slots=True)
class ReadImage:
    """One image after a worker had it."""

    entry: Entry
    record: Record | None
    """None where the bytes could not be read."""
    missing: tuple[str, ...] = ()
    """Layers of which this image has no vector."""
    pixels: np.ndarray | None = None
    """The network's input, where something is missing."""
    reason: str | None = None
    """Why the image cannot be used."""
    twin: bool = False
    """Whether another image of this run has the same bytes and was read before."""


class Reader:
    """Turns files into `ReadImage`.

    Args:
        network: prepares the pixels.
        layers: names of the layers wished for.
        space: tells what is stored.
        at_least: ``float32`` counts vectors stored as float16 as missing.
    """

    def __init__(self, network: Backbone, layers: Sequence[str], space: SpaceWriter, *, at_least: str) -> None:
        self._network, self._layers, self._space, self._at_least = network, layers, space, at_least
        self._claimed: set[bytes] = set()
        self._claiming = threading.Lock()

    def read(self, entries: Sequence[Entry], workers: int, ahead: int) -> Generator[ReadImage, None, None]:
        """Yield one `ReadImage` an entry, in order, with at most *ahead* images waiting."""
        with ThreadPoolExecutor(workers, thread_name_prefix="featcache-read") as pool:
            waiting: deque[Future[ReadImage]] = deque()
            try:
                for entry in entries:
                    waiting.append(pool.submit(self._read, entry))
                    if len(waiting) >= ahead:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()

    def _read(self, entry: Entry) -> ReadImage:
        indexed_ns = time.time_ns()
        try:
            data, stat = read_image_file(entry.path)
        except UnusableImageError as error:
            return ReadImage(entry, None, reason=str(error))
        sha256 = hashlib.sha256(data).digest()
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
        with self._claiming:
            twin = sha256 in self._claimed
            self._claimed.add(sha256)
        if twin:
            return ReadImage(entry, record, twin=True)
        missing = tuple(
            name for name in self._layers if not self._space.present(name, VIEW_0, [sha256], at_least=self._at_least)
        )
        if not missing:
            return ReadImage(entry, record)
        try:
            image = decode_rgb(data)
        except UnusableImageError as error:
            return ReadImage(entry, record, missing, reason=str(error))
        try:
            return ReadImage(entry, record, missing, self._network.prepare(image))
        except UnusableImageError as error:
            return ReadImage(entry, record, missing, reason=str(error))
        except Exception as error:  # a transform given by the user may raise anything
            return ReadImage(entry, record, missing, reason=f"the transform failed: {error!r}")
