"""``featcache models`` and ``layers``: which networks there are, and where vectors can be taken."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated

import typer

from featcache.cli import output as screen
from featcache.cli.command import Answer, Debug, Json, verb

if TYPE_CHECKING:
    from featcache.backbones import LayerInfo, ModelInfo


@verb(interrupted="")
def models(
    pattern: Annotated[
        str | None,
        typer.Argument(metavar="PATTERN", help="A glob, in quotes; without one only those that need no download."),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> Answer:
    """List backbones: those whose weights are pip packages, or those whose names match a pattern.

    Ends with 1 where no name matches.

    Example: featcache models

    Example: featcache models 'timm:*convnext*'
    """
    from featcache import backbones

    found = backbones.available(pattern)
    listed = [dataclasses.asdict(model) for model in found]
    return Answer({"models": listed}, lambda: _show_models(found, pattern), 0 if found else 1)


@verb(interrupted="")
def layers(
    backbone: Annotated[str, typer.Argument(metavar="BACKBONE", help="A name that `featcache models` lists.")],
    as_json: Json = False,
    debug: Debug = False,
) -> Answer:
    """List a backbone's layers with the shape and size of one image's vector, and where `tune` can begin.

    Example: featcache layers bundled:efficientnet_lite0
    """
    from featcache import backbones
    from featcache.backbones.split import places_if_any

    network = backbones.get(backbone)
    found, cuts = network.layers(), places_if_any(network.architecture())
    listed = [dataclasses.asdict(layer) for layer in found]
    return Answer({"backbone": backbone, "layers": listed, "cuts": cuts}, lambda: _show_layers(found, cuts))


def _show_models(found: list[ModelInfo], pattern: str | None) -> None:
    for model in found:
        about = [f"{model.input_size} pixels"] if model.input_size else []
        about += [f"{model.dim:,} numbers an image"] if model.dim else []
        about += [f"{model.parameters / 1e6:.1f} M parameters"] if model.parameters else []
        about += [word for word in (model.licence, model.weights) if word and word != "download"]
        screen.say(f"{model.name}  ({', '.join(about)})" if about else model.name)
    if not found:
        screen.say(f"No backbone matches {pattern!r}. A pattern means the whole name; stars stand for any letters:")
        screen.say("  featcache models 'timm:*convnext*'")
    if pattern is None:
        screen.say("And all classification networks of torchvision and timm, which download their weights:")
        screen.say("  featcache models 'torchvision:*'")
        screen.say("  featcache models 'timm:*resnet*'")


def _show_layers(found: list[LayerInfo], cuts: list[str]) -> None:
    screen.table(
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
    screen.say("Bytes an image. :mean and :mean_std pool to a vector (mean_std: twice as long), :none keeps the map.")
    screen.say("Take several with globs: --layers 'blocks.*:mean'.")
    screen.say(
        f"`featcache tune --from-layer` can begin at: {', '.join(cuts)}."
        if cuts
        else "`featcache tune` cannot cut this network: torch.fx cannot follow its code."
    )
