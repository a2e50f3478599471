"""The loop of all training by gradient descent: that of the heads `mlp`, `torch` and `siamese`, and fine-tuning.

Over all steps the learning rate rises linearly and then falls to 0 as a cosine (Loshchilov and Hutter, "SGDR", ICLR
2017, equation 5, without restarts). When a training ends early is decided by `stalled`. What differs from one training
to the next (the loss, the batches, what happens after an epoch) is the caller's.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from featcache.core.errors import TrainingError, UsageError

_FALLEN = 1e-3


class NonFiniteError(TrainingError):
    """A number that must be finite is not.

    Args:
        what: the number, in words.
        value: the number.
        epoch, step: where, both from 1.
        lr: the highest learning rate of that step.
    """

    def __init__(self, what: str, value: float, epoch: int, step: int, lr: float) -> None:
        self.what, self.epoch, self.step = what, epoch, step
        super().__init__(f"The {what} is {value} in epoch {epoch} at step {step}, where the learning rate is {lr:.3g}.")


def require_finite(what: str, value: float, epoch: int, step: int, lr: float) -> None:
    """Raise a `NonFiniteError` unless *value* is finite; the other arguments are its."""
    if not math.isfinite(value):
        raise NonFiniteError(what, value, epoch, step, lr)


def warmup_cosine(step: int, steps: int, warmup_fraction: float = 0.0) -> float:
    """The learning rate of a step as a share of the highest one.

    Args:
        step: which step, from 0.
        steps: steps of the whole training, all epochs together.
        warmup_fraction: share of the steps in which the rate rises.

    Returns:
        ``(step + 1) / w`` in the first w = ``warmup_fraction · steps`` steps (rounded), then
        ``(1 + cos(π (step - w) / (steps - w))) / 2``.
    """
    rising = round(warmup_fraction * steps)
    if step < rising:
        return (step + 1) / rising
    return (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising))) / 2


def stalled(losses: Sequence[float], patience: int) -> bool:
    """Whether a validation loss has not fallen for *patience* epochs, so that the training may end.

    It has fallen where it is lower than when it last did by more than a thousandth of a nat: a loss that creeps towards
    its limit, or halves and halves again near 0, would otherwise never end a training.

    Args:
        losses: after each epoch; one that is not finite has not fallen.
        patience: epochs.
    """
    last, least = 0, math.inf
    for epoch, loss in enumerate(losses):
        if loss < least - _FALLEN:
            last, least = epoch, loss
    return len(losses) - 1 - last >= patience


class AdamW(torch.optim.AdamW):
    """torch's AdamW, bit for bit, without what its methods do for ``torch.compile``.

    They import ``torch._dynamo`` for that, which takes seconds of processor time: more than a small training.
    """

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        inspect.unwrap(torch.optim.Optimizer.add_param_group)(self, param_group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        inspect.unwrap(torch.optim.Optimizer.zero_grad)(self, set_to_none)

    def step(self, closure: Any = None) -> Any:
        with torch.no_grad():
            return inspect.unwrap(torch.optim.AdamW.step)(self, closure)


def train_epochs(
    optimizer: torch.optim.Optimizer,
    batches: Callable[[int], Iterable[tuple[Tensor, Tensor]]],
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    epochs: int,
    steps: int,
    warmup_fraction: float = 0.0,
    max_norm: float | None = None,
    first: int = 1,
) -> Iterator[tuple[float, float]]:
    """Train, one epoch for each value that is asked for.

    Args:
        optimizer: its groups hold the highest learning rates; a step has its share of them, see `warmup_cosine`.
        batches: starts the pass of an epoch, from 1: yields inputs (b, …) and targets (b,).
        loss: from inputs and targets to the loss, a mean over the batch.
        epochs: over how many the cosine falls.
        steps: batches of an epoch.
        warmup_fraction: share of all steps in which the learning rate rises.
        max_norm: longer gradients, all parameters together, are shortened to this norm (Pascanu et al., "On the
            difficulty of training recurrent neural networks", ICML 2013); None leaves them as they are.
        first: the first epoch to train, where earlier ones are done.

    Yields:
        After each epoch the mean loss of its items, each as the weights were when its batch came, and the highest
        learning rate of its last step.

    Raises:
        NonFiniteError: a loss, or the norm of a gradient where there is a *max_norm*, is not finite.
        UsageError: *batches* gives other than *steps* batches.
    """
    groups = optimizer.param_groups
    highest = [group["lr"] for group in groups]
    parameters = [parameter for group in groups for parameter in group["params"]]
    for epoch in range(first, epochs + 1):
        total, items, step, lr = 0.0, 0, 0, math.nan
        for step, (x, target) in enumerate(batches(epoch), 1):
            if step > steps:
                break
            share = warmup_cosine((epoch - 1) * steps + step - 1, epochs * steps, warmup_fraction)
            for group, rate in zip(groups, highest, strict=True):
                group["lr"] = rate * share
            lr = max(highest) * share
            mean = loss(x, target)
            value = mean.item()
            require_finite("loss", value, epoch, step, lr)
            optimizer.zero_grad()
            torch.autograd.backward(mean)
            if max_norm is not None:
                norm = nn.utils.clip_grad_norm_(parameters, max_norm).item()
                require_finite("norm of the gradient", norm, epoch, step, lr)
            optimizer.step()
            total += value * len(target)
            items += len(target)
        if step != steps:
            raise UsageError(f"Epoch {epoch} has {'more' if step > steps else step} batches, but should have {steps}.")
        yield total / items, lr
