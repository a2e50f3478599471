"""Capturing the activations of several layers in one forward pass, and pooling them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from featcache.backbones.layers import POOLED, Layer
from featcache.core.errors import UsageError


@dataclass(frozen=True, slots=True)
class Axes:
    """The axis order of a network's activations.

    Attributes:
        maps: ``NCHW``, ``NHWC``, or None if it is not declared.
        tokens: whether outputs with three axes are (batch, token, channel).
        prefix_tokens: tokens before those of the image patches; they are left out of pooling.
    """

    maps: str | None = None
    tokens: bool = False
    prefix_tokens: int = 0

    def of(self, module: nn.Module, output: Tensor) -> str:
        """``NC``, ``NLC``, ``NCHW`` or ``NHWC``, or ``?`` if it is unknown.

        A declared order that contradicts the shape counts as unknown, since pooling over the wrong axes would go
        unnoticed. Images are square, so the two equal axes are height and width.
        """
        if output.ndim == 2:
            return "NC"
        if output.ndim == 3 and self.tokens:
            # A square number of tokens: the patches only, before the prefix is added.
            return "?" if self.prefix_tokens and math.isqrt(output.shape[1]) ** 2 == output.shape[1] else "NLC"
        if output.ndim != 4:
            return "?"
        order = "NCHW" if isinstance(module, (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d)) else self.maps
        _, a, b, c = output.shape
        if a != c and ((b == c and order == "NHWC") or (a == b and order == "NCHW")):
            return "?"
        return order or "?"


def activations(module: nn.Module, layers: Sequence[Layer], axes: Axes, x: Tensor) -> dict[str, Tensor]:
    """The activations of some layers from one forward pass.

    Args:
        module: the network without its classifier.
        layers: the layers to capture.
        axes: the axis order.
        x: (n, 3, h, w) float input.

    Returns:
        A tensor (n, …) by layer name.

    Raises:
        UsageError: a layer cannot be pooled or does not run exactly once; ``pooled`` is not a vector.
    """
    outputs = outputs_of(module, {layer.path for layer in layers if layer.path}, x)
    got = {}
    for layer in layers:
        output = outputs[layer.path]
        if layer.name == POOLED:
            if not isinstance(output, Tensor) or output.ndim != 2:
                shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
                raise UsageError(
                    f"This network has no {POOLED!r}: without its classifier it returns {shape}, not one vector per "
                    "image. Choose another layer, such as MODULE:mean; `featcache layers B` lists them."
                )
            got[layer.name] = output
        else:
            got[layer.name] = pool(output, module.get_submodule(layer.path), layer, axes)
    return got


def outputs_of(module: nn.Module, paths: set[str], x: Tensor) -> dict[str, Any]:
    """The outputs of the submodules at *paths* in one pass, and of the whole module under ``""``.

    Raises:
        UsageError: a submodule runs more than once, or not at all.
    """
    outputs: dict[str, Any] = {}

    def hook(path: str) -> Any:
        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if path in outputs:
                raise UsageError(f"The layer {path!r} runs more than once per pass, so it has no single output.")
            # A copy, since later modules may change it in place, as a ReLU after a normalization does.
            outputs[path] = output.clone() if isinstance(output, Tensor) else output

        return keep

    handles = [module.get_submodule(path).register_forward_hook(hook(path)) for path in sorted(paths)]
    try:
        whole = module(x)
    finally:
        for handle in handles:
            handle.remove()
    missing = sorted(paths - outputs.keys())
    if missing:
        raise UsageError(f"The layer {missing[0]!r} does not run in a pass, so it has no output.")
    return outputs | {"": whole}


def pool(output: Any, module: nn.Module, layer: Layer, axes: Axes) -> Tensor:
    """Pool one module's output.

    Args:
        output: of the module.
        module: the module.
        layer: names the pooling.
        axes: the axis order.

    Returns:
        (n, c) for ``mean``, (n, 2c) for ``mean_std``, the output itself for ``none``. An output of one vector per image
        is its own ``mean``.

    Raises:
        UsageError: the output is not a tensor, or its axis order is unknown.
    """
    if not isinstance(output, Tensor):
        raise UsageError(f"The layer {layer.path!r} returns {type(output).__name__}, not a tensor.")
    order = axes.of(module, output)
    if order == "?":
        raise UsageError(
            f"It is not declared which axis of {layer.path!r} {tuple(output.shape[1:])} is the channel, and a guess "
            f"could pool over the wrong one. Use {POOLED!r} or a layer whose axes `featcache layers` shows."
        )
    if order == "NC":
        if layer.pooling == "mean":
            return output
        raise UsageError(
            f"The layer {layer.path!r} is one vector per image, so use {layer.path}:mean, not {layer.name}."
        )
    if layer.pooling == "none":
        return output
    if order == "NLC":
        flat = output[:, axes.prefix_tokens :].float()
    elif order == "NCHW":
        flat = output.flatten(2).transpose(1, 2).float()
    else:
        flat = output.flatten(1, 2).float()
    mean = flat.mean(1)
    if layer.pooling == "mean":
        return mean
    return torch.cat([mean, flat.std(1, correction=0)], dim=1)
