"""Epochs of AdamW that train hidden layers and an output layer on standardised vectors.

AdamW (Loshchilov and Hutter 2019) decays the weights, not the biases. Its learning rate rises evenly over the first
twentieth of the steps and then falls to 0 as a cosine. Hidden layers start as He et al. (2015) have it, the output
layer at 0, so that all classes are equally likely at first. Dropout (Srivastava et al. 2014) sets values behind the
rectifiers to 0. Whatever is drawn comes from generators of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

WARM_UP = 0.05

Layers = list[tuple[Tensor, Tensor]]
"""Weight (h, d) and bias (h,) of each layer, from the input to the output."""


def logits(layers: Layers, x: Tensor, dropout: float = 0.0, generator: torch.Generator | None = None) -> Tensor:
    """(n, d) standardised vectors to (n, k); with dropout only while the layers train."""
    for place, (weight, bias) in enumerate(layers):
        if place:
            x = torch.relu(x)
            if dropout:
                x = x * (torch.rand(x.shape, generator=generator) >= dropout) / (1 - dropout)
        x = functional.linear(x, weight, bias)
    return x


def trained(
    batches: Callable[[], Iterable[tuple[Tensor, Tensor]]],
    widths: Sequence[int],
    *,
    decay: float,
    dropout: float,
    lr: float,
    epochs: int,
    steps: int,
    seed: int,
) -> Iterator[tuple[float, Layers]]:
    """Train.

    Args:
        batches: starts a pass over standardised vectors (b, d) float32 and class numbers (b,) int64.
        widths: d, those of the hidden layers, and k.
        decay: the weight decay; a step takes so much of a weight, times the learning rate.
        dropout: the share of values behind a rectifier that a step does without.
        lr: the highest learning rate.
        epochs: how many passes.
        steps: batches a pass.
        seed: of the first weights and the dropout.

    Yields:
        After each epoch the mean loss of its steps, and the layers, which the next epoch changes.
    """
    generator = torch.Generator().manual_seed(seed)
    layers = _initial(widths, generator)
    groups = [
        {"params": [weight for weight, _ in layers], "weight_decay": decay},
        {"params": [bias for _, bias in layers], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=lr)
    step, last = 0, epochs * steps
    for _ in range(epochs):
        total = 0.0
        for x, target in batches():
            for group in optimiser.param_groups:
                group["lr"] = lr * _rate(step, last)
            loss = functional.cross_entropy(logits(layers, x, dropout, generator), target)
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            optimiser.step()
            total += loss.item()
            step += 1
        yield total / steps, layers


def _initial(widths: Sequence[int], generator: torch.Generator) -> Layers:
    layers = []
    for place, (d, h) in enumerate(pairwise(widths)):
        weight = torch.zeros(h, d)
        if place < len(widths) - 2:
            weight.normal_(0, math.sqrt(2 / d), generator=generator)
        layers.append((weight.requires_grad_(), torch.zeros(h, requires_grad=True)))
    return layers


def _rate(step: int, last: int) -> float:
    """The learning rate of a step as a share of the highest, above 0."""
    rising = WARM_UP * last
    if step + 1 < rising:
        return (step + 1) / rising
    return (1 + math.cos(math.pi * (step - rising) / (last - rising))) / 2 if step > rising else 1.0
