"""Backbones by name: get one, list them, find the one of a recipe, or give one other weights."""

from __future__ import annotations

import copy
import functools
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from featcache.backbones.backbone import Backbone
from featcache.backbones.families import dlib
from featcache.backbones.families.bundled import BUNDLED, origin, spec_of
from featcache.backbones.families.dlib_weights import FACE_NETWORK, SIDE, VECTOR, is_installed
from featcache.backbones.recipe_cache import RecipeCache, weights_used_for
from featcache.core.arguments import checked
from featcache.core.errors import RecipeMismatchError, UnknownNameError, UsageError
from featcache.images.transforms import with_size_of

if TYPE_CHECKING:
    from featcache.backbones.network import Network
    from featcache.core.recipe import PixelPath, Recipe


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A backbone that `get` knows by name; what is unknown before it is loaded is None."""

    name: str
    input_size: int | None = None
    dim: int | None = None
    parameters: int | None = None
    licence: str | None = None
    weights: str = ""
    """Where the weights come from."""


FAMILIES = {
    "bundled": ("featcache.backbones.families.bundled", "timm"),
    "dlib": ("featcache.backbones.families.dlib", "torch"),
    "scratch": ("featcache.backbones.families.scratch", "torch"),
    "timm": ("featcache.backbones.families.timm", "timm"),
    "torchvision": ("featcache.backbones.families.torchvision", "torchvision"),
}
"""By family its module, with ``load(name, weights)`` and ``blueprint(name)``, and the package that defines its
networks."""


_SHOWN = 12
"""Hexadecimal digits of a digest of weights that a message shows."""

BFLOAT16_FLOORS: dict[str, float] = {}
"""By full name the measured lower bound of the cosine between bfloat16 vectors and float32 vectors of eager torch."""

BFLOAT16_FLOOR = 0.99
"""The same for all others, assumed and not measured: a bfloat16 graph may differ by a tenth of the vector's norm, which
is a cosine of 0.995, and decoders differ too."""


@checked
def bfloat16_floor(name: str) -> float:
    """The least cosine between a correct bfloat16 vector of this backbone and the reference."""
    return BFLOAT16_FLOORS.get(name, BFLOAT16_FLOOR)


@checked
def get(
    name: str,
    weights: str | Path | None = None,
    device: str | None = None,
    *,
    runtime: str = "auto",
    precision: str = "float32",
) -> Backbone:
    """The backbone of that name. It is loaded when it is first needed.

    Args:
        name: ``bundled:…``, ``dlib:face_resnet``, ``timm:…`` or ``torchvision:…``.
        weights: a file of weights in place of the published ones (.safetensors, .pth); for ``dlib:face_resnet`` the
            published file (.dat) if it is not installed.
        device: ``cpu`` (by default), ``cuda``, ``cuda:1``, …, see `featcache.backbones.compute`.
        runtime: ``auto``, ``torch`` or ``openvino``, see `featcache.backbones.runtimes`.
        precision: ``float32`` or ``bfloat16``.

    Raises:
        UnknownNameError: no such family, bundled backbone, network of dlib, runtime or precision.
        UsageError: the file of weights does not exist, or this machine does not have the device, runtime or precision.

    Example:
        >>> get("bundled:efficientnet_lite0").recipe.backbone
        'bundled:efficientnet_lite0'
    """
    family, colon, inner = name.partition(":")
    if family == "module":
        raise UsageError(
            f"{name} was made from a module in Python, so it cannot be loaded by name. "
            "Use the Python API and pass backbone=Backbone.from_module(…)."
        )
    if not colon or family not in FAMILIES:
        known = [f"bundled:{n}" for n in BUNDLED] + [f"dlib:{n}" for n in dlib.NAMES]
        # Importing the other families takes seconds, so our own names are tried first.
        own = [repr(full) for full in known if full.endswith(f":{name}")]
        known += [f"{f}:NAME" for f in FAMILIES if f not in ("bundled", "dlib", "scratch")]
        if not colon and (full := own or [repr(info.name) for info in available(f"*:{name}")]):
            raise UnknownNameError(f"No backbone is called {name!r}. Did you mean {' or '.join(full[:3])}?")
        raise UnknownNameError.among("backbone", name, known, "`featcache models` lists them.")
    if family == "bundled":
        spec_of(inner)
    if family == "dlib":
        dlib.check_name(inner)
    if weights is not None and not Path(weights).is_file():
        raise UsageError(f"There is no file of weights at {weights}.")
    module, library = FAMILIES[family]
    path = None if weights is None else Path(weights).resolve()

    def load() -> Network:
        loader: Callable[[str, Path | None], Network] = importlib.import_module(module).load
        return loader(inner, path)

    def blueprint() -> Network:
        maker: Callable[[str], Network] = importlib.import_module(module).blueprint
        return maker(inner)

    cache = RecipeCache(name, None if path is None else str(path), library)
    made = Backbone(name, load, blueprint=blueprint, device=device, runtime=runtime, precision=precision, cache=cache)
    made.origin = functools.partial(get, name, path, device, runtime=runtime, precision=precision)
    return made


@checked
def for_recipe(recipe: Recipe, device: str | None = None, weights: str | Path | None = None) -> Backbone:
    """The backbone that a recipe names.

    It decodes and resizes by the implementations and to the size that the recipe names, even if these are no default.

    Args:
        recipe: that of a head or of a space.
        device: as for `get`.
        weights: the file of weights that made the vectors; it is read, and checked by its digest. By default the
            file that was last given for this recipe on this machine, or else the published weights.

    Raises:
        RecipeMismatchError: the recipe's backbone was made from a module in Python, or the file has other weights.
        UnknownNameError: this version of featcache has no such backbone.
        UsageError: there is no such file, or this machine does not have the recipe's precision.
        WeightsError: the file cannot be read, or does not fit the network.

    Example:
        >>> recipe = get("bundled:efficientnet_lite0").recipe
        >>> for_recipe(recipe).recipe == recipe
        True
    """
    if recipe.backbone.startswith("module:"):
        raise RecipeMismatchError(
            f"The vectors were made by {recipe.backbone}, a module given in Python. "
            "Use the Python API and pass backbone=Backbone.from_module(…)."
        )
    file = weights_used_for(recipe) if weights is None else weights
    found = get(recipe.backbone, file, device, runtime=recipe.runtime or "auto", precision=recipe.precision)
    if file is not None:
        check_weights(recipe, found)
    return found.with_pixels(recipe.pixels)


def check_weights(recipe: Recipe, backbone: Backbone) -> None:
    """Check that a backbone known by name has the weights of a recipe.

    Raises:
        RecipeMismatchError: it has others; the message names both digests, and the file.
    """
    has = backbone.recipe.weights
    if backbone.is_custom or backbone.name != recipe.backbone or has == recipe.weights:
        return
    file = backbone.weights_given
    there = f"the published ones are {has[:_SHOWN]}" if file is None else f"{file} has {has[:_SHOWN]}"
    raise RecipeMismatchError(
        f"The vectors of {recipe.backbone} need the weights {recipe.weights[:_SHOWN]}; {there}. Give the file that "
        "they were extracted with: --weights FILE, or in Python "
        f"backbone=featcache.backbones.get({recipe.backbone!r}, FILE)."
    )


@checked
def available(pattern: str | None = None) -> list[ModelInfo]:
    """The backbones that `get` knows by name.

    Args:
        pattern: a glob for the full name (``timm:*resnet*``); a family is imported only if the pattern can match it.
            By default those whose weights come with pip packages: the bundled ones, and dlib's with its extra.
    """
    found = [
        ModelInfo(f"bundled:{s.name}", s.transform.crop[0], s.dim, s.parameters, s.licence, origin(s))
        for s in BUNDLED.values()
    ]
    installed = is_installed(FACE_NETWORK)
    if installed or pattern is not None:
        weights = "installed" if installed else "pip install 'featcache[faces]'"
        found += [
            ModelInfo(f"dlib:{name}", SIDE, VECTOR, dlib.PARAMETERS, dlib.LICENCE, weights) for name in dlib.NAMES
        ]
    if pattern is None:
        return found
    family, colon, _ = pattern.partition(":")
    if not colon:
        pattern, family = f"*:*{pattern}*" if "*" not in pattern else f"*:{pattern}", "*"
    if fnmatchcase("torchvision", family):
        from featcache.backbones.families import torchvision

        found += [ModelInfo(f"torchvision:{name}", weights="download") for name in torchvision.names()]
    if fnmatchcase("timm", family):
        import timm

        found += [ModelInfo(f"timm:{name}", weights="download") for name in timm.list_pretrained()]
    return [info for info in found if fnmatchcase(info.name, pattern)]


def with_weights(backbone: Backbone, tensors: Mapping[str, np.ndarray], pixels: PixelPath | None = None) -> Backbone:
    """The same network with other weights, such as those of a fine-tuned bundle; *backbone* itself does not change.

    Nothing is downloaded: for a backbone known by name only the architecture is made.

    Args:
        backbone: gives the architecture, pixels, device, runtime and precision.
        tensors: the full state of the network without its classifier, by name.
        pixels: names the implementations that decode and resize, and the size, see `Backbone.with_pixels`; by default
            those of *backbone*.

    Returns:
        A backbone whose recipe has the digest of these weights.

    Raises:
        WeightsError: names or shapes differ from the network's; raised when the network is first needed.
    """

    def load() -> Network:
        import torch

        from featcache.backbones.weights import digest_of, load_into
        from featcache.core.recipe import StandardTransform

        network = backbone.architecture()
        wanted = network.pixels if pixels is None else with_size_of(network.pixels, pixels)
        if wanted != network.pixels:  # tables of positions among the weights are of the size that they were trained at
            assert isinstance(wanted.transform, StandardTransform)  # a callable has one size
            network = network.at(wanted.transform, backbone.name)
        module = copy.deepcopy(network.module)
        given = {name: torch.from_numpy(np.array(tensor)) for name, tensor in tensors.items()}
        load_into(module, given, "the bundle")
        return replace(network, module=module, digest=digest_of(module), weights_file=None, weights_state=None)

    made = Backbone(
        backbone.name,
        load,
        device=backbone.device,
        runtime=backbone.runtime,
        precision=backbone.precision,
    )
    made.origin = functools.partial(with_weights, backbone, dict(tensors), pixels)
    return made if pixels is None else made.with_pixels(pixels)
