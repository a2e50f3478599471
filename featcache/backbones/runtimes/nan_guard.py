"""NaN inside a network must come out of its graph, as it comes out of eager torch.

OpenVINO's ReLU, clamp and maximum of NaN and a number are the number. So where such an operation lies behind one that
can make NaN of numbers or of infinities, the graph gets one more output, which tells of each image whether there was
any.

What is not looked at are convolutions and matrix products, the mass of what a network computes: EfficientNet-Lite0
takes three times as long when the input of every ReLU is. They make no NaN of numbers. Where values above 3.4e38
occur they make it of infinities of both signs, and a ReLU right behind them hides it: the vector is then finite and
wrong.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from featcache.backbones.runtimes.openvino_library import library

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
