"""The training of a classifier with validation, early stopping and a checkpoint, on cached activations or on images.

What holds whatever happens:

- The network ends with the weights of the epoch of the least validation loss (at the temperature that suits it), in
  evaluation mode; also when the loss is no longer finite (then with a warning, and in the first epoch with an error).
- On a processor two runs with the same arguments and the same number of threads give the same bits. All random
  numbers of an epoch come from the seed and its number, so a run that resumes from a checkpoint gives them too.
- torch's own random state is as before when the loop is left.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # what all batch normalizations are

from featcache.core.errors import TrainingError, UsageError
from featcache.core.progress import Progress, choose, duration
from featcache.finetuning import checkpoint as checkpoints
from featcache.finetuning.history import Curve, Epoch, best_of
from featcache.heads.training_loop import AdamW, NonFiniteError, require_finite, stalled, train_epochs
from featcache.metrics.calibration import fit_temperature

if TYPE_CHECKING:
    from featcache.finetuning.config import Schedule

Stages = Sequence[tuple[str, Sequence[nn.Parameter]]]
"""Name and parameters of each part of a network, from the input to the output."""
Validation = Callable[[], Iterable[tuple[Tensor, Tensor]]]
"""Starts a pass over the validation items: yields inputs (b, …) and class ids (b,) int64."""

_MAX_NORM = 1.0
_TIMED_STEPS, _LONG = 3, 10.0
"""Steps that are timed, and seconds from which on a training is told to be long."""


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
            yields inputs (b, …) of any dtype that the network takes, and class ids (b,) int64. A network with
            batch normalization needs two items at least in each batch.
        """


def train(
    model: nn.Module,
    stages: Stages,
    batches: Batches,
    validation: Validation,
    config: Schedule,
    *,
    checkpoint: Path | None = None,
    task: Mapping[str, Any] | None = None,
    keep_statistics: bool = False,
    progress: Progress | bool | None = None,
) -> Curve:
    """Train a network to tell classes apart, by AdamW on the cross-entropy; see `featcache.heads.training_loop`.

    Args:
        model: from a batch of inputs to scores (b, classes), on the device on which it shall be trained. Parameters
            that do not require a gradient stay as they are.
        stages: the parameters that train, in groups from the input to the output, whose learning rates differ by
            ``config.layer_decay``.
        batches: the training items.
        validation: the items that decide which epoch is the best and when the training ends.
        config: the settings.
        checkpoint: a file that is written after each epoch. Where there is one, the training resumes from it. It
            stays, also at the end: ``checkpoint.remove`` removes it when it is needed no more.
        task: what is trained on what, as plain values, so that a checkpoint of something else is recognized.
        keep_statistics: batch normalizations keep the means and variances that they have, and only their scale
            and shift train.
        progress: what to report the steps to, as for `featcache.core.progress.choose`.

    Raises:
        UsageError: a trainable parameter is in no stage or in two, there is nothing to train or to validate on,
            *batches* gives other than ``steps`` batches, or the checkpoint is that of another training.
        TrainingError: a loss or gradient is not finite in the first epoch, or the checkpoint is damaged or cannot be
            written.
    """
    device = _device_of(model)
    optimizer = AdamW(_groups(model, stages, config))
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    settings = {
        "task": dict(task or {}),
        "config": config.to_dict(),
        "steps": batches.steps,
        "stages": [name for name, _ in stages],
        "keep_statistics": keep_statistics,
    }
    epochs: list[Epoch] = []
    losses: list[np.ndarray] = []
    ended: Literal["epochs", "patience", "non-finite"] | None
    best = _copy(model)
    found = None if checkpoint is None else checkpoints.read(checkpoint, settings, best)
    if found is not None:
        epochs, losses, best = list(found.epochs), list(found.losses.numpy()), dict(found.best)
        model.load_state_dict(found.weights)
        _restore(optimizer, names, found.moments)
    with choose(progress) as bar, torch.random.fork_rng([device] if device.type == "cuda" else []):
        if epochs:
            bar.note(f"{checkpoint}: resuming after {len(epochs)} of {config.epochs} epochs.")

        pace = _Pace(config.epochs - len(epochs), batches.steps, bar)

        def watched(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
            for batch in batches(epoch):
                yield batch
                bar.advance()
                pace.step()

        def loss(x: Tensor, y: Tensor) -> Tensor:
            scores, target = _scores(model, x, y, device, config.precision)
            return nn.functional.cross_entropy(scores, target, label_smoothing=config.label_smoothing)

        passes = train_epochs(
            optimizer, watched, loss, epochs=config.epochs, steps=batches.steps,
            warmup_fraction=config.warmup_fraction, max_norm=_MAX_NORM, first=len(epochs) + 1,
        )  # fmt: skip
        while (ended := _ended(epochs, config)) is None:
            bar.start(_phase(epochs, config), batches.steps, "steps")
            began, number = time.perf_counter(), len(epochs) + 1
            _begin(model, config.seed, number, keep_statistics)
            try:
                mean, lr = next(passes)
                scores, class_ids = validation_scores(model, validation, config.precision)
                if not len(scores):
                    raise UsageError("There is no item to validate on, so it is unknown when the training should end.")
                validation_loss = nn.functional.cross_entropy(scores, class_ids).item()
                require_finite("validation loss", validation_loss, number, batches.steps, lr)
            except NonFiniteError as error:
                model.load_state_dict(best)
                model.eval()
                advice = _advice(error, epochs, config, checkpoint)
                if not epochs:
                    raise TrainingError(advice) from None
                bar.finish()
                bar.note(f"Warning: {advice}")
                ended = "non-finite"
                break
            losses.append(tempered_losses(scores, class_ids))
            tempered = float(losses[-1].mean())
            accuracy = (scores.argmax(1) == class_ids).double().mean().item()
            seconds = time.perf_counter() - began
            epochs.append(Epoch(number, mean, validation_loss, tempered, accuracy, lr, seconds))
            bar.finish()
            if best_of(epochs) is epochs[-1]:
                best = _copy(model)
            if checkpoint is not None:
                moments = {names[parameter]: state for parameter, state in optimizer.state.items()}
                seen = torch.from_numpy(np.array(losses))
                state = checkpoints.State(tuple(epochs), model.state_dict(), best, moments, seen)
                checkpoints.write(checkpoint, settings, state)
        curve = Curve(tuple(epochs), ended, losses=np.array(losses))
        bar.note(
            f"{len(epochs)} of {config.epochs} epochs; the best is epoch {curve.best.number}: validation loss "
            f"{curve.best.tempered_loss:.4g} (at its best temperature), accuracy {curve.best.accuracy:.4f}."
        )
    model.load_state_dict(best)
    model.eval()
    return curve


def _begin(model: nn.Module, seed: int, epoch: int, keep_statistics: bool) -> None:
    """Seed torch for an epoch, and set the network to training mode."""
    state = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)
    torch.manual_seed(int(state[0]))
    model.train()
    for part in model.modules() if keep_statistics else ():
        if isinstance(part, _BatchNorm):
            part.eval()


def validation_scores(model: nn.Module, validation: Validation, precision: str) -> tuple[Tensor, Tensor]:
    """The scores of the validation items by a network, which is set to evaluation mode.

    Returns:
        (n, k) float64 scores and (n,) int64 class ids, on the CPU.
    """
    device = _device_of(model)
    found, class_ids = [], []
    model.eval()
    # Not inference_mode: what a network keeps for later passes, such as a mask, must allow gradients then.
    with torch.no_grad():
        for x, y in validation():
            scores, _ = _scores(model, x, y, device, precision)
            found.append(scores.double().cpu())
            class_ids.append(y.cpu())
    return (torch.cat(found), torch.cat(class_ids)) if found else (torch.zeros(0, 0), torch.zeros(0, dtype=torch.int64))


def _scores(model: nn.Module, x: Tensor, y: Tensor, device: torch.device, precision: str) -> tuple[Tensor, Tensor]:
    """Scores in float32 or wider, and class ids, both on the device."""
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        scores = model(x.to(device, non_blocking=True))
    wide = scores if scores.dtype == torch.float64 else scores.float()
    return wide, y.to(device, non_blocking=True)


def _advice(error: NonFiniteError, epochs: Sequence[Epoch], config: Schedule, checkpoint: Path | None) -> str:
    kept = f"epoch {best_of(epochs).number}, the best" if epochs else "before the training"
    if (error.epoch, error.step, error.what) == (1, 1, "loss"):
        try_this = "No step was taken yet, so look for inputs or weights that are not finite."
    else:
        try_this = (
            f"Try a lower learning rate, such as {config.lr / 5:.2g}, or a larger warm-up fraction than "
            f"{config.warmup_fraction:g}"
        )
        try_this += " or float32." if config.precision == "bfloat16" else "."
        if checkpoint is not None and epochs:
            try_this += f" Remove {checkpoint} first, which is that of this training."
    return f"{error} The network has the weights of {kept}, again. {try_this}"


def _groups(model: nn.Module, stages: Stages, config: Schedule) -> list[dict[str, Any]]:
    """AdamW's parameter groups: of each stage those with weight decay and those without."""
    wanted = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    given = [id(p) for _, parameters in stages for p in parameters if p.requires_grad]
    if sorted(given) != sorted(wanted):
        missing = [name for number, name in wanted.items() if number not in given]
        named = f" In none: {', '.join(missing[:5])}{' …' if len(missing) > 5 else ''}." if missing else ""
        raise UsageError(f"Each parameter of the network that requires a gradient must be in exactly one stage.{named}")
    if not given:
        raise UsageError("The network has no parameter that requires a gradient, so there is nothing to train.")
    groups = []
    for number, (_, parameters) in enumerate(stages):
        lr = config.lr * config.share_of_stage(number, len(stages))
        trained = [p for p in parameters if p.requires_grad]
        # Of one dimension are biases, and scale and shift of normalizations.
        decayed, others = [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim <= 1]
        groups.append({"params": decayed, "weight_decay": config.weight_decay, "lr": lr})
        groups.append({"params": others, "weight_decay": 0.0, "lr": lr})
    return [group for group in groups if group["params"]]


def _ended(epochs: Sequence[Epoch], config: Schedule) -> Literal["epochs", "patience"] | None:
    """Why the training is over; None while it is not."""
    if len(epochs) >= config.epochs:
        return "epochs"
    if epochs and stalled([epoch.tempered_loss for epoch in epochs], config.patience):
        return "patience"
    return None


def _phase(epochs: Sequence[Epoch], config: Schedule) -> str:
    """What the next epoch is called on a screen."""
    text = f"epoch {len(epochs) + 1} of {config.epochs}"
    if not epochs:
        return text
    left = (config.epochs - len(epochs)) * sum(epoch.seconds for epoch in epochs) / len(epochs)
    last = epochs[-1]
    return f"{text} (loss {last.tempered_loss:.4g}, accuracy {last.accuracy:.3f}; at most {duration(left)} left)"


class _Pace:
    """Notes after a few steps how long a long training will take at most.

    Args:
        epochs: to be trained.
        steps: of an epoch.
        progress: gets the note.
    """

    def __init__(self, epochs: int, steps: int, progress: Progress) -> None:
        self._epochs, self._steps, self._progress = epochs, steps, progress
        self._done, self._began = 0, 0.0

    def step(self) -> None:
        """A step is done; the first one, which is slower, does not count."""
        self._done += 1
        if self._done == 1:
            self._began = time.perf_counter()
        if self._done != 1 + _TIMED_STEPS:
            return
        epoch = self._steps * (time.perf_counter() - self._began) / _TIMED_STEPS
        if self._epochs * epoch >= _LONG:
            self._progress.note(
                f"An epoch takes about {duration(epoch)}, the training at most {duration(self._epochs * epoch)}."
            )


def tempered_losses(scores: Tensor, class_ids: Tensor) -> np.ndarray:
    """(n,) cross-entropies in nats at the temperature of the least mean."""
    temperature, _ = fit_temperature(scores.numpy(), class_ids.numpy())
    losses: np.ndarray = nn.functional.cross_entropy(scores / temperature, class_ids, reduction="none").numpy()
    return losses


def _copy(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def _restore(
    optimizer: torch.optim.Optimizer,
    names: Mapping[Tensor, str],
    moments: Mapping[str, Mapping[str, Tensor]],
) -> None:
    # An optimizer's state goes by the number of the parameter, counted through its groups.
    numbered = [names[p] for group in optimizer.param_groups for p in group["params"]]
    state = {number: dict(moments[name]) for number, name in enumerate(numbered) if name in moments}
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _device_of(model: nn.Module) -> torch.device:
    parameter = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device
