"""Converting a torch network to an OpenVINO graph: uint8 images in, one pooled output per layer.

A traced graph has one path, so a network whose Python code reads values of tensors is refused (`looks_at_values`).

OpenVINO's ReLU, clamp and maximum turn NaN into a number, so an image that gives NaN in eager torch could get a finite,
wrong vector. If such an operation follows one that can make NaN from numbers or infinities, the graph gets one more
output that reports NaN for each image (`guard`). Convolutions and matrix products are not watched, since that would
triple the time of EfficientNet-Lite0: they make NaN only from infinities of both signs, that is from values above
3.4e38, and a ReLU right after them hides it.

Tracing by TorchScript is used, not `torch.export`: on EfficientNet-Lite0, ResNet-18 and ViT-S the vectors (within 2e-6
of eager torch) and the speed are the same, but export takes 22, 8 and 24 s in place of 3.6, 1.3 and 4.0 s, and it
specializes the batch size of networks that look at it.
"""

from __future__ import annotations

import re
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from featcache.backbones.activations import activations
from featcache.backbones.runtimes.openvino import Graph, library, pytorch_frontend
from featcache.core.errors import ConversionError

if TYPE_CHECKING:
    from featcache.backbones.layers import Layer
    from featcache.backbones.network import Network

_VALUE_TAGS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
"""torch's tags of operations that return a Python value (``item``, ``equal``), or whose output shape depends on values
(``nonzero``, ``unique``, ``masked_select``)."""

_MEMORY_ACCESS = {
    torch.Tensor.__array__, torch.Tensor.__dlpack__, torch.Tensor.data_ptr, torch.Tensor.numpy, torch.Tensor.tolist,
    torch.Tensor.untyped_storage,
}  # fmt: skip
"""These give access to memory, which no operation shows."""

_HIDE_NAN = {
    "AdaptiveMaxPool", "Clamp", "HSigmoid", "HardSigmoid", "MaxPool", "Maximum", "Minimum", "ReduceMax", "Relu",
}  # fmt: skip
_MAKE_NAN = {
    "Acos", "Acosh", "Add", "Asin", "Atanh", "Divide", "FloorMod", "Log", "Mod", "Multiply", "Power", "ReduceMean",
    "ReduceSum", "Sqrt", "Subtract",
}  # fmt: skip
_SAFE_BY_CONSTANT = {"Divide", "Mod", "FloorMod", "Power"}
"""These make no NaN if their second operand is a constant, integer and positive."""

_OPERATION = re.compile(r"\b(?:aten|prim|prims|quantized|torchvision|inductor)::\w+")


def convert(network: Network, layers: Sequence[Layer], example: np.ndarray) -> Graph:
    """Convert the part of a network that leads to some layers.

    The graph maps (n, h, w, 3) uint8 to one float32 output per layer, in the given order, and includes normalization
    and pooling. For a callable transform the input is (n, 3, h, w) float32. Only n is dynamic. `guard` may add an
    output.

    Args:
        network: the loaded network; it is traced in eval mode.
        layers: from `Backbone.resolve_layers`.
        example: two or more inputs of the final shape.

    Raises:
        ConversionError: torch cannot trace it, OpenVINO lacks an operation (named if known), or Python code inside
            reads values or shapes that depend on values.
    """

    class Pass(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network.module

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            got = activations(self.inner, layers, network.axes, network.normalize(x))
            return tuple(got[layer.name].float() for layer in layers)

    x = torch.from_numpy(example)
    with warnings.catch_warnings(), torch.no_grad():
        # Tracing warns of its deprecation, and of every shape that is read; `looks_at_values` tells these from values.
        warnings.simplefilter("ignore")
        if looks_at_values(lambda: Pass().eval()(x)):
            raise ConversionError(
                "its Python code reads values of tensors, so it may compute something else for other images"
            )
        try:
            frontend, show = pytorch_frontend()
            decoder = show(Pass().eval(), example_input=(x,), trace_kwargs={"check_trace": False})
            loaded = frontend.load(decoder)
            model = _with_input(frontend, loaded, example.shape, example.dtype == np.uint8)
            return _serialized(guard(model))
        except Exception as error:  # both libraries raise errors of many types
            raise ConversionError(_reason(error)) from error


def _with_input(frontend: Any, loaded: Any, shape: tuple[int, ...], bytes_in: bool) -> Any:
    openvino = library()
    (place,) = loaded.get_inputs()
    loaded.set_partial_shape(place, openvino.PartialShape([-1, *shape[1:]]))
    loaded.set_element_type(place, openvino.Type.u8 if bytes_in else openvino.Type.f32)
    return frontend.convert(loaded)


def _serialized(model: Any) -> Graph:
    with tempfile.TemporaryDirectory(prefix="featcache-") as folder:
        path = Path(folder, "graph.xml")
        library().save_model(model, path, compress_to_fp16=False)
        return Graph(path.read_bytes(), np.fromfile(path.with_suffix(".bin"), np.uint8))


def _reason(error: Exception) -> str:
    """One line: the operations without a conversion, or the library's message."""
    text = str(error)
    missing = text.partition("No conversion rule found for operations:")[2] or text
    operations = sorted(set(_OPERATION.findall(missing)))
    if operations:
        return f"OpenVINO cannot convert the operation {', '.join(operations)}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f"it cannot be converted for OpenVINO: {lines[-1] if lines else repr(error)}"


def looks_at_values(run: Callable[[], Any]) -> bool:
    """Whether Python code in *run* reads values of tensors, or shapes that depend on values.

    Reading a constant counts as well. What C code reads from a tensor's memory goes unnoticed. (`FakeTensorMode`
    refuses the same reads except ``__dlpack__``, but a pass takes 1 to 3 s in place of 0.1 to 0.4 s.)

    Args:
        run: a forward pass in eager torch; it is called once.
    """

    class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch gives it no types
        looked = False

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.looked |= bool(_VALUE_TAGS.intersection(func.tags)) and not _indexes_by_integers(func, args)
            return func(*args, **(kwargs or {}))

    class Functions(TorchFunctionMode):
        looked = False

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.looked |= func in _MEMORY_ACCESS
            return func(*args, **(kwargs or {}))

    with Operations() as operations, Functions() as functions:  # type: ignore[no-untyped-call]  # as above
        run()
    return bool(operations.looked or functions.looked)


def _indexes_by_integers(func: Any, args: Any) -> bool:
    """Whether this is indexing by integers, whose output shape is known; with a mask it depends on values."""
    if func is not torch.ops.aten.index.Tensor:
        return False
    return all(index is None or index.dtype not in (torch.bool, torch.uint8) for index in args[1])


def guard(model: Any) -> Any:
    """Add an output that reports NaN, if an operation can hide any.

    Args:
        model: an `openvino.Model` whose first axis is the batch.

    Returns:
        The same model, or one with another output: (n,) float32, not 0 for an image with NaN inside.
    """
    openvino, opset = library(), library().opset13
    watched = [node for node in _before(model, _HIDE_NAN) if _makes_nan(node)]
    reports = []
    for node in watched:
        value = node.output(0)
        shape = value.get_partial_shape()
        if shape.rank.is_dynamic or shape.rank.get_length() < 2 or not value.get_element_type().is_real():
            continue
        flat = opset.reshape(value, np.array([0, -1], np.int64), True)
        is_nan = opset.convert(opset.is_nan(flat), "f32")
        reports.append(opset.reduce_max(is_nan, np.array([1], np.int64), False))
    if not reports:
        return model
    total = reports[0]
    for report in reports[1:]:
        total = opset.add(total, report)
    return openvino.Model([*model.get_results(), opset.result(total)], model.get_parameters())


def _before(model: Any, kinds: set[str]) -> list[Any]:
    """All operations that an operation of these kinds depends on, in the model's order."""
    wanted: set[str] = set()
    found = []
    for node in reversed(model.get_ordered_ops()):
        if node.get_friendly_name() in wanted:
            found.append(node)
        if node.get_type_name() in kinds or node.get_friendly_name() in wanted:
            wanted.update(node.input_value(i).get_node().get_friendly_name() for i in range(node.get_input_size()))
    return found[::-1]


def _makes_nan(node: Any) -> bool:
    kind = node.get_type_name()
    constants = [_constant(node, i) for i in range(node.get_input_size())]
    if any(c is not None and c.dtype.kind == "f" and not np.isfinite(c).all() for c in constants):
        return True
    if kind not in _MAKE_NAN or all(c is not None for c in constants):
        return False
    if (
        kind in ("Add", "Subtract", "Multiply")
        and (by := next((c for c in constants if c is not None), None)) is not None
    ):
        return kind == "Multiply" and bool((by == 0).any())
    if kind in _SAFE_BY_CONSTANT and (by := constants[1]) is not None:
        return not (by > 0).all() or (kind == "Power" and bool((by != np.round(by)).any()))
    return True


def _constant(node: Any, i: int) -> np.ndarray | None:
    source = node.input_value(i).get_node()
    return np.asarray(source.data) if source.get_type_name() == "Constant" else None
