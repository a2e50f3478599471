"""Threads within one process: linear algebra on one thread, work on blocks of rows, and turns at what bears one thread.

The number of threads of linear algebra belongs to the whole process, so its users are counted: the first sets it to
one, and the last restores it. If each restored what it had found, the later of two overlapping fits would leave the
process with one thread for good.

`row_threads` gives as many threads as linear algebra itself would use: the cores of this process, or fewer by
``OPENBLAS_NUM_THREADS``, ``OMP_NUM_THREADS`` and the like, by threadpoolctl, or in workers of joblib, which share the
cores. Sums over the threads' parts are rounded differently for other numbers of threads: results are equal to the last
bit for equal numbers only.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from itertools import pairwise
from typing import Any, TypeVar

from threadpoolctl import ThreadpoolController

_lock = threading.Lock()
_held: list[Any] = []
_users = 0
_threads: int | None = None


@contextmanager
def one_blas_thread() -> Iterator[int | None]:
    """One thread for linear algebra, in the whole process.

    Yields:
        How many it would use otherwise: the cores, or what the environment, threadpoolctl or a worker of joblib
        limits it to; None where nothing tells.
    """
    global _threads, _users
    with _lock:
        if not _users:
            libraries = ThreadpoolController().select(user_api="blas")
            _threads = min((library["num_threads"] for library in libraries.info()), default=None)
            _held.append(libraries.limit(limits=1))
        _users += 1
        threads = _threads
    try:
        yield threads
    finally:
        with _lock:
            _users -= 1
            if not _users:
                _held.pop().restore_original_limits()


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


WAITING: ContextVar[Callable[[Turn], AbstractContextManager[object]]] = ContextVar(
    "waiting", default=lambda turn: nullcontext()
)
"""What a thread enters while it waits for a turn; who limits its time sets it, so that waiting does not count."""


class Turn:
    """A lock that may be taken away from a thread that was given up; a context."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._holder: threading.Thread | None = None

    def __enter__(self) -> None:
        with WAITING.get()(self), self._changed:
            self._changed.wait_for(lambda: self._holder is None)
            self._holder = threading.current_thread()

    def __exit__(self, *_: object) -> None:
        self.pass_on(threading.current_thread())

    def pass_on(self, thread: threading.Thread) -> None:
        """Let the next one have its turn, if it is *thread* that has it now."""
        with self._changed:
            if self._holder is thread:
                self._holder = None
                self._changed.notify()
