"""OpenVINO, imported so that it reports to nobody, and its one `Core` a process."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

_TELEMETRY = "openvino_telemetry"

_lock = threading.Lock()
_cores: dict[int, Any] = {}


def is_installed() -> bool:
    """Whether OpenVINO can be imported; it is not imported for that."""
    return find_spec("openvino") is not None


def library() -> Any:
    """The module ``openvino``.

    It sends a message to its makers when it is imported, unless it finds no package to do so with.
    """
    with _lock, _without_telemetry():
        import openvino
    return openvino


def pytorch_frontend() -> tuple[Any, Any]:
    """What converts traced modules, and the class that shows it one. The converter that OpenVINO has on top of these
    reports every conversion."""
    openvino = library()
    with _lock, _without_telemetry():
        from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder
    return openvino.frontend.FrontEndManager().load_by_framework("pytorch"), TorchScriptPythonDecoder


def core() -> Any:
    """The `Core` of this process; a forked child has one of its own, as threads do not outlive a fork."""
    openvino = library()
    with _lock:
        if os.getpid() not in _cores:
            _cores.clear()
            _cores[os.getpid()] = openvino.Core()
        return _cores[os.getpid()]


@contextmanager
def _without_telemetry() -> Iterator[None]:
    if _TELEMETRY in sys.modules:
        yield
        return
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # None is how Python is told of no such module
    try:
        yield
    finally:
        del sys.modules[_TELEMETRY]
