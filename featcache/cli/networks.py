"""``featcache models`` and ``layers``: which networks there are, and where vectors can be taken."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import typer

from featcache.cli import screen
from featcache.cli.conduct import Answer, Debug, Json, verb


@verb(interrupted="")
def models(as_json: Json = False, debug: Debug = False) -> Answer:
    """List the backbones that can be used here.

    Example: featcache models
    """
    from featcache import backbones

    found = [dataclasses.asdict(model) for model in backbones.available()]
    return Answer({"models": found}, lambda: _show_models(found))


@verb(interrupted="")
def layers(
    backbone: Annotated[str, typer.Argument(metavar="BACKBONE", help="A name that `featcache models` lists.")],
    as_json: Json = False,
    debug: Debug = False,
) -> Answer:
    """List a backbone's layers with the shape and size of one image's vector.

    Example: featcache layers bundled:efficientnet_lite0
    """
    from featcache import backbones

    found = [dataclasses.asdict(layer) for layer in backbones.get(backbone).layers()]
    return Answer({"backbone": backbone, "layers": found}, lambda: _show_layers(found))


def _show_models(found: list[dict[str, Any]]) -> None:
    screen.table(list(found[0]) if found else [], [tuple(_cell(v) for v in model.values()) for model in found])


def _show_layers(found: list[dict[str, Any]]) -> None:
    screen.table(list(found[0]) if found else [], [tuple(_cell(v) for v in layer.values()) for layer in found])


def _cell(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " × ".join(map(str, value))
    return "–" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
