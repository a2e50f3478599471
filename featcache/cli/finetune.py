"""``featcache multilayer``, ``tune`` and ``finetune``: how much of the network is frozen."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featcache.cli import output as screen
from featcache.cli.command import Answer, Debug, Json, verb
from featcache.cli.options import Labels, Source, Space, StorePath
from featcache.cli.train import show_train
from featcache.core.errors import UsageError

if TYPE_CHECKING:
    from featcache.finetuning.activations import Activations
    from featcache.finetuning.schedule import TrainingConfig

Output = Annotated[Path, typer.Option("--output", "-o", metavar="HEAD.fch", help="The head to write.")]
TrainSplit = Annotated[
    str | None, typer.Option(metavar="NAME", help="The split to learn from; train, where the source has splits.")
]
Seed = Annotated[int, typer.Option(metavar="N", min=0, help="Seed of all that is drawn.")]
_EPOCHS, _RATE = "Passes over the items, at most", "The highest learning rate, that of the output"
_BATCH_SIZE, _CURVE = "Items of a step; 32.", "Draw loss and accuracy of each epoch."
_PRETRAINED = "Of --init pretrained: "
Epochs = Annotated[int | None, typer.Option(metavar="N", min=1, help=f"{_EPOCHS}; 12, from scratch 60.")]
Rate = Annotated[float | None, typer.Option(metavar="R", help=f"{_RATE}; 3e-4, from scratch 2e-3.")]
BatchSize = Annotated[int | None, typer.Option(metavar="N", min=2, help=_BATCH_SIZE)]
CurvePng = Annotated[Path | None, typer.Option("--curve", metavar="FILE.png", help=_CURVE)]
TuneEpochs = Annotated[int | None, typer.Option(metavar="N", min=1, help=f"{_PRETRAINED}{_EPOCHS.lower()}; 12.")]
TuneRate = Annotated[float | None, typer.Option(metavar="R", help=f"{_PRETRAINED}{_RATE.lower()}; 3e-4.")]
TuneBatchSize = Annotated[int | None, typer.Option(metavar="N", min=2, help=_PRETRAINED + _BATCH_SIZE.lower())]
TuneCurvePng = Annotated[Path | None, typer.Option("--curve", metavar="FILE.png", help=_PRETRAINED + _CURVE.lower())]


@verb(interrupted="No head was written. Layers that were extracted stay in the store.")
def multilayer(
    store: StorePath,
    output: Output,
    cv: Annotated[
        int | None, typer.Option(min=2, metavar="K", help="Score by K-fold cross-validation, not a hold-out.")
    ] = None,
    split: TrainSplit = None,
    labels: Labels = None,
    source: Source = None,
    space: Space = None,
    seed: Seed = 0,
    as_json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Train one softmax on all blocks of the frozen network, for images unlike those it learned from.

    Blocks that are not in the store yet are extracted first.

    Example: featcache multilayer pets.fcache -o deep.fch
    """
    from featcache.finetuning.all_blocks import multilayer as run
    from featcache.training.bundle import check_target

    check_target(output)
    bundle = run(store, cv=cv, split=split, labels=labels, source=source, space=space, seed=seed, progress=True)
    bundle.save(output)
    report = {**bundle.report, "path": str(output)}
    return Answer(report, lambda: show_train(report))


@verb(interrupted="No head was written. The same command goes on after the last whole epoch.")
def tune(
    store: StorePath,
    output: Output,
    from_layer: Annotated[
        str,
        typer.Option(
            metavar="L", help="The first layer that trains, such as blocks.5; what comes before is frozen and cached."
        ),
    ],
    init: Annotated[
        str,
        typer.Option(
            metavar="pretrained|new",
            help="pretrained: the later layers go on from their weights; new: hidden layers of one's own in their"
            " place (with --from-layer pooled: behind the whole network).",
        ),
    ] = "pretrained",
    views: Annotated[
        int, typer.Option(min=1, metavar="K", help="Versions of each image that are cached and learned from.")
    ] = 4,
    hidden: Annotated[
        str | None, typer.Option(metavar="N,N,…", help="Of --init new: how wide each hidden layer is; 512.")
    ] = None,
    dropout: Annotated[
        float | None,
        typer.Option(metavar="P", help="Of --init new: the share of hidden values that a step does without; 0.2."),
    ] = None,
    epochs: TuneEpochs = None,
    rate: TuneRate = None,
    batch_size: TuneBatchSize = None,
    split: TrainSplit = None,
    labels: Labels = None,
    source: Source = None,
    space: Space = None,
    seed: Seed = 0,
    curve: TuneCurvePng = None,
    yes: Annotated[bool, typer.Option("--yes", help="Store the activations without asking.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Train the later layers; the first ones stay frozen, and what they give is cached.

    Example: featcache tune pets.fcache -o tuned.fch --from-layer blocks.6 --yes
    """
    from featcache.finetuning import checkpoint as checkpoints
    from featcache.finetuning.tune import INITS, SCHEDULE, activations_needed
    from featcache.finetuning.tune import tune as run
    from featcache.heads import with_hidden_layers
    from featcache.training.bundle import check_target

    new = {"--hidden": hidden, "--dropout": dropout}
    old = {"--epochs": epochs, "--rate": rate, "--batch-size": batch_size, "--curve": curve}
    _refuse_others(init, INITS, {"pretrained": new, "new": old})
    head = with_hidden_layers("mlp", hidden, dropout).make()
    check_target(output)
    _check_curve(curve)
    needed = activations_needed(
        store, from_layer, init=init, views=views, seed=seed, labels=labels, source=source, space=space
    )
    if not _confirmed(needed, yes):
        return Answer({"trained": False}, lambda: screen.say("Nothing was stored and nothing trained."), exit_code=1)
    checkpoint = output.with_name(output.name + ".checkpoint")
    bundle = run(
        store, from_layer, init=init, views=views, hidden=head.hidden, dropout=head.dropout,
        schedule=None if init == "new" else _schedule(SCHEDULE, epochs, rate, batch_size), split=split, labels=labels,
        source=source, space=space, seed=seed, checkpoint=None if init == "new" else checkpoint, progress=True,
    )  # fmt: skip
    bundle.save(output)
    if init == "pretrained":
        checkpoints.remove(checkpoint)
    report = {**bundle.report, "path": str(output), "activations": needed.to_dict()}
    return _answer(report, curve)


@verb(interrupted="No head was written. The same command goes on after the last whole epoch.")
def finetune(
    store: StorePath,
    output: Output,
    init: Annotated[
        str,
        typer.Option(
            metavar="pretrained|scratch",
            help="pretrained: the network's own weights are where it begins; scratch: random ones.",
        ),
    ] = "pretrained",
    arch: Annotated[
        str | None,
        typer.Option(
            metavar="B",
            help="Of --init scratch: another network than that of the vectors; scratch:small_cnn for images of few"
            " pixels.",
        ),
    ] = None,
    epochs: Epochs = None,
    rate: Rate = None,
    batch_size: BatchSize = None,
    split: TrainSplit = None,
    labels: Labels = None,
    source: Source = None,
    space: Space = None,
    seed: Seed = 0,
    precision: Annotated[
        str,
        typer.Option(metavar="float32|bfloat16", help="bfloat16: products in it, where the processor or GPU has it."),
    ] = "float32",
    device: Annotated[str | None, typer.Option(metavar="D", help="A torch device, such as cuda.")] = None,
    curve: CurvePng = None,
    as_json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Train the whole network from the images of a store: for much data, and much time.

    Example: featcache finetune pets.fcache -o whole.fch --curve whole.png
    """
    from featcache.finetuning import checkpoint as checkpoints
    from featcache.finetuning.finetune import INITS, PRETRAINED, SCRATCH
    from featcache.finetuning.finetune import finetune as run
    from featcache.training.bundle import check_target

    _refuse_others(init, INITS, {"pretrained": {"--arch": arch}})
    check_target(output)
    _check_curve(curve)
    checkpoint = output.with_name(output.name + ".checkpoint")
    bundle = run(
        store, init=init, arch=arch,
        schedule=_schedule(PRETRAINED if init == "pretrained" else SCRATCH, epochs, rate, batch_size), split=split,
        labels=labels, source=source, space=space, seed=seed, precision=precision, device=device,
        checkpoint=checkpoint, progress=True,
    )  # fmt: skip
    bundle.save(output)
    checkpoints.remove(checkpoint)
    return _answer({**bundle.report, "path": str(output)}, curve)


def _refuse_others(init: str, known: tuple[str, ...], foreign: Mapping[str, Mapping[str, object]]) -> None:
    """Refuse options that belong to another way to begin."""
    if init not in known:
        return  # the library names those there are
    for option, value in foreign.get(init, {}).items():
        if value is not None:
            others = " or ".join(f"--init {other}" for other in known if other != init)
            raise UsageError(f"{option} does not go with --init {init}. Leave it away, or take {others}.")


def _schedule(usual: TrainingConfig, epochs: int | None, rate: float | None, batch_size: int | None) -> TrainingConfig:
    given = {"epochs": epochs, "rate": rate, "batch_size": batch_size}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    return replace(usual, **changes)


def _confirmed(needed: Activations, yes: bool) -> bool:
    """Say how much room the activations take, and ask.

    Raises:
        UsageError: nobody is there to be asked.
    """
    if not needed.bytes:
        return True
    text = (
        f"The activations {needed.layer} of {needed.images:,} images in {needed.views} views take "
        f"{screen.size(needed.bytes)}; {screen.size(needed.free)} are free."
    )
    if yes:
        print(text, file=sys.stderr)
        return True
    if not sys.stdin.isatty():
        raise UsageError(f"{text} Say --yes to store them.")
    return typer.confirm(f"{text} Store them?", err=True)


def _check_curve(path: Path | None) -> None:
    if path is not None:
        from featcache.metrics.plots import check_png

        check_png(path)


def _answer(report: dict[str, Any], curve: Path | None) -> Answer:
    if curve is not None:
        from featcache.finetuning.history import Curve, draw_learning_curve

        draw_learning_curve(Curve.from_dict(report["curve"]), curve)
        report["figure"] = str(curve)

    def show() -> None:
        show_train(report)
        if report["chosen"].get("epoch") == 0:
            screen.say("No training was better beyond chance: this is the head of `train` on the frozen network.")
        if curve is not None:
            screen.say(f"Learning curve: {curve}")

    return Answer(report, show)
