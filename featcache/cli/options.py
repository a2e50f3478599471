"""Options that several commands share."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from featcache.cli.command import ADVANCED
from featcache.core.errors import BundleError, UsageError

if TYPE_CHECKING:
    from featcache.backbones import Backbone
    from featcache.core.recipe import Recipe
    from featcache.training.bundle import Bundle

T = TypeVar("T")
_LAYERS = (
    "Layers, with the pooling after a colon (mean, mean_std, none); globs such as 'blocks.*:mean' in quotes. Several"
    " may follow one --layers."
)
Layers = Annotated[list[str] | None, typer.Option("--layers", metavar="L[:pool] ...", help=_LAYERS)]
LayersOrBlocks = Annotated[
    list[str] | None,
    typer.Option(
        "--layers",
        metavar="L[:pool] ...",
        help=f"{_LAYERS} all-blocks: every block with mean_std, and pooled; what is missing is extracted.",
    ),
]
_SELECTION = "Selection"
Split = Annotated[str | None, typer.Option(metavar="NAME", help="Only this split.", rich_help_panel=_SELECTION)]
Labels = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="A CSV file (path,label) that corrects the stored labels for this once; an empty label removes one.",
        rich_help_panel=_SELECTION,
    ),
]
LabelsOnly = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="A CSV file (path,label) whose labels alone count; other images have none.",
        rich_help_panel=_SELECTION,
    ),
]
Source = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="The source, if the store holds several.", rich_help_panel=_SELECTION),
]
Sources = Annotated[
    list[str] | None,
    typer.Option(
        "--source",
        metavar="NAME",
        help="The source, if the store holds several; give it several times to take sources together.",
        rich_help_panel=_SELECTION,
    ),
]
Space = Annotated[
    str | None,
    typer.Option(
        metavar="SPACE",
        help="The space (start of its fingerprint), if the store holds several.",
        rich_help_panel=_SELECTION,
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option(
        "--weights", metavar="FILE", help="The network's weights: .safetensors or .pth.", rich_help_panel=ADVANCED
    ),
]
WeightsOfBlocks = Annotated[
    Path | None,
    typer.Option(
        "--weights",
        metavar="FILE",
        help="For --layers all-blocks: the weights of the store's network, .safetensors or .pth.",
        rich_help_panel=ADVANCED,
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
PrecisionGiven = Annotated[
    str | None,
    typer.Option(
        "--precision", metavar="float32|bfloat16", help="bfloat16 is faster where the processor or GPU has it."
    ),
]
RuntimeGiven = Annotated[
    str | None,
    typer.Option(
        "--runtime",
        metavar="auto|torch|openvino",
        help="auto: the fastest one that agrees with torch.",
        rich_help_panel=ADVANCED,
    ),
]
LabelsOfSource = Annotated[
    str | None,
    typer.Option(metavar="folder|FILE|none", help="Labels: folder names, a CSV file (path,label), or none."),
]
SplitOfSource = Annotated[
    str | None,
    typer.Option(
        metavar="folder|FILE|FRACTIONS",
        help="Split: folders train, val, test; a CSV file (path,split); or fractions, 0.8/0.2.",
    ),
]
SourceName = Annotated[str | None, typer.Option(metavar="NAME", help="The source's name; default: the folder's.")]
BatchSize = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Images per forward pass.", rich_help_panel=ADVANCED)
]
Workers = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Threads; default: one per core.", rich_help_panel=ADVANCED)
]
InputSize = Annotated[
    int | None,
    typer.Option(
        "--input-size",
        min=1,
        metavar="N",
        help="Pixels of the network's input, N × N. More take longer and are often better; default: as published.",
    ),
]
Fit = Annotated[
    str | None,
    typer.Option(
        metavar="crop|whole",
        help="whole: the image resized to the input; crop: its center. Default: whole with --input-size, else as "
        "published, mostly crop.",
    ),
]
Moved = Annotated[
    bool, typer.Option("--moved", help="The source of this name has moved here.", rich_help_panel=ADVANCED)
]
Strict = Annotated[bool, typer.Option("--strict", help="Fail if an image cannot be used.", rich_help_panel=ADVANCED)]
ImageTimeout = Annotated[
    float,
    typer.Option(
        metavar="SECONDS", help="An image that takes longer to read is quarantined.", rich_help_panel=ADVANCED
    ),
]
StorePath = Annotated[Path, typer.Argument(metavar="STORE", help="A store that `featcache extract` made.")]
HeadPath = Annotated[Path, typer.Argument(metavar="HEAD.fch", help="A head that `featcache train` saved.")]


def selects(*names: str, split: str | None = None) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """Give a command the options ``--split``, ``--labels``, ``--labels-only``, ``--source`` and ``--space``.

    The command gets their values as one mapping, its parameter ``selection``.

    Args:
        names: only these options, for example ``"source", "space"``.
        split: help of ``--split``.
    """
    options: dict[str, Any] = {
        "split": Split,
        "labels": Labels,
        "labels_only": LabelsOnly,
        "source": Sources,
        "space": Space,
    }
    options = {name: options[name] for name in names or options}
    if split is not None:
        options["split"] = Annotated[str | None, typer.Option(metavar="NAME", help=split, rich_help_panel=_SELECTION)]

    def decorate(function: Callable[..., T]) -> Callable[..., T]:
        @functools.wraps(function)
        def command(**given: Any) -> T:
            selection = {name: given.pop(name) for name in options}
            return function(selection=selection | {"source": selected(selection["source"])}, **given)

        # Typer reads the options from the signature.
        taken = dict(inspect.signature(function, eval_str=True).parameters)
        kind = taken.pop("selection").KEYWORD_ONLY
        parameters = [parameter.replace(kind=kind) for parameter in taken.values()]
        parameters += [inspect.Parameter(name, kind, default=None, annotation=a) for name, a in options.items()]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # functions take any attribute
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return command

    return decorate


def network_of(of: Recipe | Bundle, weights: Path | None) -> Backbone | None:
    """The network of a space or a head with the weights in the file that ``--weights`` names; None without it.

    Raises:
        RecipeMismatchError: the file has other weights; the message names both digests.
        UsageError: there is no such file, or the head needs none.
        WeightsError: the file cannot be read, or does not fit the network.
    """
    from featcache import backbones
    from featcache.training.bundle import Bundle

    if weights is None:
        return None
    recipe = of.recipe if isinstance(of, Bundle) else of
    if recipe is None:
        raise UsageError("The head was trained on vectors of unknown origin and has no network. Omit --weights.")
    if isinstance(of, Bundle) and of.weights is not None:
        raise UsageError("The head carries the weights of the whole network that it was trained with. Omit --weights.")
    return backbones.for_recipe(recipe, weights=weights)


def network_for(store: Path, selection: Mapping[str, Any], weights: Path | None) -> Backbone | None:
    """`network_of` the space that is selected in a store."""
    from featcache.store import FeatureStore

    return None if weights is None else network_of(FeatureStore.open(store).space(selection["space"]).recipe, weights)


def backbone_of(store: Path) -> str:
    """The name of the backbone that ``--weights`` means without ``--backbone``: that of the store, else the default."""
    from featcache.core.errors import NotAStoreError
    from featcache.extraction.extract import DEFAULT_BACKBONE
    from featcache.store import FeatureStore

    try:
        names = {space.recipe.backbone for space in FeatureStore.open(store).spaces}
    except NotAStoreError:
        return DEFAULT_BACKBONE
    return names.pop() if len(names) == 1 else DEFAULT_BACKBONE


def selected(sources: Sequence[str] | None) -> str | tuple[str, ...] | None:
    """The sources that ``--source`` named: none, one, or several."""
    return None if not sources else sources[0] if len(sources) == 1 else tuple(sources)


def repeated(given: Mapping[str, Any]) -> list[str]:
    """These options as they stand on a command line, to be repeated in another."""
    words: list[str] = []
    for name, value in given.items():
        for one in value if isinstance(value, tuple) else () if value is None else (value,):
            words += [f"--{name.replace('_', '-')}", str(one)]
    return words


def check_savable(heads: Sequence[Any]) -> None:
    """Check that these heads can be saved, before any of them is trained.

    Raises:
        UsageError: one cannot; the message names what is supported.
        UsageError, UnknownNameError: one is no head, as of `resolve_head`.
    """
    from featcache.heads import HEADS, resolve_head
    from featcache.heads.serialize import check_exportable

    for head in heads:
        if isinstance(head, str) and head not in HEADS:
            try:
                check_exportable(resolve_head(head).make())
            except BundleError as error:
                raise UsageError(f"{error} In Python `featcache.train` scores such a head without saving it.") from None


def layer_list(context: typer.Context, layers: Sequence[str] | None) -> list[str]:
    """The layers given, with those that followed the first without repeating ``--layers``.

    Raises:
        UsageError: there are further arguments without ``--layers``, or names of tar files.
    """
    tars = [word for word in context.args if word.lower().endswith(".tar")]
    if tars:  # from a pattern that the shell expanded
        raise UsageError(
            f"Unexpected argument {tars[0]!r}: `{context.command_path}` takes one source. Give several tar files as a "
            "pattern in quotes: 'shards/train-*.tar'."
        )
    if context.args and not layers:
        raise UsageError(
            f"Unexpected arguments of `{context.command_path}`: {' '.join(map(repr, context.args))}. A name with "
            "spaces needs quotes."
        )
    return [*(layers or ()), *context.args]
