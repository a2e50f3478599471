"""Batches on their way through the network: a few at one time, their vectors handed back in order.

Where the runtime allows it, a batch is computed by a thread of the crew that reads the images, on one core, before
that thread reads any more. So every core always either decodes or computes, and there are never more threads at
work than cores. Else (torch) a batch is computed at once by whoever puts it, while the crew reads ahead.
"""

from __future__ import annotations

import functools
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from featcache.extraction.reader import Picture
from featcache.extraction.report import Stages
from featcache.extraction.threads import Job, WorkerPool

if TYPE_CHECKING:
    from featcache.backbones import Layer
    from featcache.backbones.runtimes.passes import Passes

Batch = list[Picture]
Vectors = dict[str, np.ndarray]


class Batches:
    """Batches on their way.

    Args:
        passes: what computes them.
        layers: all layers that may be missing, by name in network order.
        crew: threads that compute, if *passes* allows it.
        most: batches that may wait or be computed at one time; more than there are cores, so that none is idle.
        stages: is told of the time.
    """

    def __init__(
        self, passes: Passes, layers: Mapping[str, Layer], crew: WorkerPool, *, most: int, stages: Stages
    ) -> None:
        self.passes, self._layers, self._crew, self._stages = passes, layers, crew, stages
        self.most = most
        self.preparing = 0.0
        """Seconds that loading, converting and proving the network took."""
        self._ready: set[tuple[str, ...]] = set()
        self._coming: deque[tuple[Batch, Job[Vectors] | Vectors]] = deque()

    @property
    def begun(self) -> bool:
        """Whether the network is loaded."""
        return bool(self._ready)

    def put(self, batch: Batch) -> None:
        """Have the layers computed that any image of the batch misses."""
        wanted = {name for picture in batch for name in picture.missing}
        names = tuple(name for name in self._layers if name in wanted)
        layers = [self._layers[name] for name in names]
        if names not in self._ready:
            began = time.monotonic()
            self.passes.ready(_stacked(batch), layers)
            self._ready.add(names)
            self.preparing += time.monotonic() - began
        if self.passes.parallel:
            work = functools.partial(self._forward, batch, layers)
            self._coming.append((batch, self._crew.hand_out_urgent(work)))
        else:
            self._coming.append((batch, self._forward(batch, layers)))

    def done(self, most: int) -> Iterator[tuple[Batch, Vectors]]:
        """Hand back batches with their vectors, in the order they were put, until no more than *most* are left."""
        while len(self._coming) > most:
            batch, coming = self._coming.popleft()
            if isinstance(coming, Job):
                self._crew.wait_for(coming)
                coming = coming.result()
            yield batch, coming

    def _forward(self, batch: Batch, layers: Sequence[Layer]) -> Vectors:
        with self._stages.measured("forward"):
            return self.passes.forward(_stacked(batch), layers)


def _stacked(batch: Batch) -> np.ndarray:
    return np.stack([picture.pixels for picture in batch])
