"""Whether a head that reads all vectors at once has the memory for it.

A fit that outgrows the memory ends without a word: the system kills the process. So it is asked before.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from featcache.errors import UsageError

_BYTES_A_NUMBER = 8
"""Of heads that do not say what they need: the vectors and one copy of them, in float32."""


def check_memory(
    estimator: Any, name: str, n: int, d: int, k: int, *, streaming: str, available: int | None = None
) -> None:
    """Refuse to read what would exhaust the memory.

    Args:
        estimator: an unfitted head, perhaps with ``memory_needed(n, d, k)`` in bytes.
        name: what the head is called.
        n, d, k: vectors, numbers a vector, classes.
        streaming: what to do instead, a sentence.
        available: bytes; by default what the machine has.

    Raises:
        UsageError: it needs more than there is; both are named.
    """
    ask = getattr(estimator, "memory_needed", None)
    needed = ask(n, d, k) if ask is not None else n * d * _BYTES_A_NUMBER
    have = available_memory() if available is None else available
    if have is not None and needed > have:
        raise UsageError(
            f"The head {name} needs about {_in_words(needed)} of memory for {n:,} vectors of {d:,} numbers and {k:,} "
            f"classes, and this machine has {_in_words(have)} to spare. {streaming}"
        )


def available_memory() -> int | None:
    """Bytes that can be taken without swapping; None where the system does not tell."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    except OSError:
        pass  # no Linux
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def _in_words(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
