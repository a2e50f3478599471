"""A backbone and a head as one torch module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from featcache.backbones.capture import activations
from featcache.heads.forms import Classifier
from featcache.heads.linear import LinearForm
from featcache.heads.neighbours import SHARPNESS, NeighbourForm
from featcache.suffix_form import SuffixForm

if TYPE_CHECKING:
    from PIL.Image import Image

    from featcache.backbones import Backbone


class Joined(nn.Module):
    """From the network's input to logits.

    Args:
        backbone: the frozen network.
        form: the head's.
        layers: (name, scale) of each layer that the head reads, in network order.

    Attributes:
        classes: the labels of the logits.
    """

    def __init__(self, backbone: Backbone, form: Classifier | SuffixForm, layers: Sequence[tuple[str, float]]) -> None:
        super().__init__()
        self._backbone = backbone
        self._layers = backbone.resolve_layers([name for name, _ in layers])
        self._axes = backbone.network.axes
        self.backbone = backbone.module
        self.head = _module(form)
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


class Votes(nn.Module):
    """The nearest stored vectors vote, as in `featcache.heads.neighbours`; logits are log-probabilities."""

    def __init__(self, form: NeighbourForm) -> None:
        super().__init__()
        self.k, self.count = form.k, len(form.classes)
        self.vectors: Tensor
        self.numbers: Tensor
        self.register_buffer("vectors", torch.from_numpy(form.vectors))
        self.register_buffer("numbers", torch.from_numpy(form.numbers))

    def forward(self, x: Tensor) -> Tensor:
        """(n, d) vectors to logits (n, k)."""
        cosines, places = torch.topk(nn.functional.normalize(x, eps=1e-30) @ self.vectors.T, self.k)
        weights = torch.exp((cosines - cosines[:, :1]) / SHARPNESS)
        votes = weights.new_full((len(x), self.count), 1 / self.count)
        votes = votes.scatter_add(1, self.numbers[places], weights)
        return torch.log(votes / votes.sum(1, keepdim=True))


def _module(form: Classifier | SuffixForm) -> nn.Module:
    """From vectors, or activations flattened, (n, d) to logits (n, k)."""
    if isinstance(form, SuffixForm):
        return form.module
    return _linear(form) if isinstance(form, LinearForm) else Votes(form)


def _linear(form: LinearForm) -> nn.Linear:
    linear = nn.Linear(form.weight.shape[1], form.weight.shape[0])
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(form.weight))
        linear.bias.copy_(torch.from_numpy(form.bias))
    return linear
