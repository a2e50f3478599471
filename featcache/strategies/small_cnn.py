"""A small convolutional network for pictures of few pixels, trained from nothing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class SmallCNN(nn.Module):
    """Blocks of convolution, batch normalisation, ReLU and pooling; the mean over the picture; a linear layer.

    Each block is 3 × 3 convolution, normalisation (Ioffe and Szegedy, ICML 2015), ReLU, twice, then 2 × 2 maximum
    pooling, which the last block leaves out. Weights of convolutions are drawn by He et al., "Delving deep into
    rectifiers", ICCV 2015, equation 14, from the ways out. It is meant for pictures of 28 to 64 pixels.

    Args:
        classes: how many classes there are.
        channels: maps that each block makes; one block for each.
        colours: channels of the pictures, 3 or 1.
        dropout: share of the features that is left out in a training step (Srivastava et al., JMLR 2014).
        seed: of the initial weights.
    """

    def __init__(
        self,
        classes: int,
        channels: Sequence[int] = (32, 64, 128),
        *,
        colours: int = 3,
        dropout: float = 0.2,
        seed: int = 0,
    ) -> None:
        super().__init__()
        blocks, width = [], colours
        for number, maps in enumerate(channels, 1):
            layers = [*_convolved(width, maps), *_convolved(maps, maps)]
            blocks.append(nn.Sequential(*layers, nn.MaxPool2d(2) if number < len(channels) else nn.Identity()))
            width = maps
        self.blocks = nn.ModuleList(blocks)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, classes)
        generator = torch.Generator().manual_seed(seed)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
        # All classes are equally likely at first.
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of the classes.

        Args:
            x: (n, colours, height, width); uint8 from 0 to 255, or floats of about the range -1 to 1.

        Returns:
            (n, classes) float32, or under autocast what that makes of them.
        """
        x = x.float() / 127.5 - 1 if x.dtype == torch.uint8 else x.float()
        for block in self.blocks:
            x = block(x)
        scores: Tensor = self.head(self.dropout(x.mean((2, 3))))
        return scores

    def stages(self) -> list[tuple[str, list[nn.Parameter]]]:
        """The parameters from the input to the output, as `featcache.strategies.loop.train` wants them."""
        blocks = [(f"blocks.{number}", list(block.parameters())) for number, block in enumerate(self.blocks)]
        return [*blocks, ("head", list(self.head.parameters()))]


def _convolved(width: int, maps: int) -> list[nn.Module]:
    # The normalisation has a shift of its own, so the convolution needs none.
    return [nn.Conv2d(width, maps, 3, padding=1, bias=False), nn.BatchNorm2d(maps), nn.ReLU(inplace=True)]
