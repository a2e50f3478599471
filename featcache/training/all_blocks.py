"""The layers `all-blocks`: every block of the frozen network together, for images unlike those it was trained on.

What an early layer sees and the last one forgot is of use there; the price is one extraction (U. Evci et al.,
"Head2Toe", ICML 2022, do so with a choice of features).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from featcache.core.errors import UsageError
from featcache.store import FeatureStore

if TYPE_CHECKING:
    from torch import nn

    from featcache.backbones import Backbone
    from featcache.core.progress import Progress
    from featcache.training.selection import Selection

ALL_BLOCKS, POOLED, POOLING = "all-blocks", "pooled", "mean_std"
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
    pooled = [POOLED] if any(info.name == POOLED for info in infos) else []
    return [f"{name}:{POOLING}" for name in found] + pooled


def stored_blocks(store: FeatureStore, select: Selection) -> list[str]:
    """The layers that `train` reads by default: ``pooled`` last, and what is stored with `POOLING` in the same views.

    None where only ``pooled`` is stored, or not even that.
    """
    columns = store.space(select.space).layers
    if POOLED not in columns:
        return []
    views = set(columns[POOLED].views)
    blocks = [name for name, column in columns.items() if name.endswith(f":{POOLING}") and views <= set(column.views)]
    return [*blocks, POOLED] if blocks else []


def _blocks(network: nn.Module) -> list[str]:
    """Paths of the blocks; none where the network is no list of any."""
    from torch import nn

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


def with_all_blocks(
    store: FeatureStore,
    layers: str | Sequence[str] | None,
    select: Selection,
    progress: Progress,
    backbone: Backbone | None = None,
) -> tuple[FeatureStore, str | Sequence[str] | None]:
    """The layers, with `all-blocks` replaced by their names, and the store, to which those that it lacks are added.

    Args:
        store: the store.
        layers: names; each may be `all-blocks`.
        select: source, space and labels.
        progress: reports the extraction.
        backbone: the network; by default it is found by name.

    Raises:
        UsageError: no layer of the network can be pooled, or it is a module in Python and was not given, or it was
            given and nothing needs it.
        RecipeMismatchError: the network does not have the recipe of the vectors.
        MissingVectorsError: layers are missing and the images are not where the store knows them.
    """
    given = [layers] if isinstance(layers, str) else list(layers or ())
    if ALL_BLOCKS not in given:
        if backbone is not None:
            raise UsageError(
                f"Only the layers {ALL_BLOCKS} need the network; others are read from the store. Omit --weights "
                "(backbone= in Python)."
            )
        return store, layers
    # Imported here: other layers need no network, and `train` of stored vectors loads no torch.
    from featcache.extraction.embed import backbone_for
    from featcache.training.activations import extract_known, needed

    recipe = store.space(select.space).recipe
    if backbone is None and recipe.backbone.startswith("module:"):
        raise UsageError(
            f"The blocks of {recipe.backbone} are not known, as only Python can give it: featcache.train(…, "
            f"layers={ALL_BLOCKS!r}, backbone=…)."
        )
    network = backbone_for(recipe, backbone)
    blocks = block_layers(network)
    if any(needed(store, network, layer, select).bytes for layer in blocks):
        extract_known(store, network, blocks, select, progress=progress)
        store = FeatureStore.open(store.path)
    return store, ["+".join(blocks) if name == ALL_BLOCKS else name for name in given]
