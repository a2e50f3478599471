"""`tiny_backbone`: a small deterministic backbone for tests of code that uses featcache."""

from __future__ import annotations

from featcache.backbones.backbone import Backbone
from featcache.core.arguments import checked
from featcache.core.errors import UsageError
from featcache.core.recipe import StandardTransform

_LARGEST = 4096


@checked
def tiny_backbone(seed: int = 0, dim: int = 16, size: int = 32) -> Backbone:
    """A small convolutional network with random weights.

    Args:
        seed: of the weights.
        dim: length of its vectors.
        size: height and width of its input.

    Returns:
        A backbone with the layers ``stem``, ``body.0`` and ``body.1`` besides ``pooled``.

    Raises:
        UsageError: a length or size below 1, or above 4096.
    """
    if not (1 <= dim <= _LARGEST and 1 <= size <= _LARGEST):
        raise UsageError(f"dim and size are numbers from 1 to {_LARGEST}, not {dim} and {size}.")
    import torch
    from torch import nn

    module = nn.Sequential()
    module.add_module("stem", nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU()))
    module.add_module(
        "body",
        nn.Sequential(
            nn.Sequential(nn.Conv2d(8, 12, 3, 2, 1), nn.BatchNorm2d(12), nn.ReLU()),
            nn.Sequential(nn.Conv2d(12, dim, 3, 1, 1), nn.ReLU()),
        ),
    )
    module.add_module("pool", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1)))
    generator = torch.Generator().manual_seed(seed % (1 << 63))
    with torch.no_grad():
        for tensor in module.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.6 - 0.2)
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d) and part.running_var is not None:
                part.running_var.fill_(1.0)
    transform = StandardTransform((size,), (size, size), "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    return Backbone.from_module(module, transform=transform, name=f"tiny{seed}", axes="NCHW")
