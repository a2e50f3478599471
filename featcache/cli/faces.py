"""``featcache faces …``: face verification, from images of people to decisions on pairs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featcache.cli import output
from featcache.cli.command import Answer, Debug, Force, Json, command
from featcache.cli.options import (
    BatchSize,
    Device,
    Fit,
    ImageTimeout,
    InputSize,
    LabelsOfSource,
    Layers,
    Moved,
    SourceName,
    SplitOfSource,
    Strict,
    Weights,
    Workers,
    layer_list,
    network_of,
    selects,
)
from featcache.core.errors import UsageError
from featcache.core.outputs import FIGURE, HEAD
from featcache.core.progress import counted

if TYPE_CHECKING:
    from featcache.faces import FacesReport, Match, PairsReport

app = typer.Typer(
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Face verification, or that of anything else with an identity: extract, train, verify, evaluate.",
)

FacesStore = Annotated[Path, typer.Argument(metavar="STORE", help="A store whose labels are identities.")]
MatchingHead = Annotated[
    Path | None, typer.Option("--head", metavar="HEAD.fch", help="A head that `featcache faces train` saved.")
]


@app.command(context_settings={"allow_extra_args": True})
@command(interrupted="What was sealed is kept; the same command continues from there.")
def extract(
    context: typer.Context,
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="A folder of images with a subfolder per person, or a CSV file.")
    ],
    store: Annotated[Path, typer.Option("--output", "-o", metavar="STORE", help="The store; created if missing.")],
    backbone: Annotated[
        str, typer.Option(metavar="B", help="Computes the vector of an aligned face.")
    ] = "dlib:face_resnet",
    layers: Layers = None,
    centre_box: Annotated[
        bool,
        typer.Option(
            "--centre-box",
            help="If no face is found, use the center of the image; such images are counted and left out of training."
            " Otherwise they go into quarantine.",
        ),
    ] = False,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Use only N images, spread over the people.")
    ] = None,
    input_size: InputSize = None,
    fit: Fit = None,
    device: Device = None,
    labels: LabelsOfSource = None,
    split: SplitOfSource = None,
    name: SourceName = None,
    weights: Weights = None,
    batch_size: BatchSize = None,
    workers: Workers = None,
    moved: Moved = False,
    strict: Strict = False,
    image_timeout: ImageTimeout = 30.0,
    as_json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Detect the face in each image, align it, and store its vectors.

    Running it again computes only what is new; another backbone uses the same detections.

    Example: featcache faces extract people -o people.fcache
    """
    from featcache import backbones
    from featcache.extraction.run import ExtractionConfig
    from featcache.faces import extract as run

    report = run(
        source,
        store,
        backbone=backbones.get(backbone, weights, device).with_input(input_size, fit),
        layers=layer_list(context, layers) or ("pooled", "mirrored"),
        centre_box=centre_box,
        labels=labels,
        split=split,
        name=name,
        limit=limit,
        config=ExtractionConfig(batch_size, workers, None, moved, strict, image_timeout),
        progress=True,
    )
    return Answer(report.to_dict(), lambda: _show_extract(report))


@app.command(context_settings={"allow_extra_args": True})
@command(interrupted="No head was written.", writes={"target": HEAD})
@selects(split="The split to train on; train by default, if the source has splits.")
def train(
    context: typer.Context,
    store: FacesStore,
    target: Annotated[Path, typer.Option("--output", "-o", metavar="HEAD.fch", help="The head to write.")],
    selection: Mapping[str, Any],
    projection: Annotated[
        str,
        typer.Option(
            metavar="none|lda|siamese",
            help="none: calibrate the distances of the vectors as they are, right for a face network;"
            " siamese: a small projection trained on pairs, for networks trained for something else; lda: the"
            " linear discriminant that siamese starts from.",
        ),
    ] = "none",
    far: Annotated[float, typer.Option(metavar="RATE", help="The false accept rate to set the threshold for.")] = 1e-2,
    layers: Layers = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of the hold-out, the folds and the training.")] = 0,
    force: Force = False,
    as_json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Calibrate the distance between two vectors: a threshold, and probabilities.

    The threshold is set on some people and tested on others. Intervals are over people.

    Example: featcache faces train people.fcache -o people.fch --far 1e-2
    """
    from featcache.faces import train as run

    bundle = run(
        store,
        projection=projection,
        far=far,
        layers=layer_list(context, layers) or None,
        seed=seed,
        progress=True,
        **selection,
    )
    bundle.save(target, force=force)
    report = {**bundle.report, "path": str(target)}
    return Answer(report, lambda: _show_train(report))


@app.command()
@command(interrupted="Nothing was changed.")
def verify(
    a: Annotated[Path, typer.Argument(metavar="A", help="An image.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another image.")],
    head: MatchingHead = None,
    prior: Annotated[
        float, typer.Option(metavar="P", help="The probability of a match before looking at the images.")
    ] = 0.5,
    weights: Weights = None,
    as_json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Do two images show the same person?

    Without a calibrated head only the distance is known and nothing is decided. With --json the decision is "same",
    "different" or "uncalibrated".

    Example: featcache faces verify a.jpg b.jpg --head people.fch
    """
    from featcache.faces import verify as run
    from featcache.training.bundle import Bundle

    if weights is not None and head is None:
        raise UsageError("--weights goes with --head HEAD.fch.")
    bundle = None if head is None else Bundle.load(head)
    network = None if bundle is None else network_of(bundle, weights)
    match = run(a, b, head=bundle, prior=prior, backbone=network)
    data = match.to_dict()
    data["decision"] = {True: "same", False: "different", None: "uncalibrated"}[match.decision]
    return Answer(data, lambda: _show_verify(match))


@app.command()
@command(interrupted="Nothing was changed.", writes={"roc": FIGURE})
@selects()
def evaluate(
    store: FacesStore,
    selection: Mapping[str, Any],
    pairs: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A list of pairs in LFW's format; otherwise pairs are drawn."),
    ] = None,
    head: MatchingHead = None,
    roc: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Write the ROC curve to this image.")] = None,
    layer: Annotated[str | None, typer.Option(metavar="L", help="The stored layer to compare, without a head.")] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of the drawn pairs.")] = 0,
    force: Force = False,
    as_json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Verification accuracy and error rates on pairs, from the stored vectors.

    The threshold of each fold is chosen on the others. Pairs with an image that has no vector count as errors. A list
    with people or images that the head was trained on is an error; drawn pairs have none.

    Example: featcache faces evaluate people.fcache --pairs pairs.txt --roc roc.png
    """
    from featcache.faces import evaluate as run

    report = run(store, pairs, head=head, layer=layer, seed=seed, **selection)
    if roc is not None:
        report.draw(roc, force=force)
    data = report.to_dict() | ({"roc": str(roc)} if roc is not None else {})
    return Answer(data, lambda: _show_evaluate(report, roc))


def _show_extract(report: FacesReport) -> None:
    output.say(counted(report.items, "images"))
    pace = f" at {report.images_per_second:.1f} images/s" if report.computed else ""
    output.say(f"  {report.computed:,} computed{pace}, {report.reused:,} already stored, or copies")
    output.say(f"  face found in {report.first_pass:,}, after enlarging in {report.second_pass:,} more")
    if report.several_faces:
        output.say(f"  several faces in {report.several_faces:,}; the largest near the center was taken")
    if report.centre_box:
        output.say(f"  no face in {report.centre_box:,}; the center was taken")
    output.say_quarantine(report.quarantine, report.store)
    output.say(f"  {output.span(report.seconds)} in all, with {report.backbone}")
    output.say(f"Store: {report.store}")
    head = Path(report.store).absolute().with_suffix(".fch").name
    output.say(f"Next:  {output.command('featcache', 'faces', 'train', report.store, '-o', head)}")


def _show_train(report: dict[str, Any]) -> None:
    score = report["score"]
    kind = "cosine similarity, no projection" if report["head"] == "none" else f"projection {report['head']}"
    output.say(f"Head: {kind}, trained on {report['n']:,} images of {report['people']:,} people")
    left_out = {name.replace("_", " "): n for name, n in report["left_out"].items() if n}
    if left_out:
        output.say("  left out: " + ", ".join(f"{n:,} {name}" for name, n in left_out.items()))
    output.say(f"Tested on {score['protocol']}, {score['pairs']:,} pairs:")
    without = "" if report["head"] == "none" else f" (without the projection {output.percent(score['eer_without'])})"
    output.say(f"  equal error rate {output.percent(score['eer'])}{without}, AUC {score['auc']:.4f}")
    far, tar = score["far"], score["tar"]
    output.say(
        f"  distances up to {report['threshold']:.3f} are accepted, set for FAR {score['far_target']:g}:"
        f" FAR {far['value']:.3g} ({far['low']:.2g} – {far['high']:.2g}), TAR {output.percent(tar['value'])}"
        f" ({output.percent(tar['low'])} – {output.percent(tar['high'])}); intervals over people"
    )
    output.say(f"  Cllr {score['cllr']:.3f} bit (minimum with these scores {score['minimal_cllr']:.3f})")
    output.say(f"Took {output.took()}")
    output.say(f"Saved: {report['path']}")
    output.say(f"Next:  {output.command('featcache', 'faces', 'verify', 'A', 'B', '--head', report['path'])}")


def _percent(probability: float) -> str:
    """A probability in percent, never rounded to 0 or 100."""
    if 0.0001 <= probability <= 0.9999:
        return f"{100 * probability:.2f} %"
    return "less than 0.01 %" if probability < 0.5 else "more than 99.99 %"


def _show_verify(match: Match) -> None:
    output.say(f"Distance: {match.distance:.3f}")
    if match.decision is None:
        output.say("Uncalibrated: without a head there is no threshold, so nothing is decided.")
        output.say("  Train one with `featcache faces train STORE -o HEAD.fch`, and give --head HEAD.fch.")
    else:
        words = "the same person" if match.decision else "different people"
        output.say(
            f"Decision: {words} (distances up to {match.threshold:.3f} are accepted, set for a false accept rate of "
            f"{match.far_target:g})"
        )
        output.say(
            f"Probability of the same person: {_percent(match.probability or 0.0)}, given a prior of "
            f"{output.percent(match.prior or 0.0)} (--prior; the decision does not depend on it)"
        )
    if match.second_pass:
        output.say(f"In {match.second_pass} of 2 images the face was found only after enlarging.")
    if match.several_faces:
        output.say(f"{match.several_faces} of 2 images have several faces; the largest near the center was taken.")


def _show_evaluate(report: PairsReport, roc: Path | None) -> None:
    v = report.verification
    output.say(f"{counted(v.pairs, 'pairs')} ({report.protocol}), {v.failed:,} of them could not be scored")
    for name, one in {report.layer: v, **report.others}.items():
        output.say(
            f"{name}: accuracy {output.percent(one.accuracy)} ± {output.percent(one.standard_error)} (standard error),"
            f" AUC {one.auc:.4f}, EER {output.percent(one.eer)}"
        )
        for far, point in one.tar_at_far.items():
            output.say(
                f"  TAR at FAR {far:g}: {output.percent(point.tar.value)}"
                f" ({output.percent(point.tar.low)} – {output.percent(point.tar.high)} if pairs were independent)"
            )
    at = report.calibrated
    if at is not None:
        output.say(
            f"The head's threshold, set for FAR {at.far_target:g}: on these pairs FAR {at.point.far.value:.2g}"
            f" ({at.point.far.low:.2g} – {at.point.far.high:.2g}), TAR {output.percent(at.point.tar.value)}"
            f" ({output.percent(at.point.tar.low)} – {output.percent(at.point.tar.high)}); intervals over people"
        )
        output.say(f"Cllr {at.cllr:.3f} bit (minimum with these scores {at.minimal_cllr:.3f})")
    found = {name.replace("_", " "): n for name, n in report.found.items() if n}
    if found:
        output.say("Images: " + ", ".join(f"{n:,} {name}" for name, n in found.items()))
    if roc is not None:
        output.say(f"Figure: {roc}")
