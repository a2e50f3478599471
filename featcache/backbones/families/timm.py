"""The family ``timm``: any classification network of timm with its own weights and transform."""

from __future__ import annotations

import math
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm

from featcache.backbones.activations import Axes
from featcache.backbones.network import Network
from featcache.backbones.recipe_cache import cache_folder
from featcache.backbones.weights import digest_of, load_into, read_weights, seen_file
from featcache.core.errors import UnknownNameError, UsageError, WeightsError
from featcache.core.recipe import PixelPath, StandardTransform

if TYPE_CHECKING:
    from torch import nn

_TIMEOUT_SECONDS = 10

# timm's modules by the axis order of the activations inside. timm does not declare it: `output_fmt` is an attribute of
# four families only, and as an argument of `forward_intermediates` it names a conversion.
_NCHW = {
    "byoanet", "byobnet", "convnext", "cspnet", "densenet", "dla", "dpn", "edgenext", "efficientnet",
    "ghostnet", "hardcorenas", "hgnet", "hrnet", "inception_resnet_v2", "inception_v3", "inception_v4",
    "mobilenetv3", "mobilevit", "nasnet", "nfnet", "pnasnet", "regnet", "repvit", "res2net", "resnest",
    "resnet", "resnetv2", "rexnet", "selecsls", "senet", "sknet", "tresnet", "vgg", "vovnet", "xception",
    "xception_aligned",
}  # fmt: skip
_TOKENS = {"vision_transformer", "vision_transformer_relpos", "deit", "eva", "beit", "cait"}
_NHWC = {"swin_transformer", "swin_transformer_v2"}


def load(name: str, weights: Path | None) -> Network:
    """Load ``timm:<name>``.

    Raises:
        UnknownNameError: timm has no such network.
        UsageError: its published transform is not supported.
        WeightsError: the weights cannot be downloaded or do not fit.
    """
    module = _created(name)
    config: dict[str, Any] = module.pretrained_cfg
    transform = standard_transform(name, config)
    path = weights or _own_file(name)
    before = seen_file(path) if path is not None else None
    if path is not None:
        classifier = config.get("classifier")
        load_into(module, read_weights(path), str(path), classifier if isinstance(classifier, str) else None)
    else:
        if (path := _cached_file(config)) is not None:
            before = seen_file(path)
        module = _downloaded(name, config)
        path = _cached_file(config)
    module.reset_classifier(0)
    return Network(module, digest_of(module), PixelPath(transform), axes_of(module), path, weights_state=before)


def blueprint(name: str) -> Network:
    """The same network without its weights, to look at its layers."""
    module = _created(name)
    transform = standard_transform(name, module.pretrained_cfg)
    module.reset_classifier(0)
    return Network(module, "", PixelPath(transform), axes_of(module))


def standard_transform(name: str, config: Mapping[str, Any]) -> StandardTransform:
    """The published transform, exactly as timm's evaluation transform computes it.

    Raises:
        UsageError: a part of it is not published or not supported.
    """
    needed = ("input_size", "crop_pct", "interpolation", "mean", "std")
    missing = [key for key in needed if not config.get(key)]
    if missing:
        raise UsageError(f"timm publishes no {', '.join(missing)} for {name}, and a guess could give wrong vectors.")
    channels, height, width = config["input_size"]
    mode = config.get("crop_mode") or "center"
    if channels != 3 or mode not in ("center", "squash") or (mode == "center" and height != width):
        raise UsageError(
            f"The transform of {name} (input {config['input_size']}, crop mode {mode!r}) is not supported. "
            "Use Backbone.from_module with a transform of your own."
        )
    resize = tuple(math.floor(side / config["crop_pct"]) for side in (height, width))
    return StandardTransform(
        resize=resize if mode == "squash" else resize[:1],
        crop=(height, width),
        interpolation=config["interpolation"],
        mean=config["mean"],
        std=config["std"],
    )


def axes_of(module: nn.Module) -> Axes:
    """The axis order of this network's activations, by the module of timm that defines it."""
    family = type(module).__module__.rpartition(".")[2]
    if family in _TOKENS:
        return Axes(None, True, int(getattr(module, "num_prefix_tokens", 0)))
    if family in _NHWC:
        return Axes("NHWC")
    return Axes("NCHW") if family in _NCHW else Axes()


def weights_folder() -> Path:
    """The folder that is searched for a file of weights before anything is downloaded."""
    return cache_folder() / "weights"


def _created(name: str) -> Any:
    if not timm.is_model(name):
        raise UnknownNameError.among("timm network", name, timm.list_models() + timm.list_pretrained())
    return timm.create_model(name, pretrained=False)


def _own_file(name: str) -> Path | None:
    for suffix in (".safetensors", ".pth"):
        path = weights_folder() / f"timm_{name}{suffix}"
        if path.is_file():
            return path
    return None


def _downloaded(name: str, config: Mapping[str, Any]) -> nn.Module:
    address, file = _address(config)
    advice = (
        f"Download {file} from {address} on another machine, and put it at "
        f"{weights_folder() / f'timm_{name}{Path(file).suffix}'}, or give it with --weights FILE."
    )
    if not address:
        raise WeightsError(f"timm publishes no weights for {name}. Give a file with --weights FILE.")
    if _cached_file(config) is None:
        try:
            request = urllib.request.Request(address, method="HEAD")
            urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS).close()
        except urllib.error.HTTPError:
            pass  # the server answers; timm sends the right request
        except OSError as error:
            raise WeightsError(f"The weights of timm:{name} cannot be downloaded: {error}. {advice}") from error
    try:
        return timm.create_model(name, pretrained=True)
    except Exception as error:
        raise WeightsError(f"The weights of timm:{name} cannot be loaded: {error}. {advice}") from error


def _address(config: Mapping[str, Any]) -> tuple[str, str]:
    if config.get("hf_hub_id"):
        from huggingface_hub import hf_hub_url

        file = config.get("hf_hub_filename") or "model.safetensors"
        return hf_hub_url(config["hf_hub_id"], file), file
    url = config.get("url") or ""
    return url, Path(url).name


def _cached_file(config: Mapping[str, Any]) -> Path | None:
    """The file in timm's own download cache, if it is there."""
    if config.get("hf_hub_id"):
        from huggingface_hub import try_to_load_from_cache

        for file in (config.get("hf_hub_filename"), "model.safetensors", "pytorch_model.bin"):
            found = try_to_load_from_cache(config["hf_hub_id"], file) if file else None
            if isinstance(found, str):
                return Path(found)
        return None
    if config.get("url"):
        from torch.hub import get_dir

        path = Path(get_dir(), "checkpoints", Path(config["url"]).name)
        return path if path.is_file() else None
    return None
