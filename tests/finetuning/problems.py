"""Small trainings whose outcome is known another way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from featcache.core.progress import Silent


@dataclass(frozen=True)
class Rows:
    """Batches of the rows of a table, in an order drawn from seed and epoch."""

    x: Tensor
    y: Tensor
    batch_size: int
    seed: int = 0
    before: Callable[[int, int], None] = lambda epoch, step: None
    """Called before each batch with the epoch and the step, from 1."""

    @property
    def steps(self) -> int:
        return -(-len(self.y) // self.batch_size)

    def __call__(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.from_numpy(np.random.default_rng([self.seed, epoch]).permutation(len(self.y)))
        for step, rows in enumerate(order.split(self.batch_size), 1):
            self.before(epoch, step)
            yield self.x[rows], self.y[rows]


def whole(x: Tensor, y: Tensor) -> Callable[[], Sequence[tuple[Tensor, Tensor]]]:
    """Validation on all rows in one batch."""
    return lambda: [(x, y)]


def clouds(n: int, d: int, k: int, seed: int = 0, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    """n points around k centers in d dimensions, float64, which overlap; classes are even but for a rest."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % k
    x = rng.normal(size=(k, d))[y] + spread * rng.normal(size=(n, d))
    return torch.from_numpy(x), torch.from_numpy(y)


def perceptron(d: int, k: int, seed: int = 0) -> nn.Sequential:
    """Two linear layers with a normalization and dropout between, from a seed of its own."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(d, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, k))


def stages(model: nn.Sequential) -> list[tuple[str, list[nn.Parameter]]]:
    """One stage for each part that has parameters."""
    return [(name, list(part.parameters())) for name, part in model.named_children() if list(part.parameters())]


def bits(model: nn.Module) -> dict[str, bytes]:
    """The state of a network, to the last bit."""
    return {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()}


class Heard(Silent):
    """Keeps what was reported."""

    def __init__(self) -> None:
        self.phases: list[tuple[str, int | None, str]] = []
        self.done: list[int] = []
        self.notes: list[str] = []

    def start(self, what: str, total: int | None, unit: str) -> None:
        self.phases.append((what, total, unit))
        self.done.append(0)

    def advance(self, n: int = 1) -> None:
        self.done[-1] += n

    def note(self, text: str) -> None:
        self.notes.append(text)
