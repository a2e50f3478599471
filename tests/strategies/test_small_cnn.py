"""The small network learns, begins as He et al. say, and takes pictures as bytes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from featcache.strategies.loop import train
from featcache.strategies.schedule import Schedule
from featcache.strategies.small_cnn import SmallCNN
from tests.strategies.problems import Rows, bits, whole

pytestmark = pytest.mark.usefixtures("one_thread")


def test_it_learns_digits() -> None:
    """1,000 to learn from, 300 to choose the epoch by, the rest, other writers', to be scored on."""
    pixels, labels = load_digits(return_X_y=True)
    x = torch.from_numpy((pixels * 15.9).astype(np.uint8).reshape(-1, 1, 8, 8))
    y = torch.from_numpy(labels)
    model = SmallCNN(10, (16, 32, 64), colours=1)
    schedule = Schedule(epochs=8, rate=3e-3, layer_decay=1.0)
    curve = train(model, model.stages(), Rows(x[:1000], y[:1000], 32), whole(x[1000:1300], y[1000:1300]), schedule)
    with torch.no_grad():
        right = (model(x[1300:]).argmax(1) == y[1300:]).float().mean()
    assert right >= 0.95
    assert curve.best.accuracy >= 0.95


def test_weights_of_convolutions_begin_as_he_et_al_say() -> None:
    convolutions = [module for module in SmallCNN(7).modules() if isinstance(module, nn.Conv2d)]
    assert [(c.in_channels, c.out_channels) for c in convolutions] == [
        (3, 32), (32, 32), (32, 64), (64, 64), (64, 128), (128, 128),
    ]  # fmt: skip
    for c in convolutions:
        expected = (2 / (9 * c.out_channels)) ** 0.5
        # The deviation of n normal numbers is off by about 1/√(2n) of itself.
        assert float(c.weight.detach().std()) == pytest.approx(expected, rel=4 / (2 * c.weight.numel()) ** 0.5)


def test_the_seed_makes_the_weights_whatever_was_drawn_before() -> None:
    first = bits(SmallCNN(3))
    torch.rand(5)
    assert bits(SmallCNN(3)) == first
    assert bits(SmallCNN(3, seed=1)) != first


@pytest.mark.parametrize("side", [28, 33, 64])
def test_bytes_are_floats_from_minus_1_to_1(side: int) -> None:
    model = SmallCNN(4, (4, 8)).eval()
    nn.init.normal_(model.head.weight)
    x = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8)
    with torch.no_grad():
        scores = model(x)
        torch.testing.assert_close(model(x.double() / 127.5 - 1), scores)
    assert scores.shape == (2, 4)
    assert scores.dtype == torch.float32


def test_stages_hold_each_parameter_once() -> None:
    model = SmallCNN(4)
    assert [name for name, _ in model.stages()] == ["blocks.0", "blocks.1", "blocks.2", "head"]
    given = [id(p) for _, parameters in model.stages() for p in parameters]
    assert sorted(given) == sorted(map(id, model.parameters()))
