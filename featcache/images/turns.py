"""One thread at a time at what may not bear two, and nobody waits for ever for one that hangs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar

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
