"""What heads that are trained by mini-batches share: layers, held-out rows, the vectors' moments, and threads.

Held-out rows choose an epoch, and tell without bias how sure what they chose may be. A temperature must not be fitted
on the rows that chose the epoch: of all epochs the one is chosen whose confidence suits just these rows, so that they
would always ask for a temperature near 1. The rows are therefore halved by groups, and each half is answered for with
the weights that the other half would have chosen. No row was learned from or chosen by what answers for it, and no
further row is taken from the learning.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from featcache.metrics import splits

Batches = Callable[[], Iterable[tuple[np.ndarray, np.ndarray]]]
"""Starts a pass: yields vectors (b, d) and class ids (b,)."""

HELD_OUT_ROWS = 4096
_SMALL_STEP = 20_000_000


def hold_out(class_ids: np.ndarray, groups: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to learn from, and at most 4096 rows of other groups that decide when to stop.

    Args:
        class_ids: (n,) class ids.
        groups: (n,) numbers; rows with the same one stay together.
        fraction: of the groups of each class.
        seed: of the draw.

    Returns:
        Row numbers to learn from, of all classes, and to hold out, sorted. Of a class with one group alone none are
        held out.
    """
    aside = splits.set_aside([str(n) for n in class_ids], [str(g) for g in groups], fraction, seed)
    is_test = np.array([aside[str(g)] for g in groups])
    # A group of several classes may hold all rows of one, which then could not be learned.
    lost = np.setdiff1d(class_ids, class_ids[~is_test])
    is_test &= ~np.isin(groups, groups[np.isin(class_ids, lost)])
    if is_test.sum() > HELD_OUT_ROWS:
        # Whole groups, as many as fit; the others are learned from.
        _, inverse, sizes = np.unique(groups[is_test], return_inverse=True, return_counts=True)
        order = np.random.default_rng(seed).permutation(len(sizes))
        fits = np.zeros(len(sizes), dtype=bool)
        fits[order] = np.cumsum(sizes[order]) <= HELD_OUT_ROWS
        fits[order[0]] = True
        is_test[is_test] = fits[inverse]
    return np.flatnonzero(~is_test), np.flatnonzero(is_test)


def moments(batches: Batches, width: int, k: int) -> tuple[Tensor, Tensor, np.ndarray, int]:
    """Mean and deviation of each feature, summed in float64; rows of each class (k,) and batches of a pass.

    The deviation of a feature that never varies is infinite: it says nothing, and divided by that it is 0.
    """
    counts, steps = np.zeros(k, dtype=np.int64), 0
    total, squares = np.zeros(width), np.zeros(width)
    for vectors, class_ids in batches():
        exact = vectors.astype(np.float64)
        total += exact.sum(0)
        squares += (exact**2).sum(0)
        counts += np.bincount(class_ids, minlength=k)
        steps += 1
    count = counts.sum()
    mean = total / max(count, 1)
    deviation = np.sqrt(np.maximum(squares / max(count, 1) - mean**2, 0))
    deviation[deviation <= np.maximum(1e-6 * np.abs(mean), 1e-30)] = np.inf
    return torch.from_numpy(mean).float(), torch.from_numpy(deviation).float(), counts, steps


@contextmanager
def threads_for(products: int) -> Iterator[None]:
    """One torch thread for steps so small that threads would mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if products < _SMALL_STEP else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


Layers = Sequence[tuple[Tensor, Tensor]]
"""Weight (h, d) and bias (h,) of each layer, from the input to the output."""


def logits(layers: Layers, x: Tensor, dropout: float = 0.0, generator: torch.Generator | None = None) -> Tensor:
    """(n, d) standardized vectors to (n, k); with dropout only while the layers train."""
    for place, (weight, bias) in enumerate(layers):
        if place:
            x = torch.relu(x)
            if dropout:
                x = x * (torch.rand(x.shape, generator=generator) >= dropout) / (1 - dropout)
        x = functional.linear(x, weight, bias)
    return x


def initial_layers(widths: Sequence[int], generator: torch.Generator) -> Layers:
    """Layers to train: hidden ones as He et al. (2015) have it, an output of zeros: all classes are equally likely.

    Args:
        widths: those of the vectors, of the hidden layers, and of the output.
        generator: of the weights.
    """
    layers = []
    for place, (d, h) in enumerate(pairwise(widths)):
        weight = torch.zeros(h, d)
        if place < len(widths) - 2:
            weight.normal_(0, math.sqrt(2 / d), generator=generator)
        layers.append((weight.requires_grad_(), torch.zeros(h, requires_grad=True)))
    return layers


def unstandardized(layers: Layers, mean: Tensor, deviation: Tensor) -> list[tuple[np.ndarray, np.ndarray]]:
    """Weight and bias of each layer, float32: for vectors as they are what *layers* are for standardized ones."""
    exact = [(weight.detach().double().numpy(), bias.detach().double().numpy()) for weight, bias in layers]
    weight = exact[0][0] / deviation.double().numpy()
    exact[0] = weight, exact[0][1] - weight @ mean.double().numpy()
    return [(weight.astype(np.float32), bias.astype(np.float32)) for weight, bias in exact]


FEWEST_TO_TEMPER = 50
"""A temperature of fewer held-out rows would be chance."""


class HeldOutChoice:
    """The weights of the least held-out loss among those that are shown.

    Args:
        x: (m, d) float32 standardized vectors, one or more.
        class_ids: (m,) class ids.
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

    def __init__(self, x: Tensor, class_ids: np.ndarray, groups: np.ndarray, k: int, seed: int) -> None:
        self.rows = len(class_ids)
        self._x, self._truth = x, torch.from_numpy(np.asarray(class_ids, dtype=np.int64))
        self.loss, self.decay, self.epoch = np.inf, 0.0, 0
        self.layers: Layers = []
        self.logits: np.ndarray | None = None
        self._halves = hold_out(class_ids, groups, 0.5, seed)
        self._least = [np.inf, np.inf]
        if len(class_ids) >= FEWEST_TO_TEMPER and len(self._halves[1]):
            self.logits = np.full((len(class_ids), k), np.nan, np.float32)

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
