"""Labeled vectors that a head reads in blocks, and whether a head's fit fits in memory.

A head that can be fitted so has ``fit_stream(stream)`` beside ``fit``. It has all class ids and groups at once, which
are small, and reads vectors in any order, as often as it needs. What a head must hold at once is compared with the
available memory before the fit: a fit that outgrows it is killed by the system without a message.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featcache.core.errors import UsageError

ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class VectorStream:
    """Labeled vectors read on demand.

    Attributes:
        read: from m row numbers to vectors (m, d), float32 or float64.
        class_ids: (n,) int64, the class of each row as its place in ``classes``.
        groups: (n,) numbers; rows with the same one are no independent evidence.
        classes: (k,) labels.
        width: d.
    """

    read: Callable[[np.ndarray], np.ndarray]
    class_ids: np.ndarray
    groups: np.ndarray
    classes: np.ndarray
    width: int

    def __len__(self) -> int:
        return len(self.class_ids)

    def blocks(
        self, order: np.ndarray | None = None, size: int = ROWS_AT_ONCE
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """One pass: row numbers (m,) and vectors (m, d), in *order* or from the first row to the last."""
        order = np.arange(len(self)) if order is None else order
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            yield rows, self.read(rows)


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


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes that can be taken without swapping, within the limits of the process's control groups.

    Args:
        root: where ``proc`` and ``sys`` are.

    Returns:
        None where the system does not tell.
    """
    known = [*_of_the_machine(root), *_of_control_groups(root)]
    return max(0, min(known)) if known else None


def _of_the_machine(root: Path) -> list[int]:
    try:
        for line in (root / "proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return [1024 * int(line.split()[1])]
    except OSError:
        pass  # no Linux
    if sys.platform == "win32":
        return []
    try:
        return [os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    except (OSError, ValueError):
        return []


def _of_control_groups(root: Path) -> list[int]:
    """What is left of each limit: of the process's own group and of those above it, which bind as well.

    Version 2 has ``memory.max`` and ``memory.current``, version 1 ``memory.limit_in_bytes`` and
    ``memory.usage_in_bytes``; the use counts files that were read, of which the inactive ones give way
    (https://docs.kernel.org/admin-guide/cgroup-v2.html).
    """
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            top, limit, use, file = "sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            top, limit, use, file = (
                "sys/fs/cgroup/memory",
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                "total_inactive_file",
            )
        else:
            continue
        # In a container the path can be one of the host, whose upper part is not to be seen: those there count.
        names = [name for name in path.split("/") if name not in ("", "..")]
        for depth in range(len(names) + 1):
            group = (root / top).joinpath(*names[:depth])
            with suppress(OSError, ValueError):  # no such group, or no limit: "max"
                most, used = (int((group / name).read_text(encoding="ascii")) for name in (limit, use))
                stat = dict(row.split() for row in (group / "memory.stat").read_text(encoding="ascii").splitlines())
                found.append(most - used + int(stat.get(file, 0)))
    return found


def _in_words(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
