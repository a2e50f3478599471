"""Losses that teach a projection who is alike, and the training of one.

All losses take embeddings (b, p) of length 1 and identity numbers (b,), in which each identity occurs several times. A
batch is 32 identities with 4 images each, as far as there are so many. The optimizer is Adam (Kingma and Ba 2015; AdamW
without weight decay) with a learning rate that falls from 0.001 as a cosine.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from featcache.heads.training_loop import AdamW, train_epochs

CONTRASTIVE_MARGIN = 1.0
TRIPLET_MARGIN = 0.2
COSINE_MARGIN = 0.2
COSINE_SCALE = 16.0


def contrastive(embedded: Tensor, class_ids: Tensor) -> Tensor:
    """Half the squared distance of pairs of one identity, and half of what others lack to the margin, squared.

    Equation 4 of Hadsell, Chopra and LeCun (2006), with the margin 1, averaged over each kind of pair so that the
    rarer one, that of one identity, weighs as much.
    """
    same, different, squares = _pairs(embedded, class_ids)
    # The square root has no slope at 0, where two images are one.
    lacking = (CONTRASTIVE_MARGIN - squares.clamp_min(1e-12).sqrt()).clamp_min(0)
    return (squares[same].mean() + lacking[different].square().mean()) / 2


def triplet(embedded: Tensor, class_ids: Tensor) -> Tensor:
    """How much nearer than the margin 0.2 a negative comes to an image than one of its own identity, squared distances.

    Equations 3 and 4 of Schroff, Kalenichenko and Philbin (FaceNet, 2015): for each pair of one identity the
    nearest negative that is farther away than the positive ("semi-hard"), or the farthest where there is none.
    """
    same, different, squares = _pairs(embedded, class_ids)
    anchor, positive = torch.nonzero(same, as_tuple=True)
    near, negatives = squares[anchor, positive], squares[anchor]
    others = different[anchor]
    beyond = negatives.masked_fill(~(others & (negatives > near[:, None])), torch.inf).amin(1)
    farthest = negatives.masked_fill(~others, -torch.inf).amax(1)
    return (near - torch.where(beyond.isinf(), farthest, beyond) + TRIPLET_MARGIN).clamp_min(0).mean()


def cosine_margin(embedded: Tensor, class_ids: Tensor, prototypes: Tensor) -> Tensor:
    """Cross-entropy of 16 · cosine to a prototype of each identity, less 16 · 0.2 for its own.

    Equation 4 of Wang et al. (CosFace, 2018).

    Args:
        embedded, class_ids: the batch.
        prototypes: (k, p) of any length, one for each identity.
    """
    cosines = embedded @ functional.normalize(prototypes).T
    cosines = cosines - COSINE_MARGIN * functional.one_hot(class_ids, len(prototypes))
    return functional.cross_entropy(COSINE_SCALE * cosines, class_ids)


def _pairs(embedded: Tensor, class_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(b, b): pairs of one identity but not of one row, pairs of two identities, squared distances."""
    equal = class_ids[:, None] == class_ids[None]
    itself = torch.eye(len(class_ids), dtype=torch.bool)
    return equal & ~itself, ~equal, (2 - 2 * embedded @ embedded.T).clamp_min(0)


IDENTITIES, IMAGES = 32, 4
LEARNING_RATE = 1e-3
EVERY = 40
"""Steps from one weight that is given to the next."""


def trained(
    rows: np.ndarray, class_ids: np.ndarray, weight: np.ndarray, *, loss: str, noise: float, steps: int, seed: int
) -> Iterator[np.ndarray]:
    """Train a projection.

    Args:
        rows: (n, r) float32 whitened coordinates.
        class_ids: (n,) int64 identities from 0.
        weight: (p, r) float32 to start from.
        loss: ``cosine_margin``, ``contrastive`` or ``triplet``.
        noise: standard deviation of the noise that is added to each coordinate.
        steps: how many.
        seed: of the batches and the noise.

    Yields:
        (p, r) float32 after every 40 steps and after the last.
    """
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    points, targets = torch.from_numpy(rows), torch.from_numpy(class_ids)
    members = np.split(np.argsort(class_ids, kind="stable"), np.cumsum(np.bincount(class_ids))[:-1])
    turning = torch.from_numpy(weight).clone().requires_grad_()
    learned = [turning]
    if loss == "cosine_margin":
        start = functional.normalize(points @ turning.detach().T)
        prototypes = torch.stack([start[of].mean(0) for of in members])
        learned.append(functional.normalize(prototypes).requires_grad_())
    else:
        # A positive is needed; noise on one image twice would teach nothing.
        members = [of for of in members if len(of) > 1]

    def batches(_: int) -> Iterator[tuple[Tensor, Tensor]]:
        drawn = rng.choice(len(members), min(IDENTITIES, len(members)), replace=False)
        batch = np.concatenate([rng.permutation(members[i])[:IMAGES] for i in drawn])
        yield points[batch], targets[batch]

    def of_batch(x: Tensor, identities: Tensor) -> Tensor:
        embedded = functional.normalize((x + noise * torch.randn(x.shape, generator=generator)) @ turning.T)
        return _loss(loss, embedded, identities, learned)

    optimizer = AdamW(learned, lr=LEARNING_RATE, weight_decay=0.0)
    for step, _ in enumerate(train_epochs(optimizer, batches, of_batch, epochs=steps, steps=1), start=1):
        if step % EVERY == 0 or step == steps:
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


def _loss(name: str, embedded: Tensor, class_ids: Tensor, learned: list[Tensor]) -> Tensor:
    if name == "cosine_margin":
        return cosine_margin(embedded, class_ids, learned[1])
    return {"contrastive": contrastive, "triplet": triplet}[name](embedded, class_ids)
