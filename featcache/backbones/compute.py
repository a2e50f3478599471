"""What this machine can compute with: CPU cores and features, torch devices, runtimes and precisions."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
from importlib.util import find_spec
from pathlib import Path

from featcache.core.errors import UnknownNameError, UsageError
from featcache.core.recipe import PRECISIONS

RUNTIMES = ("auto", "torch", "openvino")
DEVICES = ("cpu", "cuda", "mps", "xpu")
"""Kinds of devices; all except ``cpu`` may be numbered, as in ``cuda:1``."""
_BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}


def cores() -> int:
    """CPU cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@functools.cache
def features() -> frozenset[str]:
    """The CPU's features by their names in Linux; empty where the system does not list them."""
    for key, value in _described():
        if key in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


@functools.cache
def identity() -> str:
    """The CPU's model and features in short; what was measured or compiled on one CPU may not hold on another."""
    model = next((value for key, value in _described() if key in ("model name", "CPU part")), platform.processor())
    digest = hashlib.sha256(" ".join(sorted(features())).encode()).hexdigest()
    return f"{platform.machine()} {model} {digest[:12]}"


def has_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 in hardware (AVX512_BF16, AMX or ARM's BF16)."""
    return bool(_BFLOAT16 & features())


def _described() -> list[tuple[str, str]]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    pairs = (line.partition(":") for line in lines if ":" in line)
    return [(key.strip(), value.strip()) for key, _, value in pairs]


def has_openvino() -> bool:
    """Whether OpenVINO is installed; it is not imported."""
    return find_spec("openvino") is not None


def check_device(device: str) -> None:
    """Raise for a device that this machine does not have. For ``cpu`` torch is not imported.

    Args:
        device: one of `DEVICES`, and for one of several GPUs ``:`` and its number from 0 on.

    Raises:
        UnknownNameError: no such kind of device.
        UsageError: this machine, or the installed torch, has no such device.
    """
    if device == "cpu":
        return
    kind, colon, number = device.partition(":")
    if kind not in DEVICES:
        raise UnknownNameError.among("device", device, DEVICES, "NVIDIA and AMD GPUs are cuda, Apple GPUs mps.")
    if kind == "cpu":
        raise UsageError(f"The CPU has no number: use --device cpu, not {device}.")
    if colon and not (number.isascii() and number.isdigit()):
        raise UsageError(f"The device {device!r} should be {kind}, or {kind}: and a number from 0 on.")
    import torch

    there = getattr(torch, kind)
    count = there.device_count() if there.is_available() else 0
    if not count:
        raise UsageError(f"torch {torch.__version__} finds no {kind} device on this machine. Omit --device.")
    if int(number or 0) >= count:
        last = "" if count == 1 else f" to {kind}:{count - 1}"
        raise UsageError(f"There is no device {device}: this machine has {kind}:0{last}.")


def check_choice(runtime: str, precision: str, device: str) -> None:
    """Raise for a choice that this machine cannot run.

    Args:
        runtime: one of `RUNTIMES`.
        precision: ``float32`` or ``bfloat16``.
        device: torch device, see `check_device`.

    Raises:
        UnknownNameError: no such runtime, precision or kind of device.
        UsageError: OpenVINO on another device than the CPU, a device that is not there, or bfloat16 on a CPU or GPU
            without it.
    """
    if runtime not in RUNTIMES:
        raise UnknownNameError.among("runtime", runtime, RUNTIMES)
    if precision not in PRECISIONS:
        raise UnknownNameError.among("precision", precision, PRECISIONS)
    on_cpu = device == "cpu"
    if runtime == "openvino" and not on_cpu:
        raise UsageError(f"featcache runs OpenVINO on the CPU, not on {device}. Omit --device or --runtime.")
    check_device(device)
    if precision == "bfloat16" and not (has_bfloat16() if on_cpu else _gpu_has_bfloat16(device)):
        lacks = (
            "This CPU does not compute in bfloat16 (it has none of AVX512_BF16, AMX and ARM's BF16)"
            if on_cpu
            else f"The device {device} does not compute in bfloat16"
        )
        raise UsageError(f"{lacks}, so it would be slower and less accurate. Use --precision float32.")


def runtime_of_recipe(runtime: str, precision: str, device: str) -> str | None:
    """The runtime as the recipe names it.

    None at float32, where every runtime must agree with eager torch; otherwise the runtime that computes, which for
    ``auto`` depends only on the machine.
    """
    if precision == "float32":
        return None
    if runtime != "auto":
        return runtime
    return "openvino" if device == "cpu" and has_openvino() else "torch"


def _gpu_has_bfloat16(device: str) -> bool:
    import torch

    if torch.device(device).type != "cuda":
        return False
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
