"""A backbone with weights of one's own: what is left when a whole network was trained."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from featcache.backbones.backbone import Backbone
from featcache.core.recipe import PixelPath

if TYPE_CHECKING:
    from featcache.backbones.network import Network


def with_weights(backbone: Backbone, tensors: Mapping[str, np.ndarray], pixels: PixelPath | None = None) -> Backbone:
    """The same network and pixels with these weights; the backbone itself stays as it is.

    Nothing is downloaded: of a network that is known by its name only the architecture is made.

    Args:
        backbone: gives the architecture, the pixels, the device, the runtime and the precision.
        tensors: all tensors of the state of the network without its classifier, by name.
        pixels: names the code that decodes and resizes, see `Backbone.following`; by default the newest.

    Returns:
        A backbone whose recipe has the digest of these weights.

    Raises:
        WeightsError: names or shapes differ from the network's; the first are listed. It is raised once the network
            is needed.
    """

    def load() -> Network:
        import torch

        from featcache.backbones.weights import digest_of, load_into

        network = copy.copy(backbone.blank())
        network.module = copy.deepcopy(network.module)
        given = {name: torch.from_numpy(np.array(tensor)) for name, tensor in tensors.items()}
        load_into(network.module, given, "the bundle")
        network.digest = digest_of(network.module)
        network.weights_file = network.weights_state = None
        return network

    made = Backbone(
        backbone.name,
        load,
        device=backbone.device,
        runtime=backbone.runtime,
        precision=backbone.precision,
    )
    made.origin = functools.partial(with_weights, backbone, dict(tensors))
    return made if pixels is None else made.following(pixels)
