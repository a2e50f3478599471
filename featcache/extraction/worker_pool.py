"""A thread pool whose tasks have a time limit: a task that hangs is given up, and its thread is replaced.

- The same threads, one per core, read images and compute batches, so none is idle while there is work.
- Results come in the order of the tasks, with a bounded number of tasks in flight.
- A task that takes too long is given up. Nothing can end a thread, so it goes on, but its result is dropped and another
  thread takes its place. Urgent work has no time limit.
- Where tasks take turns at something (`featcache.core.threads.Turn`), waiting does not count, and a task that is given
  up during its turn hands it on.
- The threads are daemons: neither closing the generator nor the end of the process waits for one that hangs.

`concurrent.futures.ThreadPoolExecutor` has none of these but the order: the interpreter joins its threads at exit, so
one that hangs would keep the process for ever, it replaces none, and its queue knows no urgency.

A limit holds only while other threads run: C code that never releases the interpreter lock stops everything.
"""

from __future__ import annotations

import functools
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, Protocol, TypeVar

from featcache.core.errors import FeatcacheError
from featcache.core.threads import WAITING, Turn

MAX_STUCK = 64
"""Threads that may hang at one time: each holds an image's memory."""

_POLL_SECONDS = 0.25
_JOIN_SECONDS = 1.0

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class Task(Protocol[R_co]):
    """One piece of work."""

    def do(self) -> R_co:
        """Do it, in a thread of the pool."""

    def cancel(self) -> R_co:
        """The result of a task that is given up; called once, in the thread that waits, while `do` still runs."""


def in_order(
    pool: WorkerPool,
    tasks: Iterable[Task[R]],
    *,
    ahead: int,
    stopped: Callable[[], bool] = lambda: False,
) -> Generator[R, None, None]:
    """Yield the tasks' results in order; an exception of a task is raised when its turn comes.

    Args:
        pool: runs them.
        tasks: the work.
        ahead: tasks in flight at most.
        stopped: asked while a result is waited for; when true the generator ends.

    Raises:
        FeatcacheError: `MAX_STUCK` threads hang at once, so it is no single task's fault.
    """
    submitted: deque[Job[R]] = deque()
    coming = iter(tasks)
    while True:
        while len(submitted) < ahead and (task := next(coming, None)) is not None:
            submitted.append(pool.submit(task))
        if not submitted:
            return
        job = submitted.popleft()
        if not pool.wait_for(job, stopped):
            return
        yield job.result()


class Job(Generic[R]):
    """Submitted work: waiting, running or done; then `results` holds one result unless there is an error."""

    def __init__(self, do: Callable[[], R], cancel: Callable[[], R] | None) -> None:
        self.do, self.cancel = do, cancel
        self.began = 0.0
        self.thread: threading.Thread | None = None
        self.turn: Turn | None = None
        self.done = False
        self.results: list[R] = []
        self.error: BaseException | None = None

    def result(self) -> R:
        """The result of a job that is done, once; raises what the work raised."""
        if self.error is not None:
            raise self.error
        return self.results.pop()


class WorkerPool:
    """Threads that start when there is work; leaving its context shuts it down.

    Args:
        workers: threads that work at one time.
        seconds: how long a task may take, from when a thread began with it or it had its turn.
    """

    def __init__(self, workers: int, seconds: float) -> None:
        self._workers, self._seconds = workers, seconds
        self._lock = threading.Lock()
        self._work_came = threading.Condition(self._lock)
        self._work_done = threading.Condition(self._lock)
        self._todo: deque[Job[Any]] = deque()
        self._running: set[Job[Any]] = set()
        self._threads: set[threading.Thread] = set()
        self._stuck = 0
        self._closed = False

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()

    def submit(self, task: Task[R]) -> Job[R]:
        """Queue *task* behind all others."""
        return self._add(Job(task.do, task.cancel), first=False)

    def submit_urgent(self, do: Callable[[], R]) -> Job[R]:
        """Queue *do* before all tasks, with no time limit."""
        return self._add(Job(do, None), first=True)

    def _add(self, job: Job[R], first: bool) -> Job[R]:
        with self._lock:
            if first:
                # Behind what is as urgent and came before.
                place = next((i for i, other in enumerate(self._todo) if other.cancel is not None), len(self._todo))
                self._todo.insert(place, job)
            else:
                self._todo.append(job)
            self._work_came.notify()
            if len(self._threads) < self._workers:
                self._start_thread()
        return job

    def wait_for(self, job: Job[Any], stopped: Callable[[], bool] = lambda: False) -> bool:
        """Wait until *job* is done or given up; False where somebody asked to stop before.

        Raises:
            FeatcacheError: `MAX_STUCK` threads hang at once.
        """
        with self._lock:
            while not job.done:
                if stopped():
                    return False
                looked = time.monotonic()
                ends = min((other.began for other in self._running), default=looked) + self._seconds
                self._work_done.wait(min(_POLL_SECONDS, max(0.1, ends - looked)))
                now = time.monotonic()
                if now - looked > 4 * _POLL_SECONDS:
                    # The whole process stood still (Ctrl-Z): that is not the images' time.
                    for other in self._running:
                        other.began += now - looked
                # Only after a wait: whoever returns from a long pass first lets the threads report.
                for other in [o for o in self._running if o.cancel and now - o.began >= self._seconds]:
                    self._abandon(other)
            return True

    def shutdown(self) -> None:
        """End the threads. A running task gets a moment to finish; then its thread is left alone."""
        with self._lock:
            self._closed = True
            self._todo.clear()
            self._work_came.notify_all()
            threads = list(self._threads)
        ends = time.monotonic() + _JOIN_SECONDS
        for thread in threads:
            thread.join(max(0.0, ends - time.monotonic()))

    def _start_thread(self) -> None:
        thread = threading.Thread(target=self._work, name="featcache-read", daemon=True)
        self._threads.add(thread)
        thread.start()

    def _work(self) -> None:
        me = threading.current_thread()
        while True:
            with self._lock:
                while not self._todo and not self._closed:
                    self._work_came.wait()
                if self._closed:
                    return
                job = self._todo.popleft()
                job.began, job.thread = time.monotonic(), me
                self._running.add(job)
            WAITING.set(functools.partial(self._clock_stopped, job))
            result: list[Any] = []
            error: BaseException | None = None
            try:
                result.append(job.do())
            except BaseException as caught:  # whatever it is, it is for whoever takes the results
                error = caught
            with self._lock:
                if job.done:  # given up meanwhile, and this thread replaced
                    self._stuck -= 1
                    return
                job.results, job.error, job.done = result, error, True
                self._running.remove(job)
                self._work_done.notify()

    @contextmanager
    def _clock_stopped(self, job: Job[Any], turn: Turn) -> Iterator[None]:
        """While *job* waits for its turn its clock stands still; from then on it has all its seconds."""
        with self._lock:
            if job.done:
                raise TimeoutError("it was given up before it had its turn")
            job.began, job.turn = math.inf, turn
        try:
            yield
        finally:
            with self._lock:
                job.began = time.monotonic()

    def _abandon(self, job: Job[Any]) -> None:
        assert job.thread is not None
        assert job.cancel is not None
        self._running.remove(job)
        self._threads.remove(job.thread)
        self._stuck += 1
        job.results, job.done = [job.cancel()], True
        if job.turn is not None:
            job.turn.pass_on(job.thread)
        if self._stuck >= MAX_STUCK:
            raise FeatcacheError(
                f"Reading hangs: {self._stuck} images were each begun {self._seconds:g} s ago or earlier and are not "
                "done. Check the disk they lie on, and the transform; what is done is kept, and the same call goes on."
            )
        self._start_thread()
