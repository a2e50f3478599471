"""Other sizes of a network's input, and whole images in place of their centers.

A network trained at one size sees objects larger in a test image, which is cropped to fewer pixels, so a larger input
is often better (H. Touvron, A. Vedaldi, M. Douze and H. Jégou, "Fixing the train-test resolution discrepancy", NeurIPS
2019). And what lies at the border is lost by the crop.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypedDict

from featcache.core.arguments import check_fields
from featcache.core.errors import UnknownNameError, UsageError

if TYPE_CHECKING:
    from torch import nn

    from featcache.core.recipe import StandardTransform

FITS = ("crop", "whole")
LARGEST = 4096
"""Pixels of a side beyond which a pass of a single image fills the memory."""
_NEAR, _STEP = 64, 8
"""How far the sizes go that are tried to say which ones work, and their step where there are no patches."""


class InputOptions(TypedDict, total=False):
    """`InputSize` as keyword arguments."""

    input_size: int | None
    fit: str | None


@dataclass(frozen=True, slots=True)
class InputSize:
    """How an image becomes a network's input, where that is not as published.

    Attributes:
        input_size: height and width in pixels; those published by default.
        fit: ``whole``: the image is resized to that size, whatever its aspect; ``crop``: its center is cut out, as
            published, from an image that is larger by as much as the input. By default ``whole`` with a size, and as
            published without one.

    Raises:
        UnknownNameError: no such fit.
        UsageError: a size below 1 or above `LARGEST`.
    """

    input_size: int | None = None
    fit: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.fit is not None and self.fit not in FITS:
            raise UnknownNameError.among("fit", self.fit, FITS)
        if self.input_size is not None and not 1 <= self.input_size <= LARGEST:
            raise UsageError(f"input_size is a number of pixels from 1 to {LARGEST:,}, not {self.input_size:,}.")

    @property
    def is_given(self) -> bool:
        """Whether it says anything."""
        return self.input_size is not None or self.fit is not None

    def of(self, published: StandardTransform) -> StandardTransform:
        """The published transform at this size."""
        height, width = published.crop if self.input_size is None else (self.input_size, self.input_size)
        if self.fit != "crop" and self.is_given:
            return replace(published, resize=(height, width), crop=(height, width))
        sides = (width,) if len(published.resize) == 1 else (height, width)
        was = published.crop[1:] if len(published.resize) == 1 else published.crop
        resize = tuple(round(side * new / old) for side, new, old in zip(published.resize, sides, was, strict=True))
        return replace(published, resize=resize, crop=(height, width))


AS_PUBLISHED = InputSize()


def module_at(module: nn.Module, size: tuple[int, int], was: tuple[int, int], name: str) -> nn.Module:
    """A network that runs on images of another size.

    Args:
        module: maps (n, 3, h, w) float32 to vectors.
        size: height and width.
        was: those that it was made for.
        name: of the network, for the message.

    Returns:
        The module itself where it runs at any size; a copy where it has tables of positions, which timm interpolates.

    Raises:
        UsageError: it cannot run at this size; the message says which sizes work.
    """
    patch = patch_of(module)
    try:
        if any(side % patch for side in size):
            raise ValueError(f"it cuts images into patches of {patch} pixels")
        made = _fitted(module, size)
        _run(made, size)
    except Exception as error:  # the network's own code may raise anything
        words = next(iter(str(error).splitlines()), "") or type(error).__name__
        near = [f"{side} × {side}" for side in _working(module, size[0], patch)] or [f"{was[0]} × {was[1]}"]
        raise UsageError(
            f"{name} cannot run on images of {size[0]} × {size[1]} pixels: {words.rstrip('.!')}. "
            f"What works: {' and '.join(near)}."
        ) from error
    return made


def _fitted(module: nn.Module, size: tuple[int, int]) -> nn.Module:
    """The module, or a copy of it with tables of positions for this size."""
    if not hasattr(module, "set_input_size"):
        return module
    made = copy.deepcopy(module)
    made.set_input_size(img_size=size)  # type: ignore[operator]  # a method of timm's, of which nn.Module knows nothing
    return made.requires_grad_(False).eval()


def patch_of(module: nn.Module) -> int:
    """The side of the patches that the first convolution cuts images into, which leave out a border else; or 1."""
    from torch import nn

    first = next((part for part in module.modules() if isinstance(part, nn.Conv2d)), None)
    tiles = first is not None and first.kernel_size == first.stride and first.padding in ((0, 0), "valid")
    return first.stride[0] if first is not None and tiles else 1


def _run(module: nn.Module, size: tuple[int, int]) -> None:
    import torch

    device = next(iter(module.parameters()), torch.empty(0)).device
    with torch.inference_mode():
        module.eval()(torch.zeros((1, 3, *size), device=device))


def _working(module: nn.Module, side: int, patch: int) -> Iterator[int]:
    """The nearest square sizes below and above that work, as far as torch can tell without computing anything."""
    outline, step = copy.deepcopy(module).to("meta"), patch if patch > 1 else _STEP
    below = side - side % step
    for sides in (range(below, max(side - _NEAR, 0), -step), range(below + step, side + _NEAR, step)):
        for tried in sides:
            with suppress(Exception):  # as above
                _run(_fitted(outline, (tried, tried)), (tried, tried))
                yield tried
                break
