"""Threads that work ahead of whoever takes their results, and that nobody waits for when they hang.

- One crew does all the work, as many threads as there are cores: images are read and batches are computed by the
  same threads, so none of them is idle while there is anything to do, and they never stand in each other's way.
- Results come in the order of the tasks; so many tasks at most are handed out before their turn.
- A task that takes too long is given up. Nothing can end a thread, so it goes on, but its result is dropped
  and another thread takes its place. Urgent work has no such limit.
- Where tasks take turns at something, the time in which one waits for the others is not its own, and one that is given
  up during its turn keeps nobody from theirs.
- The threads are daemons: neither closing the generator nor the end of the process waits for a stuck one.

Time can only be taken while other threads run: C code that never lets go of the interpreter stops everything.
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
from featcache.core.process import WAITING, Turn

MOST_STUCK = 64
"""Threads that may hang at one time. Each holds an image's memory, so their number needs a bound."""

_LOOK_SECONDS = 0.25
_FAREWELL_SECONDS = 1.0

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class Task(Protocol[R_co]):
    """One piece of work."""

    def do(self) -> R_co:
        """Do it, in a thread of its own."""

    def cancel(self) -> R_co:
        """The result in its place. Called once, by the taker's thread, while `do` still runs somewhere."""


def in_order(
    crew: WorkerPool,
    tasks: Iterable[Task[R]],
    *,
    ahead: int,
    stopped: Callable[[], bool] = lambda: False,
) -> Generator[R, None, None]:
    """Yield the tasks' results in order; an exception of a task is raised when its turn comes.

    Args:
        crew: who does it.
        tasks: the work.
        ahead: tasks that are handed out at most while the first of them is waited for.
        stopped: asked while a result is waited for; when true the generator ends.

    Raises:
        FeatcacheError: `MOST_STUCK` threads hang at once, so it is no single task's fault.
    """
    handed: deque[Job[R]] = deque()
    coming = iter(tasks)
    while True:
        while len(handed) < ahead and (task := next(coming, None)) is not None:
            handed.append(crew.submit(task))
        if not handed:
            return
        job = handed.popleft()
        if not crew.wait_for(job, stopped):
            return
        yield job.result()


class Job(Generic[R]):
    """Work on its way: waiting, begun, or done; `results` then holds one result unless there is an error."""

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
    """Some threads, hired when there is work; a context that dismisses them.

    Args:
        workers: threads that work at one time.
        seconds: how long a task may take, counted from when a thread began with it, or from when it had its turn.
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
        self._dismissed = False

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()

    def submit(self, task: Task[R]) -> Job[R]:
        """Let a thread do *task* when those before it are begun."""
        return self._add(Job(task.do, task.cancel), first=False)

    def hand_out_urgent(self, do: Callable[[], R]) -> Job[R]:
        """Let the next free thread do *do*, however long it takes."""
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
                self._hire()
        return job

    def wait_for(self, job: Job[Any], stopped: Callable[[], bool] = lambda: False) -> bool:
        """Wait until *job* is done or given up; False where somebody asked to stop before.

        Raises:
            FeatcacheError: `MOST_STUCK` threads hang at once.
        """
        with self._lock:
            while not job.done:
                if stopped():
                    return False
                looked = time.monotonic()
                ends = min((other.began for other in self._running), default=looked) + self._seconds
                self._work_done.wait(min(_LOOK_SECONDS, max(0.1, ends - looked)))
                now = time.monotonic()
                if now - looked > 4 * _LOOK_SECONDS:
                    # The whole process stood still (Ctrl-Z): that is not the images' time.
                    for other in self._running:
                        other.began += now - looked
                # Only after a wait: whoever returns from a long pass first lets the threads report.
                for other in [o for o in self._running if o.cancel and now - o.began >= self._seconds]:
                    self._give_up(other)
            return True

    def shutdown(self) -> None:
        """End the threads. Those in the midst of a task get a moment to finish it, and are then left alone."""
        with self._lock:
            self._dismissed = True
            self._todo.clear()
            self._work_came.notify_all()
            threads = list(self._threads)
        ends = time.monotonic() + _FAREWELL_SECONDS
        for thread in threads:
            thread.join(max(0.0, ends - time.monotonic()))

    def _hire(self) -> None:
        thread = threading.Thread(target=self._work, name="featcache-read", daemon=True)
        self._threads.add(thread)
        thread.start()

    def _work(self) -> None:
        me = threading.current_thread()
        while True:
            with self._lock:
                while not self._todo and not self._dismissed:
                    self._work_came.wait()
                if self._dismissed:
                    return
                job = self._todo.popleft()
                job.began, job.thread = time.monotonic(), me
                self._running.add(job)
            WAITING.set(functools.partial(self._off_the_clock, job))
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
    def _off_the_clock(self, job: Job[Any], turn: Turn) -> Iterator[None]:
        """While *job* waits for its turn no time passes for it; from then on it has all its seconds."""
        with self._lock:
            if job.done:
                raise TimeoutError("it was given up before it had its turn")
            job.began, job.turn = math.inf, turn
        try:
            yield
        finally:
            with self._lock:
                job.began = time.monotonic()

    def _give_up(self, job: Job[Any]) -> None:
        assert job.thread is not None
        assert job.cancel is not None
        self._running.remove(job)
        self._threads.remove(job.thread)
        self._stuck += 1
        job.results, job.done = [job.cancel()], True
        if job.turn is not None:
            job.turn.pass_on(job.thread)
        if self._stuck >= MOST_STUCK:
            raise FeatcacheError(
                f"Reading hangs: {self._stuck} images were each begun {self._seconds:g} s ago or earlier and are not "
                "done. Check the disk they lie on, and the transform; what is done is kept, and the same call goes on."
            )
        self._hire()
