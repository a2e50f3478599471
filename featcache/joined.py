"""A backbone and a linear head as one torch module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from featcache.backbones.capture import activations
from featcache.heads.linear import LinearForm

if TYPE_CHECKING:
    from PIL.Image import Image

    from featcache.backbones import Backbone


class Joined(nn.Module):
    """From the network's input to logits.

    Args:
        backbone: the frozen network.
        form: the linear head.
        layers: (name, scale) of each layer that the head reads, in network order.

    Attributes:
        classes: the labels of the logits.
    """

    def __init__(self, backbone: Backbone, form: LinearForm, layers: Sequence[tuple[str, float]]) -> None:
        super().__init__()
        self._backbone = backbone
        self._layers = backbone.resolve_layers([name for name, _ in layers])
        self._axes = backbone.network.axes
        self.backbone = backbone.module
        self.head = nn.Linear(form.weight.shape[1], form.weight.shape[0])
        with torch.no_grad():
            self.head.weight.copy_(torch.from_numpy(form.weight))
            self.head.bias.copy_(torch.from_numpy(form.bias))
        self.scales = [scale for _, scale in layers]
        self.classes = form.classes
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """(n, 3, h, w) float32, normalised, to logits (n, k)."""
        got = activations(self.backbone, self._layers, self._axes, x)
        parts = [got[layer.name].flatten(1) / s for layer, s in zip(self._layers, self.scales, strict=True)]
        return torch.as_tensor(self.head(torch.cat(parts, dim=1)))

    def train(self, mode: bool = True) -> Joined:
        """Set the head's mode; the backbone stays in eval mode, as it was when its vectors were made."""
        super().train(mode)
        self.backbone.eval()
        return self

    def transform(self, image: Image) -> Tensor:
        """An RGB image as input (3, h, w)."""
        return self._backbone.network.normalised(self._backbone.prepare(image)[None])[0]
