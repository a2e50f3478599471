"""How a whole network is trained on pictures: for `finetune`, and for the trials of `advise`."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from featcache.backbones import Layer
from featcache.backbones.layers import POOLED
from featcache.core.errors import UsageError
from featcache.core.progress import Progress
from featcache.finetuning import loop
from featcache.finetuning.batches import PictureBatches, Pictures, in_order
from featcache.finetuning.linear_probe import outset, refit, temper
from featcache.finetuning.schedule import Schedule
from featcache.finetuning.validation import validation_rows
from featcache.strategies.beginning import train_on
from featcache.strategies.stages import network_stages
from featcache.strategies.trained import Trained
from featcache.strategies.training_items import class_numbers, items_digest
from featcache.training.dataset import LabelledVectors

if TYPE_CHECKING:
    from featcache.backbones import Backbone
    from featcache.backbones.network import Network

_DROPOUT = 0.2


class Whole(nn.Module):
    """From pictures (n, h, w, 3) uint8 to scores (n, k): a network and an output.

    Args:
        network: the network, whose module trains.
        output: from its vectors to the classes.
        dropout: share of the vector that is left out in a training step.
    """

    def __init__(self, network: Network, output: nn.Linear, dropout: float = 0.0) -> None:
        super().__init__()
        self._scaled = network.scaled
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
    elif backbone.made_in_python:
        raise UsageError(
            f"How the weights of {backbone.name} begin only its own code knows, so it cannot be trained from scratch "
            "here. Take a network that is known by its name (--arch)."
        )
    else:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = backbone.blank()
    network.module.requires_grad_(True)
    network.to(backbone.device)
    return network


def train_network(
    network: Network,
    pictures: Pictures,
    init: str,
    examples: LabelledVectors,
    learn: np.ndarray,
    scored: np.ndarray,
    schedule: Schedule,
    *,
    checkpoint: Path | None = None,
    task: Mapping[str, Any] | None = None,
    precision: str = "float32",
    progress: Progress,
) -> Trained:
    """Train a network with an output: the path solver's softmax on the frozen vectors, or zeros for random weights.

    Args:
        network: from `beginning`; trained where it stands.
        pictures: of the items.
        init: ``pretrained`` or ``scratch``.
        examples: the items, with the frozen network's vectors.
        learn, scored: rows to learn from, and rows that the result is scored on.
        schedule: of the training; its seed is that of all that is drawn.
        checkpoint, precision: as for `featcache.finetuning.loop.train`.
        task: what the training is, beside its classes and items.
        progress: is told of the epochs.

    Raises:
        UsageError, TrainingError: as for `featcache.finetuning.loop.train`.
    """
    fit, validation = validation_rows(examples, learn, scored, schedule.seed, progress)
    classes, numbers = class_numbers(examples.y, learn)
    chosen: dict[str, object] = {}
    if init == "pretrained":
        output, chosen = outset(examples.read, examples, fit, schedule.seed, progress)
    else:
        output = blank_output(network, len(classes))
    output.to(next(network.module.parameters()).device)
    model = Whole(network, output, 0.0 if init == "pretrained" else _DROPOUT)
    train = partial(train_on, units=examples.units[validation]) if init == "pretrained" else loop.train

    def held_out() -> Iterable[tuple[Tensor, Tensor]]:
        return in_order(pictures, validation, numbers[validation], schedule.batch_size)

    curve = train(
        model,
        [*network_stages(network.module), ("output", list(output.parameters()))],
        PictureBatches(pictures, fit, numbers[fit], schedule.batch_size, schedule.seed),
        held_out,
        schedule,
        checkpoint=checkpoint,
        task={**(task or {}), "classes": classes, "items": items_digest(examples, fit, validation)},
        precision=precision,
        progress=progress,
    )
    if curve.kept:
        temperature = temper(output, *loop.validation_scores(model, held_out, precision))
    else:
        chosen, temperature = refit(output, examples.read, examples, learn, schedule.seed, progress)
    return Trained(
        model, output, classes, curve, fit, validation, {"epoch": curve.kept, **chosen}, temperature, len(learn)
    )


def blank_output(network: Network, classes: int) -> nn.Linear:
    """An output of zeros, so that all classes are equally likely at first."""
    (width,) = network.shapes_of([Layer(POOLED, 0, ())])[POOLED]
    output = nn.Linear(width, classes)
    nn.init.zeros_(output.weight)
    nn.init.zeros_(output.bias)
    return output
