"""The family ``scratch``: a small convolutional network for small images, without pretrained weights.

It cannot extract before it is trained: `featcache.finetuning.finetune` starts from random weights, and the bundle holds
the trained ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from featcache.backbones.activations import Axes
from featcache.backbones.network import Network
from featcache.core.errors import UnknownNameError, WeightsError
from featcache.core.recipe import PixelPath, StandardTransform

NAME = "small_cnn"
SIDE = 32
_TRANSFORM = StandardTransform((SIDE,), (SIDE, SIDE), "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class SmallCNN(nn.Module):
    """Blocks of convolution, batch normalization, ReLU and pooling, and the mean over the image.

    Each block is 3 × 3 convolution, normalization (Ioffe and Szegedy, ICML 2015) and ReLU, twice, then 2 × 2 max
    pooling, except in the last block. Convolutions are initialized by He et al., "Delving deep into rectifiers", ICCV
    2015, equation 14 (fan-out). It is meant for images of 28 to 64 pixels.

    Args:
        channels: output channels of each block; the last is the length of the vectors.
    """

    def __init__(self, channels: Sequence[int] = (32, 64, 128)) -> None:
        super().__init__()
        blocks, width = [], 3
        for number, maps in enumerate(channels, 1):
            layers = [*_convolved(width, maps), *_convolved(maps, maps)]
            blocks.append(nn.Sequential(*layers, nn.MaxPool2d(2) if number < len(channels) else nn.Identity()))
            width = maps
        self.blocks = nn.Sequential(*blocks)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """(n, 3, h, w) float32 to vectors (n, c)."""
        maps: Tensor = self.blocks(x)
        return maps.mean((2, 3))


def load(name: str, weights: Path | None) -> Network:
    """Raise, since there are no pretrained weights.

    Raises:
        UnknownNameError: no such network.
        WeightsError: it has no pretrained weights.
    """
    check_name(name)
    raise WeightsError(
        f"scratch:{name} has no pretrained weights, so it cannot extract. `featcache finetune STORE --init scratch "
        f"--arch scratch:{name}` trains it from images."
    )


def blueprint(name: str) -> Network:
    """The network with random weights, from torch's global generator.

    Raises:
        UnknownNameError: no such network.
    """
    check_name(name)
    return Network(SmallCNN(), "", PixelPath(_TRANSFORM), Axes("NCHW"))


def check_name(name: str) -> None:
    """Check that the family has a network of that name.

    Raises:
        UnknownNameError: it has none.
    """
    if name != NAME:
        raise UnknownNameError.among("network of the family 'scratch'", name, [NAME])


def _convolved(width: int, maps: int) -> list[nn.Module]:
    # The normalization has a bias, so the convolution needs none.
    return [nn.Conv2d(width, maps, 3, padding=1, bias=False), nn.BatchNorm2d(maps), nn.ReLU(inplace=True)]
