"""What trains: new layers or a network's tail on cached activations, or a whole network on images."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from featcache.backbones import Layer
from featcache.backbones.layers import POOLED
from featcache.core.errors import UsageError
from featcache.finetuning import loop
from featcache.finetuning.batches import CachedBatches, ImageBatches, ItemImages, activations_in_order, images_in_order
from featcache.finetuning.config import Schedule, network_stages
from featcache.finetuning.linear_probe import (
    compared,
    linear_probe_init,
    refit,
    scale_by_temperature,
    train_from_probe,
)
from featcache.finetuning.validation import class_ids_of, items_digest, validation_rows
from featcache.heads.minibatch import initial_layers, moments, threads_for, unstandardized
from featcache.heads.predictors import MLPPredictor

if TYPE_CHECKING:
    from featcache.backbones import Backbone
    from featcache.backbones.network import Network
    from featcache.backbones.split import SplitNetwork
    from featcache.core.progress import Progress
    from featcache.finetuning.history import Curve
    from featcache.training.dataset import FeatureDataset

Read = Callable[[np.ndarray], np.ndarray]
"""From row numbers (m,) to the frozen network's vectors (m, d) float32."""


class LinearProbe(NamedTuple):
    """The linear probe that a training begins with, or is compared with.

    Attributes:
        frozen: the vectors that it reads.
        chosen: its hyper-parameters.
        beside: its output, where the training does not begin with it.
    """

    frozen: Read
    chosen: Mapping[str, object]
    beside: nn.Linear | None = None


@dataclass(frozen=True)
class TrainingRun:
    """The items of a training and how it is run.

    Attributes:
        dataset: the items.
        train_rows, test_rows: rows to train and validate on, and rows that the result is scored on.
        config: the settings; the seed is that of all that is drawn.
        progress: reports the epochs.
        checkpoint: as for `featcache.finetuning.loop.train`.
        task: what the training is, beside its classes and items.
    """

    dataset: FeatureDataset
    train_rows: np.ndarray
    test_rows: np.ndarray
    config: Schedule
    progress: Progress
    checkpoint: Path | None = None
    task: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def rows(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows to train on, and rows to validate on.

        Raises:
            UsageError: as `validation_rows`.
        """
        return validation_rows(self.dataset, self.train_rows, self.test_rows, self.config.seed, self.progress)

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The k labels of the training rows, sorted."""
        return class_ids_of(self.dataset.y, self.train_rows)[0]

    @cached_property
    def class_ids(self) -> np.ndarray:
        """(n,) int64 of each item; -1 for other classes."""
        return class_ids_of(self.dataset.y, self.train_rows)[1]


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """A trained network.

    Attributes:
        model: from what it was trained on to scores (n, k), in evaluation mode; where the linear probe was kept instead
            of new layers, from its vectors.
        classes: k labels.
        curve: of the training.
        fit: (m,) rows that were trained on.
        validation: rows that decided when the training ended.
        chosen: ``epoch`` whose weights were kept (0: the linear probe), and the linear probe's hyper-parameters.
        temperature: that the output was divided by; None where it was not.
        fitted_on: number of training items; for a linear probe that was kept, with the validation items.
    """

    model: NetworkWithOutput
    classes: tuple[str, ...]
    curve: Curve
    fit: np.ndarray
    validation: np.ndarray
    chosen: Mapping[str, object]
    temperature: float | None
    fitted_on: int

    @property
    def output(self) -> nn.Linear:
        """The last layer."""
        return self.model.output


class NetworkWithOutput(nn.Module):
    """A network and a linear output to classes.

    Args:
        network: from the inputs to vectors (n, d).
        output: from its vectors to scores (n, k).
        dropout: share of the vector that is omitted in a training step.
    """

    def __init__(self, network: nn.Module, output: nn.Linear, dropout: float) -> None:
        super().__init__()
        self.network, self.dropout, self.output = network, nn.Dropout(dropout), output

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.output(self.dropout(self.network(x)))
        return scores


class _Normalized(nn.Module):
    """From images (n, h, w, 3) uint8 to the network's input."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self._normalize = network.normalize

    def forward(self, x: Tensor) -> Tensor:
        return self._normalize(x)


class _Standardized(nn.Module):
    """Vectors (n, d) less their mean, divided by their deviation.

    Args:
        mean, deviation: (d,) float32.
    """

    def __init__(self, mean: Tensor, deviation: Tensor) -> None:
        super().__init__()
        self.mean: Tensor
        self.deviation: Tensor
        self.register_buffer("mean", mean)
        self.register_buffer("deviation", deviation)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.deviation


def trainable_copy(backbone: Backbone, init: str, seed: int) -> Network:
    """A copy of a network with its pretrained weights or with random ones, on the backbone's device.

    Raises:
        UsageError: random weights for a module that was given in Python, which has none but its own.
    """
    if init == "pretrained":
        network = copy.copy(backbone.network)
        network.module = copy.deepcopy(network.module)
    elif backbone.is_custom:
        raise UsageError(
            f"Only the code of {backbone.name} knows how its weights are initialized, so it cannot be trained from "
            "scratch here. Take a network that is known by its name (--arch)."
        )
    else:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = backbone.architecture()
    network.module.requires_grad_(True)
    network.to(backbone.device)
    return network


def train_full(network: Network, images: ItemImages, init: str, run: TrainingRun) -> TrainingResult:
    """Train a whole network with an output: the linear probe's, or zeros for random weights.

    Args:
        network: from `trainable_copy`; trained in place.
        images: of the items.
        init: ``pretrained`` or ``scratch``.
        run: its dataset has the frozen network's vectors.

    Raises:
        UsageError, TrainingError: as for `featcache.finetuning.loop.train`.
    """
    fit, validation = run.rows
    probe = None
    if init == "pretrained":
        output, chosen = linear_probe_init(run.dataset.read, run.dataset, fit, run.config.seed, run.progress)
        probe = LinearProbe(run.dataset.read, chosen)
    else:
        output = zero_output(network, len(run.classes))
    output.to(next(network.module.parameters()).device)
    size, seed = run.config.batch_size, run.config.seed
    return _train(
        full_model(network, output, run.config.dropout),
        network_stages(network.module),
        ImageBatches(images, fit, run.class_ids[fit], size, seed),
        lambda: images_in_order(images, validation, run.class_ids[validation], size),
        run,
        probe,
    )


def full_model(network: Network, output: nn.Linear, dropout: float) -> NetworkWithOutput:
    """A network with an output, from images (n, h, w, 3) uint8 to scores (n, k)."""
    return NetworkWithOutput(nn.Sequential(_Normalized(network), network.module), output, dropout)


def zero_output(network: Network, classes: int) -> nn.Linear:
    """An output of zeros, so that all classes are equally likely at first."""
    (width,) = network.shapes_of([Layer(POOLED, 0, ())])[POOLED]
    output = nn.Linear(width, classes)
    nn.init.zeros_(output.weight)
    nn.init.zeros_(output.bias)
    return output


def train_tail(split: SplitNetwork, frozen: Read, run: TrainingRun) -> TrainingResult:
    """Train the tail of a network behind a split point, with the linear probe's output.

    Args:
        split: a new one, since its tail is trained in place.
        frozen: the frozen network's vectors.
        run: its dataset has the activations at the split point as its only layer.

    Raises:
        UsageError, TrainingError: as for `featcache.finetuning.loop.train`.
    """
    output, chosen = linear_probe_init(frozen, run.dataset, run.rows[0], run.config.seed, run.progress)
    output.to(next(split.tail.parameters()).device)
    model = NetworkWithOutput(nn.Sequential(nn.Unflatten(1, split.shape), split.tail), output, run.config.dropout)
    return _train_cached(
        model, [(name, list(part.parameters())) for name, part in split.stages], run, LinearProbe(frozen, chosen)
    )


def train_new_layers(run: TrainingRun, frozen: Read, device: str) -> TrainingResult:
    """Train new hidden layers with rectifiers, and an output, on standardized vectors of the frozen part.

    Args:
        run: its dataset has one vector per image; ``config.hidden`` gives the widths.
        frozen: the whole frozen network's vectors, whose linear probe is kept unless the new layers beat it.
        device: torch device.

    Raises:
        UsageError, TrainingError: as for `featcache.finetuning.loop.train`.
    """
    config, dataset = run.config, run.dataset
    probe = LinearProbe(frozen, *linear_probe_init(frozen, dataset, run.rows[0], config.seed, run.progress)[::-1])
    places, k = dataset.view_rows(run.rows[0]), len(dataset.views)
    mean, deviation, *_ = moments(
        lambda: (
            (dataset.read_views(part), run.class_ids[part // k])
            for part in np.array_split(places, -(-len(places) // 1024))
        ),
        sum(dataset.widths),
        len(run.classes),
    )
    layers = initial_layers(
        [sum(dataset.widths), *config.hidden, len(run.classes)], torch.Generator().manual_seed(config.seed)
    )
    linears = []
    for weight, bias in layers:
        linear = nn.Linear(weight.shape[1], weight.shape[0])
        linear.load_state_dict({"weight": weight, "bias": bias})
        linears.append(linear)
    *hidden, output = linears
    parts: list[nn.Module] = [_Standardized(mean, deviation)]
    for number, linear in enumerate(hidden):
        # The dropout behind the last hidden layer is that in front of the output.
        parts += [*([nn.Dropout(config.dropout)] if number else []), linear, nn.ReLU()]
    model = NetworkWithOutput(nn.Sequential(*parts), output, config.dropout).to(device)
    stages = [(f"hidden.{number}", list(linear.parameters())) for number, linear in enumerate(hidden)]
    with threads_for(config.batch_size * max(weight.numel() for weight, _ in layers)):
        return _train_cached(model, stages, run, probe)


def mlp_predictor(result: TrainingResult) -> MLPPredictor:
    """The trained layers for vectors that are not standardized."""
    parts = list(result.model.cpu().modules())
    (standardized,) = (part for part in parts if isinstance(part, _Standardized))
    layers = [(part.weight, part.bias) for part in parts if isinstance(part, nn.Linear)]
    weights, biases = zip(*unstandardized(layers, standardized.mean, standardized.deviation), strict=True)
    return MLPPredictor(weights, biases, result.classes)


def _train_cached(
    model: NetworkWithOutput, stages: loop.Stages, run: TrainingRun, probe: LinearProbe | None
) -> TrainingResult:
    """Train on the cached activations of a run; see `_train`."""
    (fit, validation), size = run.rows, run.config.batch_size
    batches = CachedBatches(run.dataset, fit, run.class_ids[fit], size, run.config.seed)
    return _train(
        model,
        stages,
        batches,
        lambda: activations_in_order(run.dataset, validation, run.class_ids[validation], size),
        run,
        probe,
    )


def _train(
    model: NetworkWithOutput,
    stages: loop.Stages,
    batches: loop.Batches,
    validation: loop.Validation,
    run: TrainingRun,
    probe: LinearProbe | None,
) -> TrainingResult:
    """Train, and choose between what was trained and the linear probe, where there is one.

    Args:
        model: its output is the linear probe's, unless that stands beside.
        stages: of its network.
        batches, validation: of the run's items.
        run: the items and the settings.
        probe: whose output it is, or that stands beside; None for random weights.
    """
    fit, validating = run.rows
    dataset, config = run.dataset, run.config
    task = {
        **run.task,
        "views": list(dataset.views),
        "classes": run.classes,
        "items": items_digest(dataset, fit, validating),
    }
    stages = [*stages, ("output", list(model.output.parameters()))]
    if probe is None or probe.beside is not None:
        curve = loop.train(
            model, stages, batches, validation, config, checkpoint=run.checkpoint, task=task, progress=run.progress
        )
        if probe is not None and probe.beside is not None:
            with torch.no_grad():
                before = probe.beside(torch.from_numpy(probe.frozen(validating).astype(np.float32))).double()
            numbers, units = torch.from_numpy(run.class_ids[validating]), dataset.groups[validating]
            curve = compared(curve, before, numbers, units, config, run.progress)
            model = model if curve.kept else NetworkWithOutput(nn.Identity(), probe.beside, 0.0).eval()
    else:
        curve = train_from_probe(
            model, stages, batches, validation, config,
            checkpoint=run.checkpoint, task=task, units=dataset.groups[validating], progress=run.progress,
        )  # fmt: skip
    chosen: Mapping[str, object] = {} if probe is None else probe.chosen
    if curve.kept or probe is None:
        scores = loop.validation_scores(model, validation, config.precision)
        temperature, fitted_on = scale_by_temperature(model.output, *scores), len(fit)
    else:
        chosen, temperature = refit(model.output, probe.frozen, dataset, run.train_rows, config.seed, run.progress)
        fitted_on = len(run.train_rows)
    return TrainingResult(
        model, run.classes, curve, fit, validating, {"epoch": curve.kept, **chosen}, temperature, fitted_on
    )
