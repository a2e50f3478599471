"""Steps of gradient descent that train a projection on batches of some identities with some images each.

A batch is 32 identities with 4 images each, as far as there are so many. The optimiser is Adam (Kingma and Ba 2015)
with a learning rate that falls from 0.001 as a cosine.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from featcache.heads import metric_losses

IDENTITIES, IMAGES = 32, 4
LEARNING_RATE = 1e-3
EVERY = 40
"""Steps from one weight that is given to the next."""


def trained(
    rows: np.ndarray, numbers: np.ndarray, weight: np.ndarray, *, loss: str, noise: float, steps: int, seed: int
) -> Iterator[np.ndarray]:
    """Train a projection.

    Args:
        rows: (n, r) float32 whitened coordinates.
        numbers: (n,) int64 identities from 0.
        weight: (p, r) float32 to start from.
        loss: ``cosine_margin``, ``contrastive`` or ``triplet``.
        noise: standard deviation of the noise that is added to each coordinate.
        steps: how many.
        seed: of the batches and the noise.

    Yields:
        (p, r) float32 after every 40 steps and after the last.
    """
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    points, targets = torch.from_numpy(rows), torch.from_numpy(numbers)
    members = np.split(np.argsort(numbers, kind="stable"), np.cumsum(np.bincount(numbers))[:-1])
    turning = torch.from_numpy(weight).clone().requires_grad_()
    learned = [turning]
    if loss == "cosine_margin":
        start = functional.normalize(points @ turning.detach().T)
        prototypes = torch.stack([start[of].mean(0) for of in members])
        learned.append(functional.normalize(prototypes).requires_grad_())
    else:
        # A mate is needed; noise on one image twice would teach nothing.
        members = [of for of in members if len(of) > 1]
    optimiser = torch.optim.Adam(learned, lr=LEARNING_RATE)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = LEARNING_RATE * (1 + math.cos(math.pi * step / steps)) / 2
        drawn = rng.choice(len(members), min(IDENTITIES, len(members)), replace=False)
        batch = np.concatenate([rng.permutation(members[i])[:IMAGES] for i in drawn])
        x = points[batch]
        embedded = functional.normalize((x + noise * torch.randn(x.shape, generator=generator)) @ turning.T)
        optimiser.zero_grad()
        torch.autograd.backward(_loss(loss, embedded, targets[batch], learned))
        optimiser.step()
        if (step + 1) % EVERY == 0 or step + 1 == steps:
            yield turning.detach().numpy().copy()


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """One thread in torch, so that sums have one order and small steps do not wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _loss(name: str, embedded: Tensor, numbers: Tensor, learned: list[Tensor]) -> Tensor:
    if name == "cosine_margin":
        return metric_losses.cosine_margin(embedded, numbers, learned[1])
    return {"contrastive": metric_losses.contrastive, "triplet": metric_losses.triplet}[name](embedded, numbers)
