"""What this machine can do: its processor and cores, its devices, and the runtimes and precisions that they allow."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
from importlib.util import find_spec
from pathlib import Path

from featcache.core.errors import UnknownNameError, UsageError
from featcache.core.recipe import PRECISIONS

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


def is_installed() -> bool:
    """Whether OpenVINO can be imported; it is not imported for that."""
    return find_spec("openvino") is not None


DEVICES = ("cpu", "cuda", "mps", "xpu")
"""Kinds of devices; all but the processor may be numbered, as in ``cuda:1``."""


def check_device(device: str) -> None:
    """Refuse a device that this machine does not have. For the processor torch is not imported.

    Args:
        device: ``cpu``, or another of `DEVICES`, with ``:`` and a number from 0 on where one of several is meant.

    Raises:
        UnknownNameError: no such kind of device.
        UsageError: this machine, or the installed torch, has no such device.
    """
    if device == "cpu":
        return
    kind, colon, number = device.partition(":")
    if kind not in DEVICES:
        raise UnknownNameError.among("device", device, DEVICES, "A GPU of NVIDIA or AMD is cuda, one of Apple mps.")
    if kind == "cpu":
        raise UsageError(f"The processor is one device and has no numbers: --device cpu, not {device}.")
    if colon and not (number.isascii() and number.isdigit()):
        raise UsageError(f"The device {device!r} should be {kind}, or {kind}: and a number from 0 on.")
    import torch

    there = getattr(torch, kind)
    count = there.device_count() if there.is_available() else 0
    if not count:
        raise UsageError(f"There is no {kind} device here that torch {torch.__version__} can use: leave --device out.")
    if int(number or 0) >= count:
        last = "" if count == 1 else f" to {kind}:{count - 1}"
        raise UsageError(f"There is no device {device}; this machine has {kind}:0{last}.")


RUNTIMES = ("auto", "torch", "openvino")


def check_choice(runtime: str, precision: str, device: str) -> None:
    """Refuse what this machine cannot do.

    Args:
        runtime: one of `RUNTIMES`.
        precision: ``float32`` or ``bfloat16``.
        device: torch device, see `featcache.backbones.compute`.

    Raises:
        UnknownNameError: no such runtime, precision or kind of device.
        UsageError: OpenVINO is asked for on another device than the processor, there is no such device, or the
            processor or GPU does not compute in bfloat16.
    """
    if runtime not in RUNTIMES:
        raise UnknownNameError.among("runtime", runtime, RUNTIMES)
    if precision not in PRECISIONS:
        raise UnknownNameError.among("precision", precision, PRECISIONS)
    on_processor = device == "cpu"
    if runtime == "openvino" and not on_processor:
        raise UsageError(f"OpenVINO runs here on the processor, not on {device}: leave --device out, or --runtime.")
    check_device(device)
    if precision == "bfloat16" and not (has_bfloat16() if on_processor else _gpu_has_bfloat16(device)):
        lacks = (
            "This processor does not compute in bfloat16 (it has none of AVX512_BF16, AMX and ARM's BF16)"
            if on_processor
            else f"The device {device} does not compute in bfloat16"
        )
        raise UsageError(f"{lacks}, so it would be slower and less exact. Use --precision float32.")


def runtime_of_recipe(runtime: str, precision: str, device: str) -> str | None:
    """What the recipe says of the runtime: nothing at float32, where every runtime has to agree with eager torch; else
    the one that computes, which for ``auto`` is settled by the machine alone."""
    if precision == "float32":
        return None
    if runtime != "auto":
        return runtime
    return "openvino" if device == "cpu" and is_installed() else "torch"


def _gpu_has_bfloat16(device: str) -> bool:
    import torch

    if torch.device(device).type != "cuda":
        return False
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
