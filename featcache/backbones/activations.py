"""Taking activations out of a network on their way, several layers in one pass."""

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
    """What the axes of a network's activations are.

    Attributes:
        maps: ``NCHW``, ``NHWC``, or None where it is not declared.
        tokens: whether outputs with three axes are (batch, token, channel).
        prefix_tokens: tokens before those of the image's patches, left out of pooling.
    """

    maps: str | None = None
    tokens: bool = False
    prefix_tokens: int = 0

    def of(self, module: nn.Module, output: Tensor) -> str:
        """``NC``, ``NLC``, ``NCHW`` or ``NHWC``, or ``?`` where it is not known.

        A declared order that the shape contradicts counts as not known: pooling over the wrong axes
        would be wrong in silence. Images are square, so the two equal axes are those of the image.
        """
        if output.ndim == 2:
            return "NC"
        if output.ndim == 3 and self.tokens:
            # A square number of tokens is the patches alone: the prefix is not there yet.
            return "?" if self.prefix_tokens and math.isqrt(output.shape[1]) ** 2 == output.shape[1] else "NLC"
        if output.ndim != 4:
            return "?"
        order = "NCHW" if isinstance(module, (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d)) else self.maps
        _, a, b, c = output.shape
        if a != c and ((b == c and order == "NHWC") or (a == b and order == "NCHW")):
            return "?"
        return order or "?"


def activations(module: nn.Module, layers: Sequence[Layer], axes: Axes, x: Tensor) -> dict[str, Tensor]:
    """One pass; what it gives at each layer.

    Args:
        module: the network without its classifier.
        layers: the layers wished for.
        axes: what the axes are.
        x: (n, 3, h, w) float input.

    Returns:
        For each layer's name a tensor (n, …).

    Raises:
        UsageError: a layer cannot be pooled or is not run exactly once; ``pooled`` is not a vector.
    """
    outputs = outputs_of(module, {layer.path for layer in layers if layer.path}, x)
    got = {}
    for layer in layers:
        output = outputs[layer.path]
        if layer.name == POOLED:
            if not isinstance(output, Tensor) or output.ndim != 2:
                shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
                raise UsageError(
                    f"This network has no {POOLED!r}: without its classifier it gives {shape}, not a vector an "
                    "image. Choose another layer, such as MODULE:mean; `featcache layers B` lists them."
                )
            got[layer.name] = output
        else:
            got[layer.name] = pool(output, module.get_submodule(layer.path), layer, axes)
    return got


def outputs_of(module: nn.Module, paths: set[str], x: Tensor) -> dict[str, Any]:
    """What the submodules at *paths* give in one pass; under ``""`` what the whole gives.

    Raises:
        UsageError: a submodule is run more than once, or not at all.
    """
    outputs: dict[str, Any] = {}

    def hook(path: str) -> Any:
        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if path in outputs:
                raise UsageError(f"The layer {path!r} is run more than once in a pass, so it has no one output.")
            # A copy, since what follows may work in place: ReLU after a normalisation does.
            outputs[path] = output.clone() if isinstance(output, Tensor) else output

        return keep

    handles = [module.get_submodule(path).register_forward_hook(hook(path)) for path in sorted(paths)]
    try:
        whole = module(x)
    finally:
        for handle in handles:
            handle.remove()
    absent = sorted(paths - outputs.keys())
    if absent:
        raise UsageError(f"The layer {absent[0]!r} is not run in a pass, so it has no output.")
    return outputs | {"": whole}


def pool(output: Any, module: nn.Module, layer: Layer, axes: Axes) -> Tensor:
    """Pool one module's output.

    Args:
        output: what the module gave.
        module: the module.
        layer: which pooling.
        axes: what the axes are.

    Returns:
        (n, c) for ``mean``, (n, 2c) for ``mean_std``, the output itself for ``none``. An output that is
        one vector an image is its own ``mean``.

    Raises:
        UsageError: the output is no tensor, or its axes are not known.
    """
    if not isinstance(output, Tensor):
        raise UsageError(f"The layer {layer.path!r} gives {type(output).__name__}, not a tensor.")
    order = axes.of(module, output)
    if order == "?":
        raise UsageError(
            f"It is not declared which axis of {layer.path!r} {tuple(output.shape[1:])} is the channel, and a guess "
            f"could pool over the wrong one. {POOLED!r} works, and so do layers whose axes `featcache layers` shows."
        )
    if order == "NC":
        if layer.pooling == "mean":
            return output
        raise UsageError(
            f"The layer {layer.path!r} is one vector an image: only {layer.path}:mean fits, {layer.name} does not."
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
