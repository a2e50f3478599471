"""``featcache models`` and ``featcache layers``: the available backbones and their layers."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, cast

import typer

from featcache.cli import output
from featcache.cli.command import Answer, Debug, Json, command
from featcache.cli.options import InputSize
from featcache.core.errors import UsageError

if TYPE_CHECKING:
    from featcache.backbones import LayerInfo, ModelInfo
    from featcache.core.recipe import StandardTransform


@command(interrupted="")
def models(
    pattern: Annotated[
        str | None,
        typer.Argument(metavar="PATTERN", help="A glob, in quotes. Default: the backbones that need no download."),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> Answer:
    """List backbones: those whose weights come with pip packages, or those that match a pattern.

    Exits with 1 if no name matches.

    Example: featcache models

    Example: featcache models 'timm:*convnext*'
    """
    from featcache import backbones

    found = backbones.available(pattern)
    listed = [dataclasses.asdict(model) for model in found]
    return Answer({"models": listed}, lambda: _show_models(found, pattern), 0 if found else 1)


@command(interrupted="")
def layers(
    backbone: Annotated[str, typer.Argument(metavar="BACKBONE", help="A name that `featcache models` lists.")],
    input_size: InputSize = None,
    as_json: Json = False,
    debug: Debug = False,
) -> Answer:
    """List a backbone's layers with their shape and size per image, and the split points for fine-tuning.

    Example: featcache layers bundled:efficientnet_lite0
    """
    from featcache import backbones
    from featcache.backbones.input_size import InputSize as Size
    from featcache.backbones.split import split_points

    network = backbones.get(backbone).architecture()
    if input_size is not None:
        published = cast("StandardTransform", network.pixels.transform)  # that of a network with a name
        network = network.at(Size(input_size).of(published), backbone)
    found = network.layer_infos()
    try:
        points = split_points(network)
    except UsageError:  # torch.fx cannot trace its code
        points = []
    listed = [dataclasses.asdict(layer) for layer in found]
    answer = {"backbone": backbone, "layers": listed, "split_points": points}
    return Answer(answer, lambda: _show_layers(found, points))


def _show_models(found: list[ModelInfo], pattern: str | None) -> None:
    for model in found:
        about = [f"{model.input_size} pixels"] if model.input_size else []
        about += [f"{model.dim:,} values per image"] if model.dim else []
        about += [f"{model.parameters / 1e6:.1f} M parameters"] if model.parameters else []
        about += [word for word in (model.licence, model.weights) if word and word != "download"]
        output.say(f"{model.name}  ({', '.join(about)})" if about else model.name)
    if not found:
        output.say(f"No backbone matches {pattern!r}. A pattern matches the whole name; * stands for any characters:")
        output.say("  featcache models 'timm:*convnext*'")
    if pattern is None:
        output.say("Also the classification networks of torchvision and timm, whose weights are downloaded:")
        output.say("  featcache models 'torchvision:*'")
        output.say("  featcache models 'timm:*resnet*'")


def _show_layers(found: list[LayerInfo], split_points: list[str]) -> None:
    output.table(
        ["layer", "shape", "axes", "with :mean", "with :none"],
        [
            (
                layer.name,
                " × ".join(map(str, layer.shape)),
                layer.axes,
                f"{layer.mean_bytes:,} B",
                f"{layer.none_bytes:,} B" if layer.none_bytes else "",
            )
            for layer in found
        ],
        right=["with :mean", "with :none"],
    )
    output.say("Bytes per image. :mean and :mean_std pool to a vector (mean_std: twice as long), :none keeps the map.")
    output.say("Take several with globs: --layers 'blocks.*:mean'.")
    output.say(
        f"Split points for fine-tuning: {', '.join(split_points)}."
        if split_points
        else "There is no split point for fine-tuning: torch.fx cannot trace this network."
    )
