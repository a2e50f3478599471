"""What `Backbone.from_module` makes of a network that is given in Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from featcache.core.errors import UsageError
from featcache.core.recipe import CustomTransform, PixelPath, StandardTransform

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import nn

    from featcache.backbones.network import Network


def loader_of(
    module: nn.Module,
    transform: StandardTransform | Callable[[Image], Any],
    called: tuple[str, str | None],
    axes: tuple[str | None, int],
    input_size: tuple[int, int] | None,
) -> Callable[[], Network]:
    """What loads it.

    Args:
        module, transform, input_size: as there.
        called: name and version.
        axes: axis order, and prefix tokens.

    Raises:
        UsageError: as there.
    """
    (name, version), (order, prefix_tokens) = called, axes
    if ":" in name or not name:
        raise UsageError(f"The name {name!r} should be one word without a colon.")
    if order not in (None, "NCHW", "NHWC", "NLC"):
        raise UsageError(f"The axis order is 'NCHW', 'NHWC' or 'NLC', not {order!r}.")
    if not isinstance(transform, StandardTransform) and not version:
        raise UsageError(
            "A callable transform is identified by name and version: give version='1', and a new version whenever "
            "the callable changes."
        )

    def load() -> Network:
        from featcache.backbones.activations import Axes
        from featcache.backbones.network import Network
        from featcache.backbones.weights import digest_of

        if isinstance(transform, StandardTransform):
            pixels, custom = PixelPath(transform), None
        else:
            pixels, custom = PixelPath(CustomTransform(name, str(version))), transform
        return Network(
            module=module,
            digest=digest_of(module),
            pixels=pixels,
            axes=Axes(None if order == "NLC" else order, order == "NLC", prefix_tokens),
            custom=custom,
            input_size=input_size,
        )

    return load
