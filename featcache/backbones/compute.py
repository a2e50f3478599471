"""What the processor is and can do, and how many cores this process may use."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
from pathlib import Path

_BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}


def cores() -> int:
    """Processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@functools.cache
def features() -> frozenset[str]:
    """The processor's features by the names that Linux gives them; none where they are not told."""
    for key, value in _described():
        if key in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


@functools.cache
def identity() -> str:
    """Model and features in a few words: what was measured or compiled on one processor may not hold on another."""
    model = next((value for key, value in _described() if key in ("model name", "CPU part")), platform.processor())
    digest = hashlib.sha256(" ".join(sorted(features())).encode()).hexdigest()
    return f"{platform.machine()} {model} {digest[:12]}"


def has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 itself: it has AVX512_BF16, AMX or ARM's BF16."""
    return bool(_BFLOAT16 & features())


def _described() -> list[tuple[str, str]]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    pairs = (line.partition(":") for line in lines if ":" in line)
    return [(key.strip(), value.strip()) for key, _, value in pairs]
