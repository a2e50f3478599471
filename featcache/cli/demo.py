"""The first thing to run: 2,000 real images, two heads, three predictions.

The images are the textiles of the package ``conformal-clip-data``: a regular weave, or one with a
local or a global fault, unlike anything the backbone was trained on. The demo shows the point of the
library: the first head needs the backbone to see every image once, the second needs it not at all.

``featcache demo``: the first thing to run.
"""

from __future__ import annotations

import importlib.util
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from featcache.cli import output
from featcache.cli.command import Answer, Debug, Json, command
from featcache.core.errors import MissingExtraError
from featcache.core.outputs import HEAD, check_output
from featcache.core.progress import Progress, choose

HEADS = ("softmax", "ridge")


@dataclass(frozen=True, slots=True)
class DemoHead:
    """One head of the demo and its score on the held-out images (fractions, 95 % interval)."""

    head: str
    path: str
    held_out: int
    """How many images the score is on."""
    accuracy: float
    low: float
    high: float
    balanced_accuracy: float
    seconds: float
    """Wall time from the stored vectors to the saved head."""


@dataclass(frozen=True, slots=True)
class DemoAnswer:
    """One held-out image, its true label, and what the first head says."""

    uri: str
    truth: str
    label: str
    probability: float


@dataclass(frozen=True, slots=True)
class DemoReport:
    """What `run` did, measured."""

    source: str
    store: str
    images: int
    computed: int
    held_out: int
    extract_seconds: float
    heads: list[DemoHead]
    answers: list[DemoAnswer]
    seconds: float

    @property
    def faster(self) -> float | None:
        """How many times faster the second head was ready than if it had had to wait for the backbone too.

        ``None`` when the store had vectors from an earlier run: then the first head did not wait for
        the backbone either, and there is nothing to compare.
        """
        if self.computed < self.images:
            return None
        second = self.heads[1].seconds
        return (self.extract_seconds + second) / second

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values."""
        return {**asdict(self), "faster": self.faster}


def textile_folder() -> Path:
    """The folder of textile images that the extra ``demo`` installs, one class folder each.

    Raises:
        MissingExtraError: the package is not installed.
    """
    found = importlib.util.find_spec("conformal_clip_data")
    for place in (found.submodule_search_locations or ()) if found else ():
        folder = Path(place, "data", "textile_images", "simulated")
        if folder.is_dir():
            return folder
    raise MissingExtraError("The demo's images are not installed. They come with: pip install 'featcache[demo]'")


def run(folder: str | Path = "data/demo", *, progress: Progress | bool | None = None) -> DemoReport:
    """Extract the textile images, train and score two heads, and predict three held-out images.

    Args:
        folder: where the store and the heads are written.
        progress: as for `featcache.extract`.

    Raises:
        MissingExtraError: the images are not installed.
        UsageError: something else lies where a head is to be written.
    """
    from featcache.extraction.extract import extract

    began = time.perf_counter()
    textiles, folder = textile_folder(), Path(folder)
    store = folder / "textiles.fcache"
    for name in HEADS:
        check_output(folder / f"textiles-{name}.fch", HEAD)
    with choose(progress) as bar:
        bar.note(f"Extracting: the backbone sees the images in {textiles} once.")
        extracted = extract(textiles, store, name="textiles", progress=bar)
        heads = [_head(store, name, folder / f"textiles-{name}.fch", bar) for name in HEADS]
        answers = _answers(textiles, store, Path(heads[0].path), bar)
    return DemoReport(
        source=str(textiles),
        store=str(store),
        images=extracted.items,
        computed=extracted.computed,
        held_out=heads[0].held_out,
        extract_seconds=extracted.seconds,
        heads=heads,
        answers=answers,
        seconds=time.perf_counter() - began,
    )


def _head(store: Path, name: str, path: Path, progress: Progress) -> DemoHead:
    from featcache.training.evaluate import EvaluateReport, evaluate
    from featcache.training.train import train

    progress.note(f"Training the head {name} on the stored vectors.")
    began = time.perf_counter()
    train(store, name, progress=progress).save(path)
    seconds = time.perf_counter() - began
    score = evaluate(path, store, progress=progress)
    assert isinstance(score, EvaluateReport)  # not of several labels an image
    return DemoHead(
        head=name,
        path=str(path),
        held_out=score.n,
        accuracy=score.accuracy,
        low=score.low,
        high=score.high,
        balanced_accuracy=score.balanced_accuracy,
        seconds=seconds,
    )


def _answers(textiles: Path, store: Path, head: Path, progress: Progress) -> list[DemoAnswer]:
    """What the head says of one held-out image of each class, read from its file as a new one would be."""
    from featcache.store import FeatureStore
    from featcache.training.bundle import Bundle

    bundle = Bundle.load(head)
    held_out = [item for item in FeatureStore.open(store).items() if not bundle.overlap([item.sha256])]
    chosen = {item.label: item for item in held_out}
    found = bundle.predict([textiles / item.uri for item in chosen.values()], top=1, progress=progress)
    return [
        DemoAnswer(item.uri, str(item.label), label, float(probability or 0))
        for item, answer in zip(chosen.values(), found, strict=True)
        for label, probability in answer.labels
    ]


@command(interrupted="What was computed is kept as far as it was sealed; featcache demo goes on from there.")
def demo(
    target: Annotated[Path, typer.Option("--output", "-o", help="The folder for the store and the heads.")] = Path(
        "data/demo"
    ),
    as_json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Show the whole way on 2,000 images that pip installed: extract, train twice, evaluate, predict.

    Example: featcache demo
    """
    report = run(target, progress=True)
    return Answer(report.to_dict(), lambda: _show(report))


def _show(report: DemoReport) -> None:
    if report.computed:
        rate = f"{report.computed:,} computed in {output.span(report.extract_seconds)}"
    else:
        rate = f"all in the store already, looked up in {output.span(report.extract_seconds)}"
    output.say()
    output.say(f"{report.images:,} images of textiles in 3 classes, {report.held_out:,} of them held out")
    output.say(f"  {rate}")
    output.say()
    output.table(
        ["head", "accuracy", "95 % interval", "balanced", "trained in"],
        [
            (
                head.head,
                output.percent(head.accuracy),
                f"{output.percent(head.low)} – {output.percent(head.high)}",
                output.percent(head.balanced_accuracy),
                output.span(head.seconds),
            )
            for head in report.heads
        ],
        right=["accuracy", "95 % interval", "balanced", "trained in"],
    )
    if report.faster is None:
        output.say("Both heads were trained on stored vectors; with a new --output all is timed again.")
        output.say()
    else:
        second = report.heads[1]
        output.say(f"Second head, from the store: {output.span(second.seconds)}")
        output.say(
            f"It would have taken {output.span(report.extract_seconds + second.seconds)} with the backbone: "
            f"{report.faster:.0f} times faster"
        )
        output.say()
    output.table(
        ["held-out image", "is", "the first head says", "probability"],
        [(a.uri, a.truth, a.label, output.percent(a.probability)) for a in report.answers],
        right=["probability"],
    )
    output.say("Written:")
    output.say(f"  store  {report.store}")
    for head in report.heads:
        output.say(f"  head   {head.path}")
    output.say(f"All of it took {output.span(report.seconds)}.")
    output.say(f"Next:  {output.command('featcache', 'predict', report.heads[0].path, 'IMAGE')}")
