"""The training loop: of the later layers on cached activations, and of whole networks from images alike.

What holds whatever happens:

- The network ends with the weights of the epoch of the least validation loss (at the temperature that suits it), in
  evaluation mode; also when the loss is no longer finite (then with an error).
- On a processor two runs with the same arguments and the same number of threads give the same bits. All random
  numbers of an epoch come from the seed and its number, so a run that goes on from a checkpoint gives them too.
- torch's own random state is as before when the loop is left.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # what all batch normalisations are

from featcache.backbones.compute import check_choice
from featcache.core.errors import TrainingError, UsageError
from featcache.core.progress import Progress, choose, duration
from featcache.finetuning import checkpoint as checkpoints
from featcache.finetuning.history import Curve, Epoch, best_of
from featcache.finetuning.schedule import TrainingConfig
from featcache.metrics.calibration import fit_temperature

Stages = Sequence[tuple[str, Sequence[nn.Parameter]]]
"""Name and parameters of each part of a network, from the input to the output."""
Validation = Callable[[], Iterable[tuple[Tensor, Tensor]]]
"""Starts a pass over the validation items: yields inputs (b, …) and class numbers (b,) int64."""

_LONGEST_GRADIENT = 1.0


class Batches(Protocol):
    """The training items, in another order each epoch that depends on the seed and the epoch alone."""

    @property
    def steps(self) -> int:
        """Batches of an epoch."""

    def __call__(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Start a pass.

        Args:
            epoch: which one, from 1.

        Returns:
            yields inputs (b, …) of any dtype that the network takes, and class numbers (b,) int64. A network with
            batch normalisation needs two items at least in each batch.
        """


def train(
    model: nn.Module,
    stages: Stages,
    batches: Batches,
    validation: Validation,
    schedule: TrainingConfig,
    *,
    checkpoint: Path | None = None,
    task: Mapping[str, Any] | None = None,
    precision: str = "float32",
    keep_statistics: bool = False,
    progress: Progress | bool | None = None,
) -> Curve:
    """Train a network to tell classes apart, by AdamW on the cross-entropy.

    AdamW (Loshchilov and Hutter, "Decoupled weight decay regularization", ICLR 2019) with rates by `TrainingConfig`;
    gradients longer than 1, all parameters together, are shortened to 1 (Pascanu et al., "On the difficulty of
    training recurrent neural networks", ICML 2013).

    Args:
        model: from a batch of inputs to scores (b, classes), on the device on which it shall be trained. Parameters
            that do not require a gradient stay as they are.
        stages: the parameters that train, in groups from the input to the output, whose rates differ by
            ``schedule.layer_decay``.
        batches: the training items.
        validation: the items that decide which epoch is the best and when the training ends.
        schedule: the settings.
        checkpoint: a file that is written after each epoch. Where there is one, the training goes on from it. It
            is left in its place, also at the end: ``checkpoint.remove`` removes it when it is needed no more.
        task: what is trained on what, as plain values, so that a checkpoint of something else is recognised.
        precision: ``float32``, or ``bfloat16`` for products in bfloat16 with weights in float32.
        keep_statistics: batch normalisations go on with the means and variances that they have, and only their scale
            and shift train.
        progress: what to report the steps to, as for `featcache.core.progress.choose`.

    Raises:
        UsageError: a trainable parameter is in no stage or in two, there is nothing to train or to validate on,
            *batches* gives other than ``steps`` batches, this machine does not compute in *precision*, or the
            checkpoint is that of another training.
        TrainingError: a loss or gradient is not finite, or the checkpoint is damaged or cannot be written.
    """
    device = _device_of(model)
    check_choice("torch", precision, str(device))
    optimiser = torch.optim.AdamW(_groups(model, stages, schedule))
    run = _Run(model, optimiser, schedule, batches, validation, device, precision, keep_statistics)
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    settings = {
        "task": dict(task or {}),
        "schedule": schedule.to_dict(),
        "steps": batches.steps,
        "stages": [name for name, _ in stages],
        "precision": precision,
        "keep_statistics": keep_statistics,
    }
    epochs: list[Epoch] = []
    best = _copy(model)
    found = None if checkpoint is None else checkpoints.read(checkpoint, settings, best)
    if found is not None:
        epochs, best = list(found.epochs), dict(found.best)
        model.load_state_dict(found.weights)
        _restore(optimiser, names, found.moments)
    with choose(progress) as shown, torch.random.fork_rng([device] if device.type == "cuda" else []):
        if epochs:
            shown.note(f"{checkpoint}: {len(epochs)} of {schedule.epochs} epochs are done, the training goes on.")
        while (ended := _ended(epochs, schedule)) is None:
            shown.start(_said(epochs, schedule), batches.steps, "steps")
            try:
                epochs.append(run.epoch(len(epochs) + 1, shown))
            except _NotFiniteError as error:
                model.load_state_dict(best)
                model.eval()
                raise TrainingError(_advice(error, epochs, schedule, precision, checkpoint)) from None
            shown.finish()
            if best_of(epochs) is epochs[-1]:
                best = _copy(model)
            if checkpoint is not None:
                moments = {names[parameter]: state for parameter, state in optimiser.state.items()}
                state = checkpoints.State(tuple(epochs), model.state_dict(), best, moments)
                checkpoints.write(checkpoint, settings, state)
        curve = Curve(tuple(epochs), ended)
        shown.note(
            f"{len(epochs)} of {schedule.epochs} epochs; the best is epoch {curve.best.number}: validation loss "
            f"{curve.best.validation_loss:.4g}, accuracy {curve.best.accuracy:.4f}."
        )
    model.load_state_dict(best)
    model.eval()
    return curve


@dataclass(frozen=True, slots=True)
class _Run:
    """What stays the same from epoch to epoch."""

    model: nn.Module
    optimiser: torch.optim.Optimizer
    schedule: TrainingConfig
    batches: Batches
    validation: Validation
    device: torch.device
    precision: str
    keep_statistics: bool

    def epoch(self, number: int, shown: Progress) -> Epoch:
        """Train one epoch and validate."""
        began = time.perf_counter()
        seed = np.random.SeedSequence([self.schedule.seed, number]).generate_state(1, np.uint64)
        torch.manual_seed(int(seed[0]))
        loss, rate = self._learn(number, shown)
        found = self._validate(number, rate)
        return Epoch(number, loss, *found, rate, time.perf_counter() - began)

    def _learn(self, number: int, shown: Progress) -> tuple[float, float]:
        """Mean loss of the items, and the rate of the last step."""
        steps = self.batches.steps
        total, items, rate, step = 0.0, 0, math.nan, 0
        self.model.train()
        if self.keep_statistics:
            for part in self.model.modules():
                if isinstance(part, _BatchNorm):
                    part.eval()
        for step, (x, y) in enumerate(self.batches(number), 1):
            if step > steps:
                break
            rate = self.schedule.rate_at((number - 1) * steps + step - 1, self.schedule.epochs * steps)
            for group in self.optimiser.param_groups:
                group["lr"] = rate * group["share"]
            scores, target = _scores(self.model, x, y, self.device, self.precision)
            loss = nn.functional.cross_entropy(scores, target, label_smoothing=self.schedule.label_smoothing)
            value = loss.item()
            _check_finite("loss", value, number, step, rate)
            self.optimiser.zero_grad()
            torch.autograd.backward(loss)
            parameters = [p for group in self.optimiser.param_groups for p in group["params"]]
            length = nn.utils.clip_grad_norm_(parameters, _LONGEST_GRADIENT).item()
            _check_finite("length of the gradient", length, number, step, rate)
            self.optimiser.step()
            total += value * len(target)
            items += len(target)
            shown.advance()
        if step != steps:
            raise UsageError(f"Epoch {number} has {'more' if step > steps else step} batches, but should have {steps}.")
        return total / items, rate

    def _validate(self, number: int, rate: float) -> tuple[float, float, float]:
        """Mean loss of the validation items, the same at its best temperature, and the share that is right."""
        scores, numbers = validation_scores(self.model, self.validation, self.precision)
        if not len(scores):
            raise UsageError("There is no item to validate on: without any, nobody knows when to stop.")
        loss = nn.functional.cross_entropy(scores, numbers).item()
        _check_finite("validation loss", loss, number, self.batches.steps, rate)
        _, tempered = fit_temperature(scores.numpy(), numbers.numpy())
        return loss, tempered, (scores.argmax(1) == numbers).double().mean().item()


def validation_scores(model: nn.Module, validation: Validation, precision: str) -> tuple[Tensor, Tensor]:
    """What a network, set to evaluation mode, says of the validation items.

    Returns:
        (n, k) float64 scores and (n,) int64 class numbers, on the CPU.
    """
    device = _device_of(model)
    found, numbers = [], []
    model.eval()
    # Not inference_mode: what a network keeps for later passes, such as a mask, must allow gradients then.
    with torch.no_grad():
        for x, y in validation():
            scores, _ = _scores(model, x, y, device, precision)
            found.append(scores.double().cpu())
            numbers.append(y.cpu())
    return (torch.cat(found), torch.cat(numbers)) if found else (torch.zeros(0, 0), torch.zeros(0, dtype=torch.int64))


def _scores(model: nn.Module, x: Tensor, y: Tensor, device: torch.device, precision: str) -> tuple[Tensor, Tensor]:
    """Scores in float32 or wider, and class numbers, both on the device."""
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        scores = model(x.to(device, non_blocking=True))
    wide = scores if scores.dtype == torch.float64 else scores.float()
    return wide, y.to(device, non_blocking=True)


class _NotFiniteError(Exception):
    """A number that must be finite is not."""

    def __init__(self, what: str, value: float, epoch: int, step: int, rate: float) -> None:
        self.what, self.value, self.epoch, self.step, self.rate = what, value, epoch, step, rate


def _check_finite(what: str, value: float, epoch: int, step: int, rate: float) -> None:
    if not math.isfinite(value):
        raise _NotFiniteError(what, value, epoch, step, rate)


def _advice(
    error: _NotFiniteError, epochs: Sequence[Epoch], schedule: TrainingConfig, precision: str, checkpoint: Path | None
) -> str:
    kept = f"those of epoch {best_of(epochs).number}, the best" if epochs else "those from before the training"
    if (error.epoch, error.step, error.what) == (1, 1, "loss"):
        try_this = "No step was taken yet, so look for inputs or weights that are not finite."
    else:
        try_this = f"Try a lower rate, such as {schedule.rate / 5:.2g}, or a longer warm-up than {schedule.warmup:g}"
        try_this += " or float32." if precision == "bfloat16" else "."
        if checkpoint is not None and epochs:
            try_this += f" Remove {checkpoint} first, which is that of this training."
    return (
        f"The {error.what} is {error.value} in epoch {error.epoch} at step {error.step}, where the rate is "
        f"{error.rate:.3g}. The network's weights are {kept}, again. {try_this}"
    )


def _groups(model: nn.Module, stages: Stages, schedule: TrainingConfig) -> list[dict[str, Any]]:
    """AdamW's parameter groups: of each stage those with weight decay and those without."""
    wanted = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    given = [id(p) for _, parameters in stages for p in parameters if p.requires_grad]
    if sorted(given) != sorted(wanted):
        missing = [name for number, name in wanted.items() if number not in given]
        named = f" In none: {', '.join(missing[:5])}{' …' if len(missing) > 5 else ''}." if missing else ""
        raise UsageError(f"Each parameter of the network that requires a gradient must be in just one stage.{named}")
    if not given:
        raise UsageError("The network has no parameter that requires a gradient, so there is nothing to train.")
    groups = []
    for number, (_, parameters) in enumerate(stages):
        share = schedule.share_of_stage(number, len(stages))
        common = {"share": share, "lr": schedule.rate * share}
        trained = [p for p in parameters if p.requires_grad]
        # Of one dimension are biases, and scale and shift of normalisations.
        decayed, others = [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim <= 1]
        groups.append({"params": decayed, "weight_decay": schedule.weight_decay, **common})
        groups.append({"params": others, "weight_decay": 0.0, **common})
    return [group for group in groups if group["params"]]


def _ended(epochs: Sequence[Epoch], schedule: TrainingConfig) -> Literal["epochs", "patience"] | None:
    """Why the training is over; None while it is not."""
    if len(epochs) >= schedule.epochs:
        return "epochs"
    if epochs and len(epochs) - best_of(epochs).number >= schedule.patience:
        return "patience"
    return None


def _said(epochs: Sequence[Epoch], schedule: TrainingConfig) -> str:
    """What the next epoch is called on a screen."""
    text = f"epoch {len(epochs) + 1} of {schedule.epochs}"
    if not epochs:
        return text
    left = (schedule.epochs - len(epochs)) * sum(epoch.seconds for epoch in epochs) / len(epochs)
    last = epochs[-1]
    return f"{text} (loss {last.validation_loss:.4g}, accuracy {last.accuracy:.3f}; at most {duration(left)} left)"


def _copy(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def _restore(
    optimiser: torch.optim.Optimizer,
    names: Mapping[Tensor, str],
    moments: Mapping[str, Mapping[str, Tensor]],
) -> None:
    # An optimiser's state goes by the number of the parameter, counted through its groups.
    numbered = [names[p] for group in optimiser.param_groups for p in group["params"]]
    state = {number: dict(moments[name]) for number, name in enumerate(numbered) if name in moments}
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})


def _device_of(model: nn.Module) -> torch.device:
    parameter = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device
