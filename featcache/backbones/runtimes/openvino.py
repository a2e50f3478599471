"""OpenVINO: imported without its telemetry, one `Core` per process, and compiled graphs that run in several threads."""

from __future__ import annotations

import os
import queue
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from featcache.core.errors import ConversionError

_TELEMETRY = "openvino_telemetry"

_lock = threading.Lock()
_cores: dict[int, Any] = {}


def library() -> Any:
    """The module ``openvino``, imported with its telemetry disabled."""
    with _lock, _without_telemetry():
        import openvino
    return openvino


def pytorch_frontend() -> tuple[Any, Any]:
    """OpenVINO's frontend for PyTorch and its decoder of traced modules.

    `openvino.convert_model` on top of them sends telemetry.
    """
    openvino = library()
    with _lock, _without_telemetry():
        from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder
    return openvino.frontend.FrontEndManager().load_by_framework("pytorch"), TorchScriptPythonDecoder


def core() -> Any:
    """The `Core` of this process; a forked child gets its own, since threads do not survive a fork."""
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
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # None makes the import fail
    try:
        yield
    finally:
        del sys.modules[_TELEMETRY]


_HINTS = {"float32": "f32", "bfloat16": "bf16"}


@dataclass(frozen=True, slots=True)
class Graph:
    """A serialized OpenVINO graph: its XML, and the float32 weights that it refers to."""

    xml: bytes
    weights: np.ndarray
    """(bytes,) uint8."""


class CompiledGraph:
    """Runs a graph. Up to *concurrency* threads may be in `forward`; others wait.

    The number of images in a pass is fixed, since OpenVINO plans its memory for one shape; a smaller batch is padded.
    So an image's activations do not depend on the rest of its batch.

    Args:
        graph: from `convert`.
        names: the layers of its outputs, in order.
        batch_size: images in a pass.
        concurrency: passes that run at the same time.
        cores: cores that these passes share.
        precision: ``float32`` or ``bfloat16``.

    Raises:
        ConversionError: OpenVINO cannot read or compile it, or would compute at another precision.
        MemoryError: there is not enough memory for passes of so many images.
    """

    def __init__(
        self, graph: Graph, names: Sequence[str], *, batch_size: int, concurrency: int, cores: int, precision: str
    ) -> None:
        self.names, self.batch_size = tuple(names), batch_size
        openvino, hint = library(), _HINTS[precision]
        properties = {
            # By default OpenVINO takes bfloat16 or float16 where the CPU has it.
            "INFERENCE_PRECISION_HINT": hint,
            "NUM_STREAMS": str(concurrency),
            "INFERENCE_NUM_THREADS": str(cores),
            # A pass that is pinned to a core waits for the image that is decoded there.
            "ENABLE_CPU_PINNING": "NO",
        }
        try:
            model = core().read_model(graph.xml, openvino.Tensor(graph.weights))
            if len(model.outputs) - len(self.names) not in (0, 1):
                raise ConversionError(f"the graph has {len(model.outputs)} outputs for {len(self.names)} layers")
            model.reshape([batch_size, *[part.get_length() for part in list(model.input(0).partial_shape)[1:]]])
            self._compiled = core().compile_model(model, "CPU", properties)
            taken = self._compiled.get_property("INFERENCE_PRECISION_HINT")
            if taken != getattr(openvino.Type, hint):
                raise ConversionError(f"OpenVINO would compute as {taken}, not as {hint}")
            requests = [self._compiled.create_infer_request() for _ in range(concurrency)]
        except RuntimeError as error:
            raise _foreign("OpenVINO cannot compile it", error) from error
        self._outputs = len(model.outputs)
        self._free: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for request in requests:
            self._free.put(request)

    def forward(self, batch: np.ndarray) -> dict[str, np.ndarray]:
        """Run a batch, in passes of `batch_size` images.

        Args:
            batch: (n, …) inputs of the graph.

        Returns:
            (n, …) float32 by layer name, all NaN for an image with NaN anywhere inside.

        Raises:
            ConversionError: OpenVINO cannot compute it.
            MemoryError: there is not enough memory.
        """
        request = self._free.get()
        try:
            parts = [self._pass(request, batch[i : i + self.batch_size]) for i in range(0, len(batch), self.batch_size)]
        finally:
            self._free.put(request)
        if len(parts) == 1:
            return dict(zip(self.names, parts[0], strict=True))
        return {name: np.concatenate([part[i] for part in parts]) for i, name in enumerate(self.names)}

    def _pass(self, request: Any, some: np.ndarray) -> list[np.ndarray]:
        n = len(some)
        if n < self.batch_size:
            some = np.concatenate([some, np.repeat(some[-1:], self.batch_size - n, axis=0)])
        try:
            request.infer({0: np.ascontiguousarray(some)}, share_inputs=True)
        except RuntimeError as error:
            raise _foreign("OpenVINO fails at a pass", error) from error
        # The next pass overwrites the request's memory.
        got = [np.array(request.get_output_tensor(i).data[:n], np.float32) for i in range(self._outputs)]
        non_finite = got.pop() != 0 if self._outputs > len(self.names) else np.zeros(n, bool)
        if some.dtype != np.uint8:  # a callable's output may contain NaN itself
            non_finite |= np.isnan(some[:n].reshape(n, -1)).any(axis=1)
        for array in got:
            array[non_finite] = np.nan
        return got


def _foreign(what: str, error: Exception) -> Exception:
    """OpenVINO's error as one of ours; it has one type for all, and lack of memory is no fault of the graph."""
    text = _last_line(error)
    return MemoryError(text) if "bad_alloc" in text else ConversionError(f"{what}: {text}")


def _last_line(error: Exception) -> str:
    """The library's message, without the places in its code before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else repr(error)
