"""Devices by torch's names: whether there is such a device here."""

from __future__ import annotations

from featcache.core.errors import UnknownNameError, UsageError

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
