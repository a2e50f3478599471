"""Losses that teach a projection who is alike, on batches of vectors of length 1.

All take embeddings (b, p) of length 1 and identity numbers (b,), in which each identity occurs several times.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

CONTRASTIVE_MARGIN = 1.0
TRIPLET_MARGIN = 0.2
COSINE_MARGIN = 0.2
COSINE_SCALE = 16.0


def contrastive(embedded: Tensor, numbers: Tensor) -> Tensor:
    """Half the squared distance of pairs of one identity, and half of what others lack to the margin, squared.

    Equation 4 of Hadsell, Chopra and LeCun (2006), with the margin 1, meaned over each kind of pair so that the
    rarer one, that of one identity, weighs as much.
    """
    same, different, squares = _pairs(embedded, numbers)
    # The square root has no slope at 0, where two images are one.
    lacking = (CONTRASTIVE_MARGIN - squares.clamp_min(1e-12).sqrt()).clamp_min(0)
    return (squares[same].mean() + lacking[different].square().mean()) / 2


def triplet(embedded: Tensor, numbers: Tensor) -> Tensor:
    """How much nearer than the margin 0.2 a stranger comes to an image than one of its own identity, squared distances.

    Equations 3 and 4 of Schroff, Kalenichenko and Philbin (FaceNet, 2015): for each pair of one identity the
    nearest stranger that is farther away than the mate ("semi-hard"), or the farthest where there is none.
    """
    same, different, squares = _pairs(embedded, numbers)
    anchor, mate = torch.nonzero(same, as_tuple=True)
    near, strangers = squares[anchor, mate], squares[anchor]
    others = different[anchor]
    beyond = strangers.masked_fill(~(others & (strangers > near[:, None])), torch.inf).amin(1)
    farthest = strangers.masked_fill(~others, -torch.inf).amax(1)
    return (near - torch.where(beyond.isinf(), farthest, beyond) + TRIPLET_MARGIN).clamp_min(0).mean()


def cosine_margin(embedded: Tensor, numbers: Tensor, prototypes: Tensor) -> Tensor:
    """Cross-entropy of 16 · cosine to a prototype of each identity, less 16 · 0.2 for its own.

    Equation 4 of Wang et al. (CosFace, 2018).

    Args:
        embedded, numbers: the batch.
        prototypes: (k, p) of any length, one for each identity.
    """
    cosines = embedded @ functional.normalize(prototypes).T
    cosines = cosines - COSINE_MARGIN * functional.one_hot(numbers, len(prototypes))
    return functional.cross_entropy(COSINE_SCALE * cosines, numbers)


def _pairs(embedded: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(b, b): pairs of one identity but not of one row, pairs of two identities, squared distances."""
    equal = numbers[:, None] == numbers[None]
    itself = torch.eye(len(numbers), dtype=torch.bool)
    return equal & ~itself, ~equal, (2 - 2 * embedded @ embedded.T).clamp_min(0)
