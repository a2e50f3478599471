"""Work on blocks of rows by several threads, each with a linear algebra of one thread.

Products of a block and the element-wise steps between them then run on all cores without waiting for
each other, where a threaded linear algebra would leave all but one core idle between its calls.

There are as many threads as linear algebra itself would use: the cores that the process may use, or fewer by
``OPENBLAS_NUM_THREADS``, ``OMP_NUM_THREADS`` and their like, by threadpoolctl, and so in the workers of joblib, which
share out the cores. Sums over the threads' parts are rounded otherwise for another number of threads: results
are equal to the last bit for equal numbers only.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from typing import TypeVar

from featcache.core.process import one_blas_thread

_T = TypeVar("_T")


class RowThreads:
    """A pool that calls one function for each part of a list of jobs."""

    def __init__(self, pool: ThreadPoolExecutor | None, count: int) -> None:
        self._pool, self.count = pool, count

    def spans(self, start: int, stop: int) -> list[tuple[int, int]]:
        """The rows from *start* to *stop* in one span a thread; the same for the same numbers."""
        edges = [start + (stop - start) * i // self.count for i in range(self.count + 1)]
        return [(a, b) for a, b in pairwise(edges) if b > a]

    def each(self, function: Callable[[int], _T]) -> list[_T]:
        """``function(i)`` for the number i of each thread, in order."""
        return self.map(lambda start, _: function(start), [(i, i + 1) for i in range(self.count)])

    def map(self, function: Callable[..., _T], jobs: Sequence[tuple[int, int]]) -> list[_T]:
        """``function(start, stop)`` of each job, in order."""
        if self._pool is None or len(jobs) == 1:
            return [function(*job) for job in jobs]
        return list(self._pool.map(lambda job: function(*job), jobs))


@contextmanager
def row_threads() -> Iterator[RowThreads]:
    """As many threads as linear algebra would use, on the cores that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with one_blas_thread() as limit:
        count = cores if limit is None else min(cores, limit)
        if count == 1:
            yield RowThreads(None, 1)
            return
        with ThreadPoolExecutor(count) as pool:
            yield RowThreads(pool, count)
