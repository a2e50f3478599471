"""A linear algebra of one thread for a while.

The number of its threads belongs to the whole process, so those who want one thread are counted: the first
sets it, and the last puts back what was before. If each put back what it had found, of two fits that
overlap in two threads the later would leave the process with one thread for good.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import threadpool_limits

_lock = threading.Lock()
_held: list[threadpool_limits] = []
_users = 0


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """One thread for linear algebra, in the whole process."""
    global _users
    with _lock:
        if not _users:
            _held.append(threadpool_limits(1, user_api="blas"))
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users:
                _held.pop().restore_original_limits()
