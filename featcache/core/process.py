"""A linear algebra of one thread for a while.

The number of its threads belongs to the whole process, so those who want one thread are counted: the first
sets it, and the last puts back what was before. If each put back what it had found, of two fits that
overlap in two threads the later would leave the process with one thread for good.

Ctrl-C that waits for a safe place to stop.

Work on blocks of rows by several threads, each with a linear algebra of one thread.

Products of a block and the element-wise steps between them then run on all cores without waiting for
each other, where a threaded linear algebra would leave all but one core idle between its calls.

There are as many threads as linear algebra itself would use: the cores that the process may use, or fewer by
``OPENBLAS_NUM_THREADS``, ``OMP_NUM_THREADS`` and their like, by threadpoolctl, and so in the workers of joblib, which
share out the cores. Sums over the threads' parts are rounded otherwise for another number of threads: results
are equal to the last bit for equal numbers only.

One thread at a time at what may not bear two, and nobody waits for ever for one that hangs.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from itertools import pairwise
from types import FrameType
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


class Stop:
    """Whether somebody asked to stop."""

    def __init__(self) -> None:
        self.asked = False


@contextmanager
def stop_when_safe() -> Iterator[Stop]:
    """Within this block the first Ctrl-C (or a SIGTERM) only sets ``asked``; a second one interrupts at once.

    Python delivers signals to the main thread alone, so elsewhere the block changes nothing.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked = True

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
