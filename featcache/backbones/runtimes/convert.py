"""From a network in torch to a graph for OpenVINO: uint8 pictures in, one pooled output a layer."""

from __future__ import annotations

import re
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featcache.backbones.layers import Layer
from featcache.backbones.runtimes.nan_guard import guard
from featcache.backbones.runtimes.openvino import Graph
from featcache.backbones.runtimes.openvino_library import library, pytorch_frontend
from featcache.core.errors import ConversionError

if TYPE_CHECKING:
    from featcache.backbones.network import Network

_OPERATION = re.compile(r"\b(?:aten|prim|prims|quantized|torchvision|inductor)::\w+")


def convert(network: Network, layers: Sequence[Layer], example: np.ndarray) -> Graph:
    """Convert what leads to the layers; all that lies behind the deepest of them is left out.

    The graph maps (n, h, w, 3) uint8 to one float32 output for each layer, in the order given, with the
    normalisation and the pooling inside. For a callable transform its input is (n, 3, h, w) float32. Of the input's
    shape only n is left open. There may be one output more, see `featcache.backbones.runtimes.nan_guard`.

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
    from featcache.backbones.runtimes.watching import looks_at_values

    class Pass(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network.module

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            got = activations(self.inner, layers, network.axes, network.scaled(x))
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
