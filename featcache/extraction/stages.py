"""How long each stage of a run takes, over all threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

STAGES = ("read", "hash", "decode", "forward", "write")


class Stages:
    """Seconds that threads spend in each of `STAGES`; several threads at one time count several times.

    ``decode`` is from bytes to the network's input, ``write`` the store's part.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds = dict.fromkeys(STAGES, 0.0)

    @contextmanager
    def measured(self, stage: str) -> Iterator[None]:
        """Count the time in this block as that of *stage*."""
        began = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - began
            with self._lock:
                self._seconds[stage] += spent

    def seconds(self) -> dict[str, float]:
        """Seconds of each stage so far."""
        with self._lock:
            return {stage: round(spent, 3) for stage, spent in self._seconds.items()}
