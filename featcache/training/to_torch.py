"""A backbone and a head as one torch module."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from featcache.backbones.activations import activations
from featcache.heads.predictors import SHARPNESS, KnnPredictor, LinearPredictor
from featcache.images.pixels import load_image
from featcache.training.partial_model import PartialModel

if TYPE_CHECKING:
    import numpy as np

    from featcache.backbones import Backbone
    from featcache.extraction.embed import ImageLike
    from featcache.heads.serialize import Classifier


class EndToEnd(nn.Module):
    """From the network's input to logits.

    Args:
        backbone: the frozen network.
        predictor: the head's.
        layers: (name, scale) of each layer that the head reads, in network order.

    Attributes:
        classes: the labels of the logits.
    """

    def __init__(
        self, backbone: Backbone, predictor: Classifier | PartialModel, layers: Sequence[tuple[str, float]]
    ) -> None:
        super().__init__()
        self._backbone = backbone
        self._layers = backbone.resolve_layers([name for name, _ in layers])
        self._axes = backbone.network.axes
        # A copy: whoever trains the module on leaves the backbone, and the head's predictions, as they are.
        self.backbone = copy.deepcopy(backbone.module)
        self.head = head_module(predictor)
        self.scales = [scale for _, scale in layers]
        self.classes = predictor.classes
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """(n, 3, h, w) float32, normalized, to logits (n, k)."""
        got = activations(self.backbone, self._layers, self._axes, x)
        parts = [got[layer.name].flatten(1) / s for layer, s in zip(self._layers, self.scales, strict=True)]
        return torch.as_tensor(self.head(torch.cat(parts, dim=1)))

    def train(self, mode: bool = True) -> EndToEnd:
        """Set the head's mode; the backbone stays in eval mode, as it was when its vectors were made."""
        super().train(mode)
        self.backbone.eval()
        return self

    def transform(self, image: ImageLike) -> Tensor:
        """An image as input (3, h, w), on the backbone's device.

        Args:
            image: a path, any PIL image, or an array, as for `Bundle.predict`.

        Raises:
            SourceError: the path does not exist.
            UnusableImageError: it cannot be read, or its pixels have no reading as RGB.
            UsageError: it is no image.
        """
        decoded = load_image(image, self._backbone.decode)
        return self._backbone.network.to_input(self._backbone.prepare(decoded)[None])[0]


class Votes(nn.Module):
    """The nearest stored vectors vote, as in `KnnPredictor`; logits are log-probabilities."""

    def __init__(self, predictor: KnnPredictor) -> None:
        super().__init__()
        self.k, self.count = predictor.k, len(predictor.classes)
        self.vectors: Tensor
        self.numbers: Tensor
        self.register_buffer("vectors", torch.from_numpy(predictor.vectors))
        self.register_buffer("numbers", torch.from_numpy(predictor.class_ids))

    def forward(self, x: Tensor) -> Tensor:
        """(n, d) vectors to logits (n, k)."""
        cosines, places = torch.topk(nn.functional.normalize(x, eps=1e-30) @ self.vectors.T, self.k)
        weights = torch.exp((cosines - cosines[:, :1]) / SHARPNESS)
        votes = weights.new_full((len(x), self.count), 1 / self.count)
        votes = votes.scatter_add(1, self.numbers[places], weights)
        return torch.log(votes / votes.sum(1, keepdim=True))


def head_module(predictor: Classifier | PartialModel) -> nn.Module:
    """A head as a module from vectors, or activations flattened, (n, d) float32 to logits (n, k)."""
    if isinstance(predictor, PartialModel):
        # A copy: whoever trains the module on, or moves it, leaves the head as it is.
        return copy.deepcopy(predictor.module).requires_grad_(True)
    if isinstance(predictor, KnnPredictor):
        return Votes(predictor)
    if isinstance(predictor, LinearPredictor):
        return _linear(predictor.weight, predictor.bias)
    first, *others = (_linear(weight, bias) for weight, bias in zip(predictor.weights, predictor.biases, strict=True))
    return nn.Sequential(first, *(module for layer in others for module in (nn.ReLU(), layer)))


def _linear(weight: np.ndarray, bias: np.ndarray) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(weight))
        linear.bias.copy_(torch.from_numpy(bias))
    return linear
