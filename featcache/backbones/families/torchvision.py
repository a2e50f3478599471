"""The family ``torchvision``: its classification networks with their own weights and transform.

``torchvision:resnet50`` has torchvision's default weights, ``torchvision:resnet50.IMAGENET1K_V1`` names others.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn
from torchvision.transforms._presets import ImageClassification

from featcache.backbones.activations import Axes
from featcache.backbones.network import Network
from featcache.backbones.weights import digest_of, load_into, read_weights, seen_file
from featcache.core.errors import UnknownNameError, UsageError, WeightsError
from featcache.core.recipe import PixelPath, StandardTransform

# Their published weights expect another input normalization, which the state dict does not say.
_UNSUPPORTED = frozenset({"googlenet", "inception_v3"})


def names() -> list[str]:
    """The supported classification networks of torchvision."""
    listed = torchvision.models.list_models(module=torchvision.models)
    return [name for name in listed if name not in _UNSUPPORTED]


def load(name: str, weights: Path | None) -> Network:
    """Load ``torchvision:<name>`` or ``torchvision:<name>.<weights>``.

    Raises:
        UnknownNameError: torchvision has no such network or weights.
        UsageError: its published transform is not supported.
        WeightsError: the weights cannot be downloaded or do not fit.
    """
    arch, chosen, transform = _published(name)
    module = torchvision.models.get_model(arch, weights=None)
    classifier = _last_linear(module)
    path = weights or Path(torch.hub.get_dir(), "checkpoints", Path(chosen.url).name)
    if weights is None and not path.is_file():
        try:
            chosen.get_state_dict(progress=False, check_hash=True, weights_only=True)
        except (OSError, RuntimeError) as error:
            raise WeightsError(
                f"The weights of torchvision:{name} cannot be downloaded: {error}. Download {path.name} from "
                f"{chosen.url} on another machine, and put it into {path.parent}, or give it with --weights FILE."
            ) from error
    before = seen_file(path)
    load_into(module, read_weights(path), str(path), classifier or "classifier")
    module = without_classifier(module)
    return Network(module, digest_of(module), PixelPath(transform), axes_of(arch), path, weights_state=before)


def blueprint(name: str) -> Network:
    """The same network without its weights, to look at its layers."""
    arch, _, transform = _published(name)
    module = torchvision.models.get_model(arch, weights=None)
    module = without_classifier(module)
    return Network(module, "", PixelPath(transform), axes_of(arch))


def standard_transform(name: str, preset: Any) -> StandardTransform:
    """The published transform.

    Raises:
        UsageError: it is not supported.
    """
    if not isinstance(preset, ImageClassification) or len(preset.resize_size) != 1:
        raise UsageError(
            f"The transform of torchvision:{name} is not supported. "
            "Use Backbone.from_module with a transform of your own."
        )
    (crop,) = preset.crop_size
    return StandardTransform(
        resize=(preset.resize_size[0],),
        crop=(crop, crop),
        interpolation=preset.interpolation.value,
        mean=tuple(preset.mean),
        std=tuple(preset.std),
    )


def axes_of(arch: str) -> Axes:
    """The axis order of this network's activations."""
    if arch.startswith("vit_"):
        return Axes(None, True, 1)
    return Axes("NHWC" if arch.startswith("swin") else "NCHW")


def _published(name: str) -> tuple[str, Any, StandardTransform]:
    """The network's name, its published weights and their transform."""
    arch, _, tag = name.partition(".")
    if arch not in names():
        raise UnknownNameError.among("torchvision network", arch, names())
    published = torchvision.models.get_model_weights(arch)
    if tag and tag not in published.__members__:
        raise UnknownNameError.among(f"set of weights for torchvision:{arch}", tag, published.__members__)
    chosen = published[tag] if tag else published.DEFAULT
    return arch, chosen, standard_transform(name, chosen.transforms())


def without_classifier(module: nn.Module) -> nn.Module:
    """Remove the classifier, so that the module returns the penultimate vector."""
    classifier = _last_linear(module)
    if classifier is None:
        # SqueezeNet classifies by a convolution: before it there is a map, not a vector.
        return nn.Sequential(OrderedDict(features=module.get_submodule("features")))
    parent, _, last = classifier.rpartition(".")
    setattr(module.get_submodule(parent), last, nn.Identity())
    return module


def _last_linear(module: nn.Module) -> str | None:
    """Path of the classifier, the last linear layer. A network without one has no ``pooled``."""
    found = [name for name, part in module.named_modules() if isinstance(part, nn.Linear)]
    return found[-1] if found else None
