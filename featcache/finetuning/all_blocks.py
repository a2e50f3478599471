"""`multilayer`: the softmax on all blocks of the frozen network together, between `train` and `tune`.

What an early layer sees and the last one forgot is of use where the images are unlike those that the network was
trained on; the price is one extraction (G. Evci et al., "Head2Toe", ICML 2022, do so with a choice of features).

Which layers stand for the whole depth of a network.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from featcache.backbones import Backbone
from featcache.core.errors import UsageError
from featcache.core.progress import Progress, choose
from featcache.extraction.embed import backbone_for
from featcache.finetuning.activations import extract_known, needed
from featcache.store import FeatureStore
from featcache.training.bundle import Bundle
from featcache.training.train import train

if TYPE_CHECKING:
    from featcache.backbones import Backbone


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
    network = backbone.network if backbone.is_custom else backbone.architecture()
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


def multilayer(
    store: str | Path,
    *,
    cv: int | None = None,
    split: str | None = None,
    labels: str | Path | None = None,
    source: str | None = None,
    space: str | None = None,
    seed: int = 0,
    backbone: Backbone | None = None,
    progress: Progress | bool | None = None,
) -> Bundle:
    """Train the head ``softmax`` on the mean and deviation of every block, and on ``pooled``.

    Layers that are not in the store yet are extracted first, from the images where the store knows them.

    Args:
        store: a store with the vectors of some backbone.
        cv, split, labels, source, space, seed: as for `featcache.train`.
        backbone: needed only where the vectors were made by a module given in Python.
        progress: as for `featcache.train`.

    Raises:
        UsageError: no layer of the network can be pooled, or as for `featcache.train`.
        MissingVectorsError: the images are not where the store knows them, though layers are missing.
    """
    began = time.monotonic()
    opened = FeatureStore.open(Path(store))
    chosen = opened.space(space)
    network = backbone_for(chosen.recipe, backbone)
    layers = block_layers(network)
    with choose(progress) as shown:
        wanted = (
            needed(opened, network, layer, labels=labels, source=source, space=chosen.fingerprint) for layer in layers
        )
        if any(one.bytes for one in wanted):
            extract_known(opened, network, layers, labels=labels, source=source, progress=shown)
        bundle = train(
            store, layers=layers, cv=cv, split=split, labels=labels, source=source, space=chosen.fingerprint, seed=seed,
            views="first", progress=shown,
        )  # fmt: skip
    bundle.report |= {"strategy": "multilayer", "layers": layers, "seconds": time.monotonic() - began}
    return bundle
