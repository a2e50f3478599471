"""Which layers stand for the whole depth of a network."""

from __future__ import annotations

from torch import nn

from featcache.backbones import Backbone
from featcache.core.errors import UsageError

_MOST = 0.8


def block_layers(backbone: Backbone) -> list[str]:
    """The blocks of a network with their pooling ``mean_std``, in network order, and ``pooled``.

    Blocks are the parts of the list of blocks that holds most of the network's parameters (``blocks.*`` of an
    EfficientNet or a ViT, ``stages.*`` of a ConvNeXt); of a network that is several such lists, like the ``layer1`` to
    ``layer4`` of a ResNet, the lists themselves.

    Args:
        backbone: its architecture is enough; weights are not loaded for this.

    Raises:
        UsageError: no layer of the network can be pooled, since the order of its axes is not declared.
    """
    network = backbone.network if backbone.made_in_python else backbone.blank()
    infos = network.layer_infos()
    poolable = {info.name for info in infos if info.none_bytes}
    found = [name for name in _blocks(network.module) if name in poolable]
    found = found or [info.name for info in infos if info.name in poolable]
    if not found:
        raise UsageError(
            f"No layer of {backbone.name} can be pooled: it is not declared which axis of its activations is the "
            "channel."
        )
    pooled = ["pooled"] if any(info.name == "pooled" for info in infos) else []
    return [f"{name}:mean_std" for name in found] + pooled


def _blocks(network: nn.Module) -> list[str]:
    """Paths of the blocks; none where the network is no list of any."""
    total, path, here = _size(network), "", network
    while True:
        parts = [(f"{path}{name}", part) for name, part in here.named_children() if _size(part)]
        lists = [(name, part) for name, part in parts if isinstance(part, (nn.Sequential, nn.ModuleList))]
        most = [(name, part) for name, part in parts if _size(part) > _MOST * total]
        if len(lists) == 1 or (most and most[0] in lists):
            name, blocks = lists[0] if len(lists) == 1 else most[0]
            return [f"{name}.{inner}" for inner, block in blocks.named_children() if _size(block)]
        if lists or not most:
            return [name for name, _ in lists]
        path, here = f"{most[0][0]}.", most[0][1]


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
