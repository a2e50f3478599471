"""The losses against their equations, pair by pair."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from featcache.heads import metric_learning
from featcache.heads.metric_learning import trained


def batch() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(4)
    class_ids = np.repeat(np.arange(5), 4)
    E = rng.normal(size=(5, 6))[class_ids] + 1.1 * rng.normal(size=(20, 6))
    return E / np.linalg.norm(E, axis=1, keepdims=True), class_ids


def test_contrastive() -> None:
    E, class_ids = batch()
    near, far = [], []
    for i in range(20):
        for j in range(20):
            distance = np.linalg.norm(E[i] - E[j])
            if i != j and class_ids[i] == class_ids[j]:
                near.append(distance**2)
            elif class_ids[i] != class_ids[j]:
                far.append(max(0.0, 1 - distance) ** 2)
    expected = (np.mean(near) + np.mean(far)) / 2
    assert max(far) > 0
    assert metric_learning.contrastive(torch.tensor(E), torch.tensor(class_ids)).item() == pytest.approx(expected)


def test_triplet() -> None:
    E, class_ids = batch()
    squares = np.square(E[:, None] - E[None]).sum(2)
    losses, hard = [], 0
    for a in range(20):
        for p in range(20):
            if a == p or class_ids[a] != class_ids[p]:
                continue
            strangers = squares[a][class_ids != class_ids[a]]
            beyond = strangers[strangers > squares[a, p]]
            hard += not len(beyond)
            negative = beyond.min() if len(beyond) else strangers.max()
            losses.append(max(0.0, squares[a, p] - negative + 0.2))
    assert hard > 0
    got = metric_learning.triplet(torch.tensor(E), torch.tensor(class_ids)).item()
    assert got == pytest.approx(np.mean(losses))


def test_cosine_margin() -> None:
    E, class_ids = batch()
    W = np.random.default_rng(1).normal(size=(7, 6))
    cosines = E @ (W / np.linalg.norm(W, axis=1, keepdims=True)).T
    own = cosines[np.arange(20), class_ids]
    others = np.exp(16 * cosines).sum(1) - np.exp(16 * own)
    expected = -np.log(np.exp(16 * (own - 0.2)) / (np.exp(16 * (own - 0.2)) + others)).mean()
    got = metric_learning.cosine_margin(torch.tensor(E), torch.tensor(class_ids), torch.tensor(W)).item()
    assert got == pytest.approx(expected)


@pytest.mark.parametrize("loss", ["contrastive", "triplet", "cosine_margin"])
def test_training_lessens_each(loss: str) -> None:
    rng = np.random.default_rng(0)
    class_ids = np.repeat(np.arange(10), 4)
    rows = (rng.normal(size=(10, 8))[class_ids] + rng.normal(size=(40, 8))).astype(np.float32)
    rows[1] = rows[0]  # a distance of 0, where a square root has no slope
    start = np.eye(4, 8, dtype=np.float32)

    def value(weight: np.ndarray) -> float:
        E = torch.nn.functional.normalize(torch.from_numpy(rows @ weight.T))
        middles = torch.stack([E[class_ids == k].mean(0) for k in range(10)])
        further = (middles,) if loss == "cosine_margin" else ()
        return float(getattr(metric_learning, loss)(E, torch.from_numpy(class_ids), *further))

    *_, last = trained(rows, class_ids, start, loss=loss, noise=0.0, steps=300, seed=0)
    assert np.isfinite(last).all()
    assert value(last) < 0.98 * value(start)
