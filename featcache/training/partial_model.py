"""The trained tail of a network, which predicts from the activations at a split point.

Only weights are kept, no code: the backbone is split again (`featcache.backbones.split`) and its tail gets them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from featcache.core.errors import BundleError
from featcache.heads.predictors import LinearPredictor
from featcache.metrics.calibration import softmax

if TYPE_CHECKING:
    from torch import nn

    from featcache.backbones import Backbone
    from featcache.backbones.split import SplitNetwork
    from featcache.core.recipe import Recipe

KIND = "suffix on activations"
_PREFIX = "suffix."
_BATCH = 32


@dataclass(frozen=True)
class PartialModel:
    """The trained tail of a network.

    Attributes:
        layer: path of the first module that was trained.
        shape: of one image's activations at the split point.
        tensors: the state of the tail, by name.
        output: from the tail's vectors (n, e) to the classes.
        recipe: of the frozen network.
        backbone: the frozen network; None to find it by its recipe.
    """

    layer: str
    shape: tuple[int, ...]
    tensors: Mapping[str, np.ndarray]
    output: LinearPredictor
    recipe: Recipe
    backbone: Backbone | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """k labels."""
        return self.output.classes

    @property
    def link(self) -> str:
        """``softmax``."""
        return self.output.link

    @cached_property
    def frozen(self) -> Backbone:
        """The frozen network in front.

        Raises:
            RecipeMismatchError: it cannot be loaded, or has another recipe.
        """
        from featcache.extraction.embed import backbone_for

        return backbone_for(self.recipe, self.backbone)

    @cached_property
    def module(self) -> nn.Module:
        """From activations (n, d), flattened, to logits (n, k), in eval mode.

        Raises:
            RecipeMismatchError: the backbone cannot be loaded, or has another recipe.
            WeightsError: the weights do not fit the backbone's tail.
            BundleError: the backbone's activations or vectors have another shape.
        """
        import torch
        from torch import nn

        from featcache.backbones.layers import POOLED
        from featcache.backbones.split import split_network
        from featcache.backbones.weights import load_into

        # On the CPU, where the arrays are, whatever device the frozen network is on.
        made = split_network(self.frozen.network, self.layer)
        tail = made.tail.cpu()
        load_into(tail, {name: torch.from_numpy(np.array(t)) for name, t in self.tensors.items()}, "the bundle")
        ((width,),) = (layer.shape for layer in self.frozen.resolve_layers([POOLED]))
        if (made.shape, width) != (tuple(self.shape), self.output.weight.shape[1]):
            raise BundleError(
                f"The bundle does not fit its backbone, which gives {made.shape} at the split point {self.layer!r} and "
                f"{width} numbers at its end, not {tuple(self.shape)} and {self.output.weight.shape[1]}."
            )
        output = nn.Linear(self.output.weight.shape[1], len(self.classes))
        with torch.no_grad():
            output.weight.copy_(torch.from_numpy(self.output.weight))
            output.bias.copy_(torch.from_numpy(self.output.bias))
        return nn.Sequential(nn.Unflatten(1, self.shape), tail, output).requires_grad_(False).eval()

    def scores(self, X: np.ndarray) -> np.ndarray:
        """Logits (n, k) float64 of activations (n, d); computed in float32."""
        import torch

        X = np.asarray(X, np.float32)
        with torch.inference_mode():
            parts = [self.module(torch.from_numpy(X[at : at + _BATCH])) for at in range(0, len(X), _BATCH)]
        return torch.cat(parts).double().numpy() if parts else np.zeros((0, len(self.classes)))

    def probabilities(self, X: np.ndarray) -> np.ndarray:
        """(n, k) float64, rows sum to 1."""
        return softmax(self.scores(X))

    def predict(self, X: np.ndarray) -> np.ndarray:
        """(n,) labels."""
        return np.asarray(np.array(self.classes)[self.scores(X).argmax(axis=1)])

    def frozen_vectors(self, read: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
        """The vectors of the frozen network from the activations at the split point, see `frozen_vectors`."""
        from featcache.backbones.split import split_network

        return frozen_vectors(split_network(self.frozen.network, self.layer), read)

    def with_temperature(self, temperature: float) -> PartialModel:
        """The same with logits divided by a temperature; it predicts the same labels."""
        return replace(self, output=self.output.with_temperature(temperature))


def frozen_vectors(split: SplitNetwork, read: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """The vectors of the tail before it is trained, computed once for each row.

    Args:
        split: as it was made, not trained yet.
        read: from row numbers (m,) to activations (m, d), flattened.

    Returns:
        From row numbers (m,) to (m, e) float32, what ``pooled`` of the frozen network is.
    """
    import torch

    device = next(split.tail.parameters()).device
    known: dict[int, np.ndarray] = {}

    def vectors(rows: np.ndarray) -> np.ndarray:
        missing = np.array([row for row in dict.fromkeys(rows.tolist()) if row not in known], dtype=np.int64)
        for start in range(0, len(missing), _BATCH):
            part = missing[start : start + _BATCH]
            X = torch.from_numpy(read(part)).reshape(-1, *split.shape).to(device)
            with torch.inference_mode():
                known.update(zip(part.tolist(), split.tail(X).float().cpu().numpy(), strict=True))
        return np.stack([known[row] for row in rows.tolist()])

    return vectors


def pack(predictor: PartialModel) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and plain values."""
    arrays = {_PREFIX + name: np.asarray(tensor) for name, tensor in predictor.tensors.items()}
    arrays |= {"weight": predictor.output.weight.astype(np.float32), "bias": predictor.output.bias.astype(np.float32)}
    return arrays, {"from_layer": predictor.layer, "link": predictor.link}


def unpack(
    arrays: Mapping[str, np.ndarray],
    values: Mapping[str, Any],
    classes: tuple[str, ...],
    shape: tuple[int, ...],
    recipe: Recipe | None,
) -> PartialModel:
    """The model that was packed.

    Args:
        arrays, values: as `pack` gave them; others among them are ignored.
        classes: labels.
        shape: of one image's activations at the split point.
        recipe: of the frozen network.

    Raises:
        KeyError: an array or a value is missing.
        BundleError: they do not fit together, or hold values that are not finite.
    """
    weight, bias, layer = arrays["weight"], arrays["bias"], values["from_layer"]
    tensors = {name.removeprefix(_PREFIX): array for name, array in arrays.items() if name.startswith(_PREFIX)}
    holds = (
        recipe is not None
        and values["link"] == "softmax"
        and isinstance(layer, str)
        and layer != ""
        and weight.ndim == 2
        and len(weight) == len(classes) == len(bias)
        and bias.ndim == 1
        and weight.dtype == bias.dtype == np.float32
        and math.prod(shape) > 0
        and all(np.isfinite(array).all() for array in (weight, bias, *tensors.values()))
    )
    if not holds or recipe is None:
        raise BundleError("The arrays do not fit their description.")
    return PartialModel(layer, shape, tensors, LinearPredictor(weight, bias, classes, "softmax"), recipe)
