"""From a network in torch to a graph for OpenVINO: uint8 images in, one pooled output a layer.

NaN inside a network must come out of its graph, as it comes out of eager torch.

OpenVINO's ReLU, clamp and maximum of NaN and a number are the number. So where such an operation lies behind one that
can make NaN of numbers or of infinities, the graph gets one more output, which tells of each image whether there was
any.

What is not looked at are convolutions and matrix products, the mass of what a network computes: EfficientNet-Lite0
takes three times as long when the input of every ReLU is. They make no NaN of numbers. Where values above 3.4e38
occur they make it of infinities of both signs, and a ReLU right behind them hides it: the vector is then finite and
wrong.

Whether a network's Python code looks at values on its way: a graph has one way, whatever the image.
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
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from featcache.backbones.layers import Layer
from featcache.backbones.runtimes.openvino import Graph, library, pytorch_frontend
from featcache.core.errors import ConversionError

if TYPE_CHECKING:
    from featcache.backbones.network import Network


_TELLING = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
"""torch's own marks of operations whose answer is a Python value (``item``, ``equal``) or whose output's shape tells of
values (``nonzero``, ``unique``, ``masked_select``)."""

_HANDING_OUT = {
    torch.Tensor.__array__, torch.Tensor.__dlpack__, torch.Tensor.data_ptr, torch.Tensor.numpy, torch.Tensor.tolist,
    torch.Tensor.untyped_storage,
}  # fmt: skip
"""These hand out memory, which no operation shows."""


def looks_at_values(run: Callable[[], Any]) -> bool:
    """Whether *run* looks at values of tensors, or at shapes that depend on values.

    It has to be run in eager torch: in a trace shapes are tensors too. A look at a constant counts as well. What own C
    code reads from a tensor's memory is not seen.

    Args:
        run: a forward pass; it is called once.
    """

    class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch gives it no types
        looked = False

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.looked |= bool(_TELLING.intersection(func.tags)) and not _by_numbers(func, args)
            return func(*args, **(kwargs or {}))

    class Functions(TorchFunctionMode):
        looked = False

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.looked |= func in _HANDING_OUT
            return func(*args, **(kwargs or {}))

    with Operations() as operations, Functions() as functions:  # type: ignore[no-untyped-call]  # as above
        run()
    return bool(operations.looked or functions.looked)


def _by_numbers(func: Any, args: Any) -> bool:
    """Whether this is the indexing by whole numbers, of which the output has the shape of the numbers; by a mask it
    has as many rows as the mask has ones."""
    if func is not torch.ops.aten.index.Tensor:
        return False
    return all(index is None or index.dtype not in (torch.bool, torch.uint8) for index in args[1])


_SWALLOW = {"Relu", "Clamp", "HSigmoid", "HardSigmoid", "Maximum", "Minimum", "MaxPool", "AdaptiveMaxPool", "ReduceMax"}
_MAKE = {
    "Acos", "Acosh", "Add", "Asin", "Atanh", "Divide", "FloorMod", "Log", "Mod", "Multiply", "Power", "ReduceMean",
    "ReduceSum", "Sqrt", "Subtract",
}  # fmt: skip
_HARMLESS_BY = {"Divide", "Mod", "FloorMod", "Power"}
"""These make no NaN where their second operand is a constant, whole and not 0 or less."""


def guard(model: Any) -> Any:
    """Add the output that tells of NaN, where there can be any unseen.

    Args:
        model: an `openvino.Model` whose first axis is the batch.

    Returns:
        The same model, or one with an output more: (n,) float32, not 0 for an image that had NaN inside.
    """
    openvino, opset = library(), library().opset13
    watched = [node for node in _before(model, _SWALLOW) if _makes_nan(node)]
    told = []
    for node in watched:
        value = node.output(0)
        shape = value.get_partial_shape()
        if shape.rank.is_dynamic or shape.rank.get_length() < 2 or not value.get_element_type().is_real():
            continue
        flat = opset.reshape(value, np.array([0, -1], np.int64), True)
        is_nan = opset.convert(opset.is_nan(flat), "f32")
        told.append(opset.reduce_max(is_nan, np.array([1], np.int64), False))
    if not told:
        return model
    total = told[0]
    for one in told[1:]:
        total = opset.add(total, one)
    return openvino.Model([*model.get_results(), opset.result(total)], model.get_parameters())


def _before(model: Any, kinds: set[str]) -> list[Any]:
    """All operations that lead to one of these kinds, in the model's order."""
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
    if kind not in _MAKE or all(c is not None for c in constants):
        return False
    if (
        kind in ("Add", "Subtract", "Multiply")
        and (by := next((c for c in constants if c is not None), None)) is not None
    ):
        return kind == "Multiply" and bool((by == 0).any())
    if kind in _HARMLESS_BY and (by := constants[1]) is not None:
        return not (by > 0).all() or (kind == "Power" and bool((by != np.round(by)).any()))
    return True


def _constant(node: Any, i: int) -> np.ndarray | None:
    source = node.input_value(i).get_node()
    return np.asarray(source.data) if source.get_type_name() == "Constant" else None


_OPERATION = re.compile(r"\b(?:aten|prim|prims|quantized|torchvision|inductor)::\w+")


def convert(network: Network, layers: Sequence[Layer], example: np.ndarray) -> Graph:
    """Convert what leads to the layers; all that lies behind the deepest of them is left out.

    The graph maps (n, h, w, 3) uint8 to one float32 output for each layer, in the order given, with the
    normalisation and the pooling inside. For a callable transform its input is (n, 3, h, w) float32. Of the input's
    shape only n is left open. There may be one output more, see `featcache.backbones.runtimes.convert`.

    Args:
        network: the loaded network; it is traced in eval mode.
        layers: from `Backbone.resolve_layers`.
        example: two or more inputs of the shape that there will be.

    Raises:
        ConversionError: torch cannot trace it, OpenVINO has no such operation (it is named where that is known), or
            Python code inside looks at values, or at shapes that depend on them, which a trace cannot follow.
    """
    import torch
    from torch import Tensor, nn

    from featcache.backbones.activations import activations

    class Pass(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network.module

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            got = activations(self.inner, layers, network.axes, network.normalise(x))
            return tuple(got[layer.name].float() for layer in layers)

    x = torch.from_numpy(example)
    with warnings.catch_warnings(), torch.no_grad():
        # Tracing is called deprecated. It warns of every look at a shape as of one at a value; of these the pass before
        # tells them apart.
        warnings.simplefilter("ignore")
        if looks_at_values(lambda: Pass().eval()(x)):
            raise ConversionError(
                "what it computes may depend on values that it looks at in Python on its way, and a graph has one way"
            )
        try:
            frontend, show = pytorch_frontend()
            decoder = show(Pass().eval(), example_input=(x,), trace_kwargs={"check_trace": False})
            loaded = frontend.load(decoder)
            model = _with_input(frontend, loaded, example.shape, example.dtype == np.uint8)
            return _serialised(guard(model))
        except Exception as error:  # the two libraries raise what they like
            raise ConversionError(_reason(error)) from error


def _with_input(frontend: Any, loaded: Any, shape: tuple[int, ...], bytes_in: bool) -> Any:
    openvino = library()
    (place,) = loaded.get_inputs()
    loaded.set_partial_shape(place, openvino.PartialShape([-1, *shape[1:]]))
    loaded.set_element_type(place, openvino.Type.u8 if bytes_in else openvino.Type.f32)
    return frontend.convert(loaded)


def _serialised(model: Any) -> Graph:
    with tempfile.TemporaryDirectory(prefix="featcache-") as folder:
        path = Path(folder, "graph.xml")
        library().save_model(model, path, compress_to_fp16=False)
        return Graph(path.read_bytes(), np.fromfile(path.with_suffix(".bin"), np.uint8))


def _reason(error: Exception) -> str:
    """One line: the operations that stand in the way, or what the library says."""
    text = str(error)
    missing = text.partition("No conversion rule found for operations:")[2] or text
    operations = sorted(set(_OPERATION.findall(missing)))
    if operations:
        return f"OpenVINO cannot convert the operation {', '.join(operations)}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f"it cannot be converted for OpenVINO: {lines[-1] if lines else repr(error)}"
