"""How a whole network is trained on images: for `finetune`, and for the trials of `advise`.

How the layers behind a cut are trained on cached activations: for `tune`, and for the trials of `advise`.

What a training of a suffix or of a whole network leaves.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from featcache.backbones import Layer
from featcache.backbones.layers import POOLED
from featcache.backbones.split import SplitNetwork
from featcache.core.errors import UsageError
from featcache.core.progress import Progress
from featcache.finetuning import loop
from featcache.finetuning.batches import CachedBatches, ImageBatches, Pictures, activations_in_order, images_in_order
from featcache.finetuning.history import Curve
from featcache.finetuning.linear_probe import linear_probe_init, refit, temper, train_on
from featcache.finetuning.schedule import TrainingConfig, network_stages
from featcache.finetuning.validation import class_numbers, items_digest, validation_rows
from featcache.training.dataset import FeatureDataset

if TYPE_CHECKING:
    from featcache.backbones import Backbone
    from featcache.backbones.network import Network


_DROPOUT = 0.2


class FullModel(nn.Module):
    """From images (n, h, w, 3) uint8 to scores (n, k): a network and an output.

    Args:
        network: the network, whose module trains.
        output: from its vectors to the classes.
        dropout: share of the vector that is left out in a training step.
    """

    def __init__(self, network: Network, output: nn.Linear, dropout: float = 0.0) -> None:
        super().__init__()
        self._scaled = network.normalise
        self.network, self.dropout, self.output = network.module, nn.Dropout(dropout), output

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.output(self.dropout(self.network(self._scaled(x))))
        return scores


def beginning(backbone: Backbone, init: str, seed: int) -> Network:
    """A copy of a network that trains, with its pretrained weights or with random ones, on the backbone's device.

    Raises:
        UsageError: random weights for a module that was given in Python, which has none but its own.
    """
    if init == "pretrained":
        network = copy.copy(backbone.network)
        network.module = copy.deepcopy(network.module)
    elif backbone.is_custom:
        raise UsageError(
            f"How the weights of {backbone.name} begin only its own code knows, so it cannot be trained from scratch "
            "here. Take a network that is known by its name (--arch)."
        )
    else:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = backbone.architecture()
    network.module.requires_grad_(True)
    network.to(backbone.device)
    return network


def train_network(
    network: Network,
    pictures: Pictures,
    init: str,
    dataset: FeatureDataset,
    train_rows: np.ndarray,
    scored: np.ndarray,
    schedule: TrainingConfig,
    *,
    checkpoint: Path | None = None,
    task: Mapping[str, Any] | None = None,
    precision: str = "float32",
    progress: Progress,
) -> Trained:
    """Train a network with an output: the path solver's softmax on the frozen vectors, or zeros for random weights.

    Args:
        network: from `beginning`; trained where it stands.
        images: of the items.
        init: ``pretrained`` or ``scratch``.
        dataset: the items, with the frozen network's vectors.
        train_rows, scored: rows to learn from, and rows that the result is scored on.
        schedule: of the training; its seed is that of all that is drawn.
        checkpoint, precision: as for `featcache.finetuning.loop.train`.
        task: what the training is, beside its classes and items.
        progress: is told of the epochs.

    Raises:
        UsageError, TrainingError: as for `featcache.finetuning.loop.train`.
    """
    fit, validation = validation_rows(dataset, train_rows, scored, schedule.seed, progress)
    classes, numbers = class_numbers(dataset.y, train_rows)
    chosen: dict[str, object] = {}
    if init == "pretrained":
        output, chosen = linear_probe_init(dataset.read, dataset, fit, schedule.seed, progress)
    else:
        output = blank_output(network, len(classes))
    output.to(next(network.module.parameters()).device)
    model = FullModel(network, output, 0.0 if init == "pretrained" else _DROPOUT)
    train = partial(train_on, units=dataset.groups[validation]) if init == "pretrained" else loop.train

    def held_out() -> Iterable[tuple[Tensor, Tensor]]:
        return images_in_order(pictures, validation, numbers[validation], schedule.batch_size)

    curve = train(
        model,
        [*network_stages(network.module), ("output", list(output.parameters()))],
        ImageBatches(pictures, fit, numbers[fit], schedule.batch_size, schedule.seed),
        held_out,
        schedule,
        checkpoint=checkpoint,
        task={**(task or {}), "classes": classes, "items": items_digest(dataset, fit, validation)},
        precision=precision,
        progress=progress,
    )
    if curve.kept:
        temperature = temper(output, *loop.validation_scores(model, held_out, precision))
    else:
        chosen, temperature = refit(output, dataset.read, dataset, train_rows, schedule.seed, progress)
    return Trained(
        model, output, classes, curve, fit, validation, {"epoch": curve.kept, **chosen}, temperature, len(train_rows)
    )


def blank_output(network: Network, classes: int) -> nn.Linear:
    """An output of zeros, so that all classes are equally likely at first."""
    (width,) = network.shapes_of([Layer(POOLED, 0, ())])[POOLED]
    output = nn.Linear(width, classes)
    nn.init.zeros_(output.weight)
    nn.init.zeros_(output.bias)
    return output


def train_suffix(
    cut: SplitNetwork,
    dataset: FeatureDataset,
    frozen: Callable[[np.ndarray], np.ndarray],
    train_rows: np.ndarray,
    scored: np.ndarray,
    schedule: TrainingConfig,
    *,
    checkpoint: Path | None = None,
    task: Mapping[str, Any] | None = None,
    progress: Progress,
) -> Trained:
    """Train what follows a cut, with an output that begins as the path solver's softmax on the frozen vectors.

    Args:
        cut: a new one, since its suffix is trained where it stands.
        dataset: the items, with the activations at the cut as their only layer.
        frozen: from row numbers (m,) to the frozen network's vectors (m, d).
        train_rows, scored: rows to learn from, and rows that the result is scored on.
        schedule: of the training; its seed is that of all that is drawn.
        checkpoint: as for `featcache.finetuning.loop.train`.
        task: what the training is, beside its classes, views and items.
        progress: is told of the epochs.

    Raises:
        UsageError, TrainingError: as for `featcache.finetuning.loop.train`.
    """
    fit, validation = validation_rows(dataset, train_rows, scored, schedule.seed, progress)
    classes, numbers = class_numbers(dataset.y, train_rows)
    output, chosen = linear_probe_init(frozen, dataset, fit, schedule.seed, progress)
    output.to(next(cut.tail.parameters()).device)
    model = nn.Sequential(nn.Unflatten(1, cut.shape), cut.tail, output)

    def held_out() -> Iterable[tuple[Tensor, Tensor]]:
        return activations_in_order(dataset, validation, numbers[validation], schedule.batch_size)

    curve = train_on(
        model,
        [*((name, list(part.parameters())) for name, part in cut.stages), ("output", list(output.parameters()))],
        CachedBatches(dataset, fit, numbers[fit], schedule.batch_size, schedule.seed),
        held_out,
        schedule,
        checkpoint=checkpoint,
        task={
            **(task or {}), "views": list(dataset.views), "classes": classes,
            "items": items_digest(dataset, fit, validation),
        },
        units=dataset.groups[validation],
        progress=progress,
    )  # fmt: skip
    if curve.kept:
        temperature = temper(output, *loop.validation_scores(model, held_out, "float32"))
    else:
        chosen, temperature = refit(output, frozen, dataset, train_rows, schedule.seed, progress)
    return Trained(
        model, output, classes, curve, fit, validation, {"epoch": curve.kept, **chosen}, temperature, len(train_rows)
    )


@dataclass(frozen=True, slots=True)
class Trained:
    """A trained network.

    Attributes:
        model: from what it was trained on to scores (n, k), in evaluation mode.
        output: its last layer.
        classes: k labels.
        curve: of the training.
        fit: (m,) rows that were trained on.
        validation: rows that decided when the training ended.
        chosen: ``epoch`` whose weights were kept (0: those of the beginning), and what was chosen for the output that
            the training began with.
        temperature: that the output was divided by; None where it was not.
        refitted: items that the output learned from where the beginning was kept.
    """

    model: nn.Module
    output: nn.Linear
    classes: tuple[str, ...]
    curve: Curve
    fit: np.ndarray
    validation: np.ndarray
    chosen: Mapping[str, object]
    temperature: float | None
    refitted: int

    @property
    def learned(self) -> int:
        """How many items taught what answers: with the weights of the beginning, those that validated as well."""
        return len(self.fit) if self.curve.kept else self.refitted
