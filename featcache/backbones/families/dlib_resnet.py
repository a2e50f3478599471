"""dlib's face network as a torch module: 29 convolutions in residual blocks, then a matrix to 128 numbers.

After D. E. King, "High Quality Face Recognition with Deep Metric Learning" (blog.dlib.net, 2017) and
``examples/dnn_face_recognition_ex.cpp`` of dlib; the residual network is that of K. He, X. Zhang, S. Ren and J. Sun,
"Deep Residual Learning for Image Recognition" (CVPR 2016) with fewer layers and half the filters.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featcache.backbones.families.dlib_weights import BLOCKS, STEM_FILTERS, VECTOR, Block


class ResidualBlock(nn.Module):
    """Two convolutions and a shortcut beside them, added and rectified.

    Args:
        block: its channels, and whether it halves the map.
    """

    def __init__(self, block: Block) -> None:
        super().__init__()
        stride, padding = (2, 0) if block.halves else (1, 1)
        self.conv1 = nn.Conv2d(block.inputs, block.filters, 3, stride, padding)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(block.filters, block.filters, 3, padding=1)
        self.shortcut = nn.AvgPool2d(2) if block.halves else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, inputs, h, w) to (n, filters, h', w'), with h' = h, or h // 2 where the block halves the map."""
        branch = self.conv2(self.relu(self.conv1(x)))
        return F.relu_(padded_sum(branch, self.shortcut(x)))


def padded_sum(a: Tensor, b: Tensor) -> Tensor:
    """The sum of two maps, each of which ends in zeros where the other has more channels, rows or columns.

    It is dlib's ``add_prev_``: a convolution with stride 2 and no padding makes 3 × 3 of a map of 8 × 8, but the pool
    beside it 4 × 4, and the fourth row and column are those of the pool alone.

    Args:
        a: (n, channels, height, width).
        b: the same, of any other channels, height and width.

    Returns:
        (n, channels, height, width), of each the larger.
    """
    if a.shape == b.shape:
        return a + b
    larger = [max(sides) for sides in zip(a.shape[1:], b.shape[1:], strict=True)]
    return _padded(a, larger) + _padded(b, larger)


def _padded(x: Tensor, larger: list[int]) -> Tensor:
    missing = [(0, wanted - there) for wanted, there in zip(larger, x.shape[1:], strict=True)]
    # torch wants the last axis first.
    return F.pad(x, [side for pair in reversed(missing) for side in pair])


class FaceResNet(nn.Module):
    """dlib's face network. Its affine layers are folded into the convolutions that they follow."""

    def __init__(self) -> None:
        super().__init__()
        conv = nn.Conv2d(3, STEM_FILTERS, 7, 2)
        self.stem = nn.Sequential(OrderedDict(conv=conv, relu=nn.ReLU(inplace=True), pool=nn.MaxPool2d(3, 2)))
        self.blocks = nn.Sequential(*(ResidualBlock(block) for block in BLOCKS))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.descriptor = nn.Linear(BLOCKS[-1].filters, VECTOR, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """The vectors of aligned faces.

        Args:
            x: (n, 3, 150, 150) float32, RGB, from which the mean was subtracted and which was then divided by 256.

        Returns:
            (n, 128) float32, not normalized.
        """
        vectors: Tensor = self.descriptor(self.pool(self.blocks(self.stem(x))).flatten(1))
        return vectors


def folded(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """The state of a `FaceResNet`.

    A convolution with weights w and bias b, and after it an affine layer that multiplies by gamma and adds beta, are
    one convolution with weights gamma · w and bias gamma · b + beta. These are computed in float64 and rounded once, so
    that they are the same bits on every machine.

    Args:
        arrays: from `featcache.backbones.families.dlib_weights.face_network_arrays`.

    Returns:
        float32 tensors by their names in the module.
    """
    state = {}
    for name in (name.removesuffix(".gamma") for name in arrays if name.endswith(".gamma")):
        gamma, beta, weight, bias = (
            arrays[f"{name}.{part}"].astype(np.float64) for part in ("gamma", "beta", "weight", "bias")
        )
        state[f"{name}.weight"] = gamma[:, None, None, None] * weight
        state[f"{name}.bias"] = gamma * bias + beta
    state["descriptor.weight"] = arrays["descriptor.weight"]
    return {name: torch.from_numpy(np.ascontiguousarray(array, np.float32)) for name, array in state.items()}
