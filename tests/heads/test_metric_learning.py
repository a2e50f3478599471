"""The losses against their equations, pair by pair."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from featcache.heads import metric_learning
from featcache.heads.metric_learning import trained


def batch() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(4)
    numbers = np.repeat(np.arange(5), 4)
    E = rng.normal(size=(5, 6))[numbers] + 1.1 * rng.normal(size=(20, 6))
    return E / np.linalg.norm(E, axis=1, keepdims=True), numbers


def test_contrastive() -> None:
    E, numbers = batch()
    near, far = [], []
    for i in range(20):
        for j in range(20):
            distance = np.linalg.norm(E[i] - E[j])
            if i != j and numbers[i] == numbers[j]:
                near.append(distance**2)
            elif numbers[i] != numbers[j]:
                far.append(max(0.0, 1 - distance) ** 2)
    expected = (np.mean(near) + np.mean(far)) / 2
    assert max(far) > 0
    assert metric_learning.contrastive(torch.tensor(E), torch.tensor(numbers)).item() == pytest.approx(expected)


def test_triplet() -> None:
    E, numbers = batch()
    squares = np.square(E[:, None] - E[None]).sum(2)
    losses, hard = [], 0
    for a in range(20):
        for p in range(20):
            if a == p or numbers[a] != numbers[p]:
                continue
            strangers = squares[a][numbers != numbers[a]]
            beyond = strangers[strangers > squares[a, p]]
            hard += not len(beyond)
            negative = beyond.min() if len(beyond) else strangers.max()
            losses.append(max(0.0, squares[a, p] - negative + 0.2))
    assert hard > 0
    got = metric_learning.triplet(torch.tensor(E), torch.tensor(numbers)).item()
    assert got == pytest.approx(np.mean(losses))


def test_cosine_margin() -> None:
    E, numbers = batch()
    W = np.random.default_rng(1).normal(size=(7, 6))
    cosines = E @ (W / np.linalg.norm(W, axis=1, keepdims=True)).T
    own = cosines[np.arange(20), numbers]
    others = np.exp(16 * cosines).sum(1) - np.exp(16 * own)
    expected = -np.log(np.exp(16 * (own - 0.2)) / (np.exp(16 * (own - 0.2)) + others)).mean()
    got = metric_learning.cosine_margin(torch.tensor(E), torch.tensor(numbers), torch.tensor(W)).item()
    assert got == pytest.approx(expected)


@pytest.mark.parametrize("loss", ["contrastive", "triplet", "cosine_margin"])
def test_training_lessens_each(loss: str) -> None:
    rng = np.random.default_rng(0)
    numbers = np.repeat(np.arange(10), 4)
    rows = (rng.normal(size=(10, 8))[numbers] + rng.normal(size=(40, 8))).astype(np.float32)
    rows[1] = rows[0]  # a distance of 0, where a square root has no slope
    start = np.eye(4, 8, dtype=np.float32)

    def value(weight: np.ndarray) -> float:
        E = torch.nn.functional.normalize(torch.from_numpy(rows @ weight.T))
        middles = torch.stack([E[numbers == k].mean(0) for k in range(10)])
        further = (middles,) if loss == "cosine_margin" else ()
        return float(getattr(metric_learning, loss)(E, torch.from_numpy(numbers), *further))

    *_, last = trained(rows, numbers, start, loss=loss, noise=0.0, steps=300, seed=0)
    assert np.isfinite(last).all()
    assert value(last) < 0.98 * value(start)
