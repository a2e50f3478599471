"""`multilayer`: the softmax on all blocks of the frozen network together, between `train` and `tune`.

What an early layer sees and the last one forgot is of use where the pictures are unlike those that the network was
trained on; the price is one extraction (G. Evci et al., "Head2Toe", ICML 2022, do so with a choice of features).
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from featcache.core.progress import Progress, choose
from featcache.extraction.embed import backbone_for
from featcache.finetuning.activations import extract_known, needed
from featcache.store import FeatureStore
from featcache.strategies.block_layers import block_layers
from featcache.training.bundle import Bundle
from featcache.training.train import train

if TYPE_CHECKING:
    from featcache.backbones import Backbone


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
