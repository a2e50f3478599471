"""A linear algebra of one thread for a while.

The number of its threads belongs to the whole process, so those who want one thread are counted: the first
sets it, and the last puts back what was before. If each put back what it had found, of two fits that
overlap in two threads the later would leave the process with one thread for good.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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
