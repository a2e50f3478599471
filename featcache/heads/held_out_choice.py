"""Held-out rows that choose an epoch, and tell without bias how sure what they chose may be.

A temperature must not be fitted on the rows that chose the epoch: of all epochs the one is chosen whose confidence
suits just these rows, so that they would always ask for a temperature near 1. The rows are therefore halved by groups,
and each half is answered for with the weights that the other half would have chosen. No row was learned from or chosen
by what answers for it, and no further row is taken from the learning.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from featcache.heads.minibatch import hold_out
from featcache.heads.mlp_training import Layers, logits

FEWEST_TO_TEMPER = 50
"""A temperature of fewer held-out rows would be chance."""


class HeldOutChoice:
    """The weights of the least held-out loss among those that are shown.

    Args:
        x: (m, d) float32 standardised vectors, one or more.
        numbers: (m,) class numbers.
        groups: (m,) numbers; rows with the same one stay in one half.
        k: classes.
        seed: of the halves.

    Attributes:
        rows: m.
        loss: the least mean log-loss.
        decay, epoch, layers: what had it.
        logits: (m, k) float32, of each row by the weights that the other half would choose; None for fewer than 50
            rows, and where no class has two groups.
    """

    def __init__(self, x: Tensor, numbers: np.ndarray, groups: np.ndarray, k: int, seed: int) -> None:
        self.rows = len(numbers)
        self._x, self._truth = x, torch.from_numpy(np.asarray(numbers, dtype=np.int64))
        self.loss, self.decay, self.epoch = np.inf, 0.0, 0
        self.layers: Layers = []
        self.logits: np.ndarray | None = None
        self._halves = hold_out(numbers, groups, 0.5, seed)
        self._least = [np.inf, np.inf]
        if len(numbers) >= FEWEST_TO_TEMPER and len(self._halves[1]):
            self.logits = np.full((len(numbers), k), np.nan, np.float32)

    def judge(self, layers: Layers, decay: float, epoch: int) -> float:
        """Mean log-loss of the rows by these layers, which are kept if it is the least so far; perhaps not finite."""
        with torch.no_grad():
            z = logits(layers, self._x)
            each = functional.cross_entropy(z, self._truth, reduction="none").double().numpy()
        loss = float(each.mean())
        if loss < self.loss:
            self.loss, self.decay, self.epoch = loss, decay, epoch
            self.layers = [(weight.detach().clone(), bias.detach().clone()) for weight, bias in layers]
        if self.logits is not None:
            for half, (choosing, answered) in enumerate((self._halves, self._halves[::-1])):
                if each[choosing].mean() < self._least[half]:
                    self._least[half] = each[choosing].mean()
                    self.logits[answered] = z[answered].numpy()
        return loss
