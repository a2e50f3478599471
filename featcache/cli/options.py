"""Options that several commands share, so that they are spelt and explained once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from featcache.core.errors import UsageError

ADVANCED = "Advanced"
"""The panel of ``--help`` for options that few people need."""

Layers = Annotated[
    list[str] | None,
    typer.Option(
        "--layers",
        metavar="L[:pool] ...",
        help="Layers, with the pooling after a colon (mean, mean_std, none); globs such as"
        " 'blocks.*:mean' in quotes. Several may follow one --layers.",
    ),
]
Split = Annotated[str | None, typer.Option(metavar="NAME", help="Use only the items of this split.")]
Source = Annotated[str | None, typer.Option(metavar="NAME", help="The source, where the store holds several.")]
Space = Annotated[
    str | None,
    typer.Option(metavar="SPACE", help="The space (start of its fingerprint), where there are several."),
]
Labels = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="A CSV file (path,label) to use instead of the store's labels."),
]
Weights = Annotated[
    Path | None,
    typer.Option(
        "--weights", metavar="FILE", help="The network's weights: .safetensors or .pth.", rich_help_panel=ADVANCED
    ),
]
Device = Annotated[str | None, typer.Option("--device", metavar="D", help="Where the network runs: cpu, cuda, cuda:1.")]
Runtime = Annotated[
    str,
    typer.Option(
        "--runtime",
        metavar="auto|torch|openvino",
        help="auto: the fastest one that agrees with torch.",
        rich_help_panel=ADVANCED,
    ),
]
Precision = Annotated[
    str,
    typer.Option(
        "--precision", metavar="float32|bfloat16", help="bfloat16 is faster where the processor or GPU has it."
    ),
]
StorePath = Annotated[Path, typer.Argument(metavar="STORE", help="A store that `featcache extract` made.")]
HeadPath = Annotated[Path, typer.Argument(metavar="HEAD.fch", help="A head that `featcache train` saved.")]


def layer_list(context: typer.Context, layers: Sequence[str] | None) -> list[str]:
    """The layers that were named, with those that followed the first without a ``--layers`` of their own.

    Raises:
        UsageError: words are left over although no ``--layers`` was given, or are names of tar files.
    """
    tars = [word for word in context.args if word.lower().endswith(".tar")]
    if tars:  # no layer, but what the shell made of a pattern
        raise UsageError(
            f"What is {tars[0]!r} for? `{context.command_path}` takes one source. Several tar files are one pattern, "
            "in quotes so that the shell leaves it as it is: 'shards/train-*.tar'."
        )
    if context.args and not layers:
        raise UsageError(
            f"What is {' '.join(map(repr, context.args))} for? "
            f"`{context.command_path}` has all its arguments already. A name with spaces needs quotes."
        )
    return [*(layers or ()), *context.args]
