"""How long work tells a person how far it is.

The library reports to a `Progress`; who called decides what becomes of it: nothing, a bar on a
terminal, or now and then a line where there is no terminal (a log file, a pipe). All of it goes to
stderr, never to stdout. Rich is imported only when a bar is drawn. Notes also go to the logger ``featcache``.
"""

from __future__ import annotations

import logging
import math
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol, TextIO, TypeVar

from featcache.core.arguments import described
from featcache.core.errors import FeatcacheError, UsageError
from featcache.core.visible import visible

if TYPE_CHECKING:
    from rich.progress import TaskID

_T = TypeVar("_T")


LOGGER = logging.getLogger("featcache")
LOGGER.addHandler(logging.NullHandler())


class Progress(Protocol):
    """What long work reports. Calls may come from any thread; phases follow one another."""

    def start(self, what: str, total: int | None, unit: str) -> None:
        """A phase begins: *what* is being done to *total* things, each a *unit* (``"images"``)."""

    def advance(self, n: int = 1) -> None:
        """*n* more things are done."""

    def note(self, text: str) -> None:
        """One line for the person, which does not disturb the bar."""

    def finish(self) -> None:
        """The phase is over."""


class Silent:
    """Shows nothing; what is noted is only logged."""

    def start(self, what: str, total: int | None, unit: str) -> None:
        pass

    def advance(self, n: int = 1) -> None:
        pass

    def note(self, text: str) -> None:
        _log(text)

    def finish(self) -> None:
        pass


class OutOfTimeError(FeatcacheError):
    """Work was ended, as no time was left for it."""


class Deadline:
    """Passes on what work tells, and ends it at its next step once no time is left.

    Args:
        left: gives the seconds that are left.
        progress: what is passed on to.
    """

    def __init__(self, left: Callable[[], float], progress: Progress) -> None:
        self._left, self._shown = left, progress
        self.start, self.note, self.finish = progress.start, progress.note, progress.finish

    def advance(self, n: int = 1) -> None:
        """Pass it on; OutOfTimeError where nothing is left."""
        self._shown.advance(n)
        if self._left() <= 0:
            self._shown.finish()
            raise OutOfTimeError("it took longer than estimated, and was ended as the budget was spent")


class Budget:
    """Seconds to spend on the parts of some work, and what became of each part.

    A part begins only if its estimate fits what is left. An estimate may be wrong, so parts should tell their steps to
    a `Deadline`.

    Args:
        seconds: in all; 2 % of them are for what follows the parts.
        reserved: seconds of processor time for what else follows the parts, or went before.
        clock: gives the time in seconds.

    Attributes:
        parts: ``name``, ``estimate``, ``seconds`` (None where it was not made) and ``reason`` of each part.
        failures: what ends a part without ending the work; errors of ours and a lack of memory at first.
    """

    def __init__(self, seconds: float, reserved: float = 0.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds, self.parts = seconds, list[dict[str, Any]]()
        self.failures: tuple[type[Exception], ...] = (FeatcacheError, MemoryError)
        self._reserved, self._clock, self._began, self._worked = reserved, clock, clock(), time.process_time()

    def spent(self) -> float:
        """Seconds since the beginning."""
        return self._clock() - self._began

    def left(self) -> float:
        """Seconds that are left for parts, 0 or more."""
        return max(0.0, 0.98 * self.seconds - self._reserved * self.pace() - self.spent())

    def pace(self) -> float:
        """Seconds for one of processor time, 1 or more: where other processes work too, all takes longer."""
        return max(1.0, self.spent() / max(1e-3, time.process_time() - self._worked))

    def run(self, name: str, estimate: float | None, work: Callable[[], _T]) -> _T | None:
        """What *work* gives, or None with the reason in ``parts``; without an estimate it is done in any case."""
        if estimate is not None and estimate > self.left():
            self.skip(name, f"it would take about {duration(estimate)}", estimate)
            return None
        began, result, reason = self._clock(), None, None
        try:
            result = work()
        except self.failures as error:
            if estimate is None:
                raise
            reason = " ".join(str(error).split())
        self.parts.append({"name": name, "estimate": estimate, "seconds": self._clock() - began, "reason": reason})
        return result

    def skip(self, name: str, reason: str, estimate: float | None = None) -> None:
        """Note a part that is not made; one with an estimate takes too long."""
        left = "" if estimate is None else f", and {duration(self.left())} of {duration(self.seconds)} are left"
        self.parts.append({"name": name, "estimate": estimate, "seconds": None, "reason": reason + left})


class Lines:
    """A line when a phase begins, one every *every* seconds, and one when it ends."""

    def __init__(self, stream: TextIO | None = None, every: float = 10.0) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._every = every
        self._lock = threading.Lock()
        self._what = self._unit = ""
        self._total: int | None = None
        self._done = self._done_then = 0
        self._began = self._said = 0.0
        self._paced = False

    def start(self, what: str, total: int | None, unit: str) -> None:
        self._what, self._total, self._unit = what, total, unit
        self._done = self._done_then = 0
        self._began = self._said = time.monotonic()
        self._paced = False
        self._print(f"{what} …" if total is None else f"{what}: {counted(total, unit)} …")

    def advance(self, n: int = 1) -> None:
        with self._lock:
            self._done += n
            now = time.monotonic()
            if now - self._said < self._every:
                return
            text = self._state(now)
            self._said, self._done_then, self._paced = now, self._done, True
        self._print(text)

    def note(self, text: str) -> None:
        _log(text)
        self._print(text)

    def _print(self, text: str) -> None:
        print(visible(text), file=self._stream, flush=True)

    def finish(self) -> None:
        now = time.monotonic()
        if self._what and now - self._began >= 1:
            done = f"{counted(self._done, self._unit)} in " if self._done else ""
            self._print(f"{self._what}: {done}{now - self._began:.1f} s")
        self._what = ""

    def _state(self, now: float) -> str:
        text = f"{self._what}: {self._done:,}"
        if self._total is not None:
            text += f" of {self._total:,}"
        text += f" {self._unit}"
        if not self._paced:
            # Up to the first line a network was loaded, and what was there already counted in one go.
            return text
        rate = (self._done - self._done_then) / (now - self._said)
        text += f", {rate:.1f} {self._unit}/s"
        if self._total is not None and rate > 0:
            text += f", {duration((self._total - self._done) / rate)} left"
        return text


class Bar:
    """A bar on stderr with the rate and the time left, removed when the phase is over."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn
        from rich.progress import Progress as RichProgress
        from rich.text import Text

        class Pace(ProgressColumn):
            """Rate and time left: ``62.4 images/s, 0:00:21 left``."""

            def render(self, task: Task) -> Text:
                if not task.speed:
                    return Text(str(task.fields["unit"]))
                text = f"{task.speed:.1f} {task.fields['unit']}/s"
                if task.time_remaining is not None:
                    text += f", {duration(task.time_remaining)} left"
                return Text(text)

        self._bar = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            Pace(),
            console=Console(stderr=True, highlight=False),
            transient=True,
        )
        self._task: TaskID | None = None

    def start(self, what: str, total: int | None, unit: str) -> None:
        self.finish()
        self._task = self._bar.add_task(visible(what), total=total, unit=unit)
        self._bar.start()

    def advance(self, n: int = 1) -> None:
        # Rich takes the pace from the first advance on: one of nothing would count the loading of a network.
        if self._task is not None and n > 0:
            self._bar.advance(self._task, n)

    def note(self, text: str) -> None:
        _log(text)
        # soft_wrap: a long path must stay on one line, or it cannot be copied.
        self._bar.console.print(visible(text), markup=False, emoji=False, soft_wrap=True)

    def finish(self) -> None:
        if self._task is not None:
            self._bar.stop()
            self._bar.remove_task(self._task)
            self._task = None


def _log(text: str) -> None:
    LOGGER.log(logging.WARNING if text.startswith("Warning:") else logging.INFO, visible(text))


_shown: ContextVar[Progress | None] = ContextVar("shown", default=None)
"""What the work under way reports to."""


def tell(text: str) -> None:
    """Note one line at what `choose` chose for the work under way, or only log it: for what lies far below that."""
    (_shown.get() or Silent()).note(text)


@contextmanager
def choose(progress: Progress | bool | None) -> Iterator[Progress]:
    """What to report to, as a context that takes the bar away however it is left.

    Args:
        progress: a `Progress` is used as it is; ``True`` shows a bar on a terminal and lines
            elsewhere; ``None`` a bar if stderr is a terminal and else nothing; ``False`` nothing.
    """
    if progress is not None and not isinstance(progress, bool):
        if not callable(getattr(progress, "note", None)):
            raise UsageError(f"progress is True, False, None or a Progress, not {described(progress)}.")
        with _telling(progress):
            yield progress
        return
    bar: Progress
    if progress is not False and sys.stderr is not None and sys.stderr.isatty():
        bar = Bar()
    else:
        bar = Lines() if progress else Silent()
    try:
        with _telling(bar):
            yield bar
    finally:
        bar.finish()


@contextmanager
def _telling(progress: Progress) -> Iterator[None]:
    before = _shown.get()
    _shown.set(progress)
    try:
        yield
    finally:
        _shown.set(before)


@contextmanager
def phase_if_slow(progress: Progress, what: str, unit: str, seconds: float = 1.0) -> Iterator[None]:
    """A phase of work that mostly is done in no time, and which does not count: told only after *seconds*."""
    begun = threading.Event()

    def begin() -> None:
        begun.set()
        progress.start(what, None, unit)

    waiting = threading.Timer(seconds, begin)
    waiting.daemon = True
    waiting.start()
    try:
        yield
    finally:
        waiting.cancel()
        waiting.join()  # a phase that began just now is not to begin in the midst of the next
        if begun.is_set():
            progress.finish()


def counted(n: int, unit: str) -> str:
    """``1 image``, ``2,000 images``; *unit* is a plural in s."""
    return f"{n:,} {unit.removesuffix('s') if n == 1 else unit}"


def duration(seconds: float) -> str:
    """``0:07``, ``12:30``, ``1:02:05``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def seconds_of(text: str) -> float:
    """A time such as ``90``, ``90s``, ``10m`` or ``1.5h`` in seconds.

    Raises:
        UsageError: it is no such time, or not above 0.
    """
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(s|m|min|h)?\s*", text, flags=re.ASCII)
    seconds = math.nan if found is None else float(found[1]) * {"m": 60, "min": 60, "h": 3600}.get(found[2], 1)
    if not 0 < seconds < math.inf:
        raise UsageError(f"A time above 0 such as 90s, 10m or 2h is wanted, not {text!r}.")
    return seconds
