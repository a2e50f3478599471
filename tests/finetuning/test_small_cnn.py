"""The small network learns from nothing, and begins as He et al. say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from featcache.backbones import get
from featcache.backbones.families.scratch import SmallCNN
from featcache.core.errors import UnknownNameError, WeightsError
from featcache.finetuning.config import Schedule, network_stages
from featcache.finetuning.loop import train
from tests.finetuning.problems import Rows, whole


@pytest.mark.slow
def test_it_learns_digits() -> None:
    """1,000 to learn from, 300 to choose the epoch by, the rest, other writers', to be scored on."""
    pixels, labels = load_digits(return_X_y=True)
    x = torch.from_numpy((pixels / 8 - 1).astype(np.float32).reshape(-1, 1, 8, 8)).repeat(1, 3, 1, 1)
    y = torch.from_numpy(labels)
    torch.manual_seed(0)
    network = SmallCNN((16, 32, 64))
    model = nn.Sequential(network, nn.Linear(64, 10))
    stages = [*network_stages(network), ("output", list(model[1].parameters()))]
    config = Schedule(epochs=8, lr=3e-3, layer_decay=1.0)
    curve = train(model, stages, Rows(x[:1000], y[:1000], 32), whole(x[1000:1300], y[1000:1300]), config)
    with torch.no_grad():
        right = (model(x[1300:]).argmax(1) == y[1300:]).float().mean()
    assert right >= 0.95
    assert curve.best.accuracy >= 0.95


def test_weights_of_convolutions_begin_as_he_et_al_say() -> None:
    torch.manual_seed(0)
    convolutions = [module for module in SmallCNN().modules() if isinstance(module, nn.Conv2d)]
    assert [(c.in_channels, c.out_channels) for c in convolutions] == [
        (3, 32), (32, 32), (32, 64), (64, 64), (64, 128), (128, 128),
    ]  # fmt: skip
    for c in convolutions:
        expected = (2 / (9 * c.out_channels)) ** 0.5
        # The deviation of n normal numbers is off by about 1/√(2n) of itself.
        assert float(c.weight.detach().std()) == pytest.approx(expected, rel=4 / (2 * c.weight.numel()) ** 0.5)


@pytest.mark.parametrize("side", [28, 33, 64])
def test_vectors_of_images_of_few_pixels(side: int) -> None:
    network = SmallCNN((4, 8)).eval()
    assert network(torch.zeros(2, 3, side, side)).shape == (2, 8)


def test_it_has_no_pretrained_weights() -> None:
    backbone = get("scratch:small_cnn")
    with pytest.raises(WeightsError, match="finetune STORE --init scratch"):
        _ = backbone.recipe
    with pytest.raises(UnknownNameError, match="small_cnn"):
        get("scratch:smal_cnn").architecture()


def test_a_blank_one_is_drawn_from_the_seed() -> None:
    def weights(seed: int) -> bytes:
        torch.manual_seed(seed)
        (first, *_) = get("scratch:small_cnn").architecture().module.parameters()
        return first.detach().numpy().tobytes()

    assert weights(1) == weights(1) != weights(2)
