"""``featcache finetune``: new layers, later layers, or the whole network train."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featcache.cli import output
from featcache.cli.command import Answer, Debug, Force, Json, command
from featcache.cli.options import StorePath, Weights, network_for, selects
from featcache.cli.train import show_train
from featcache.core.errors import UsageError
from featcache.core.outputs import FIGURE, HEAD
from featcache.core.visible import visible

if TYPE_CHECKING:
    from featcache.training.activations import Activations


@command(
    interrupted="No head was written. The same command resumes after the last whole epoch.",
    writes={"target": HEAD, "curve": FIGURE},
)
@selects(split="The split to train on; train by default, if the source has splits.")
def finetune(
    store: StorePath,
    target: Annotated[Path, typer.Option("--output", "-o", metavar="HEAD.fch", help="The head to write.")],
    selection: Mapping[str, Any],
    from_layer: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="LAYER",
            help="The first layer that trains, such as blocks.5; the layers before it are frozen and cached. Without"
            " this the whole network trains.",
        ),
    ] = None,
    init: Annotated[
        str,
        typer.Option(
            metavar="pretrained|new|scratch",
            help="pretrained: layers continue from their weights; new, with --from: new hidden layers take their place"
            " (--from pooled: behind the whole network); scratch, without --from: random weights.",
        ),
    ] = "pretrained",
    arch: Annotated[
        str | None,
        typer.Option(
            metavar="B",
            help="For --init scratch: another network than that of the vectors; scratch:small_cnn for images of few"
            " pixels.",
        ),
    ] = None,
    views: Annotated[
        int | None,
        typer.Option(min=1, metavar="K", help="With --from: views of each image that are cached and trained on; 4."),
    ] = None,
    hidden: Annotated[
        str | None, typer.Option(metavar="N,N,…", help="For --init new: width of each hidden layer; 512.")
    ] = None,
    dropout: Annotated[
        float | None,
        typer.Option(
            metavar="P", help="Share of the values before the output that a step omits; 0.2 for new and scratch."
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Most passes over the images; 12, for new and scratch 60.")
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option("--lr", metavar="R", help="The highest learning rate; 3e-4, for new 1e-3, for scratch 2e-3."),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(metavar="N", min=2, help="Images per step; 32.")] = None,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Random seed.")] = 0,
    precision: Annotated[
        str | None,
        typer.Option(metavar="float32|bfloat16", help="bfloat16: products in it, where the processor or GPU has it."),
    ] = None,
    device: Annotated[str | None, typer.Option(metavar="D", help="A torch device, such as cuda.")] = None,
    curve: Annotated[
        Path | None, typer.Option("--curve", metavar="FILE.png", help="Draw loss and accuracy of each epoch.")
    ] = None,
    weights: Weights = None,
    yes: Annotated[bool, typer.Option("--yes", help="With --from: store the activations without asking.")] = False,
    force: Force = False,
    as_json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Train new layers, the later layers, or the whole network on the images of a store.

    With few images this seldom beats `train`; if it does not, the head of `train` is returned. Only --init scratch is
    not compared with it: `evaluate --against` does that.

    Example: featcache finetune pets.fcache -o tuned.fch --from blocks.6 --yes
    """
    # The imports below take seconds.
    _check_selected(store, selection, from_layer, yes, weights)
    from featcache.finetuning import checkpoint as checkpoints
    from featcache.finetuning.config import TrainingConfig
    from featcache.finetuning.finetune import VIEWS, activations_needed, check_arguments
    from featcache.finetuning.finetune import finetune as run

    check_arguments(from_layer, init, arch)
    if hidden is not None and init != "new":
        raise UsageError(f"--hidden does not go with --init {init}. Omit it, or take --from LAYER --init new.")
    if views is not None and from_layer is None:
        raise UsageError("--views goes with --from alone: without it every epoch sees another view of each image.")
    config = TrainingConfig(
        hidden=None if hidden is None else _widths(hidden),
        dropout=dropout,
        epochs=epochs,
        lr=lr,
        batch_size=batch_size,
        precision=precision,
    )
    if arch is not None and weights is not None:
        raise UsageError(f"--weights does not go with --arch {arch}, which begins with random ones. Omit one of them.")
    network = network_for(store, selection, weights)
    needed = None
    if from_layer is not None:
        views = views or VIEWS
        needed = activations_needed(store, from_layer, init=init, views=views, seed=seed, backbone=network, **selection)
        if not _confirmed(needed, yes):
            return Answer(
                {"trained": False}, lambda: output.say("Nothing was stored and nothing trained."), exit_code=1
            )
    checkpoint = target.with_name(target.name + ".checkpoint")
    bundle = run(
        store, from_layer, init=init, arch=arch, views=views or VIEWS, config=config, seed=seed, device=device,
        checkpoint=checkpoint, backbone=network, progress=True, **selection,
    )  # fmt: skip
    bundle.save(target, force=force)
    checkpoints.remove(checkpoint)
    report = {**bundle.report, "path": str(target)} | ({"activations": needed.to_dict()} if needed else {})
    if curve is not None:
        from featcache.finetuning.history import Curve, draw_learning_curve

        draw_learning_curve(Curve.from_dict(report["curve"]), curve, force=force)
        report["figure"] = str(curve)
    return Answer(report, lambda: _show(report))


def _check_selected(
    path: Path, selection: Mapping[str, Any], from_layer: str | None, yes: bool, weights: Path | None
) -> None:
    """Check what the catalogue of the store and the cache of recipes know.

    Raises:
        UnknownNameError: no such source, space or layer.
        UsageError: several sources or spaces, none chosen; or activations are to be stored without being asked for.
    """
    from featcache.backbones import for_recipe
    from featcache.backbones.layers import POOLED, check_module
    from featcache.store import FeatureStore

    store = FeatureStore.open(path)
    store.source_names(selection["source"])
    space = store.space(selection["space"])
    if from_layer in (None, POOLED) or space.recipe.detection is not None:
        return
    check_module(str(from_layer), for_recipe(space.recipe, weights=weights).names)
    if not (yes or sys.stdin.isatty() or any(name.endswith((":none", ":mean")) for name in space.layers)):
        raise UsageError(
            f"Training from {from_layer} stores the activations before it of all views of each image, and there is no "
            "terminal to ask on. Add --yes to store them; how much room they take is said first."
        )


def _widths(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--hidden is {text!r}; give the width of each layer, such as 512 or 512,256.") from None


def _show(report: dict[str, Any]) -> None:
    show_train(report, chosen=_chosen(report))
    if report["chosen"]["epoch"] == 0:
        output.say("Fine-tuning does not beat the linear probe beyond chance: this is the head of `train`.")
    if "figure" in report:
        output.say(f"Learning curve: {report['figure']}")


def _chosen(report: dict[str, Any]) -> str:
    """The epoch or the linear probe that was chosen, with the losses that it was chosen by."""
    curve = report["curve"]
    best, probe = curve["epochs"][curve["best_epoch"] - 1], curve["linear_probe"]
    output_C = report["chosen"].get("output_C")
    named = f"the linear probe{'' if output_C is None else f' (C = {output.number(output_C)})'}"
    epoch = f"epoch {best['number']} of {len(curve['epochs'])}"
    found = f"validation loss {best['tempered_loss']:.4g}"
    by = f"of {report['validation']:,} items, each at its best temperature"
    if probe is None:
        return f"{epoch} ({found} {by})"
    if probe["kept"]:
        probes = f"validation loss {probe['tempered_loss']:.4g}"
        return f"{named} ({probes}; {epoch}, the best: {best['tempered_loss']:.4g}; {by})"
    return f"{epoch} ({found}; the linear probe: {probe['tempered_loss']:.4g}; {by})"


def _confirmed(needed: Activations, yes: bool) -> bool:
    """Say how much room the activations take, and ask.

    Raises:
        UsageError: there is no terminal to ask on.
    """
    if not needed.bytes:
        return True
    text = (
        f"The activations {needed.layer} of {needed.images:,} images in {needed.views} views take "
        f"{output.size(needed.bytes)}; {output.size(needed.free)} are free."
    )
    if yes:
        output.say(text, sys.stderr)
        return True
    if not sys.stdin.isatty():
        raise UsageError(f"{text} Add --yes to store them.")
    return typer.confirm(f"{visible(text)} Store them?", err=True)
