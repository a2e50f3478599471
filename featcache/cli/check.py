"""``featcache check-live`` and ``doctor``: whether vectors are right, and what this machine can do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featcache.cli import output
from featcache.cli.command import Answer, Debug, Json, command
from featcache.cli.options import Device, Fit, InputSize, Precision, Runtime, Source, Space, StorePath, Weights
from featcache.core.progress import counted

if TYPE_CHECKING:
    from featcache.extraction.doctor import DoctorReport
    from featcache.extraction.recheck import CheckLiveReport


@command(interrupted="Nothing was changed.")
def check_live(
    store: StorePath,
    n: Annotated[int, typer.Option("-n", min=1, metavar="N", help="How many random images to check.")] = 200,
    source: Source = None,
    space: Space = None,
    head: Annotated[
        Path | None, typer.Option(metavar="HEAD.fch", help="Count the predictions of this head that change.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, metavar="S", help="Seed of the draw.")] = 0,
    weights: Weights = None,
    as_json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Recompute random vectors with the published transform and eager torch, and compare them with the stored ones.

    Exits with 1 if one differs too much, or none could be compared.

    Example: featcache check-live pets.fcache -n 50
    """
    from featcache import faces
    from featcache.extraction.recheck import check_live as run
    from featcache.faces.detection import Detector
    from featcache.store import FeatureStore
    from featcache.training.bundle import Bundle

    opened = FeatureStore.open(store)
    recipe = opened.space(space).recipe
    aligned = None
    if recipe.detection is not None or recipe.backbone == Detector.name:
        aligned, weights = faces.aligned_backbone(opened, space, weights=weights), None
    report = run(
        opened, n, source=source, space=space, head=None if head is None else Bundle.load(head), seed=seed,
        backbone=aligned, weights=weights, progress=True,
    )  # fmt: skip
    return Answer(report.to_dict(), lambda: _show_check(report), 0 if report.ok else 1)


@command(interrupted="")
def doctor(
    backbone: Annotated[
        str, typer.Option(metavar="B", help="The backbone to measure; `featcache models` lists them.")
    ] = "bundled:efficientnet_lite0",
    weights: Weights = None,
    device: Device = None,
    runtime: Runtime = "auto",
    precision: Precision = "float32",
    input_size: InputSize = None,
    fit: Fit = None,
    as_json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Report what this machine has, what works, and how fast it extracts.

    Example: featcache doctor
    """
    from featcache.extraction.doctor import doctor as run

    report = run(
        backbone, weights=weights, device=device, runtime=runtime, precision=precision, progress=True,
        input_size=input_size, fit=fit,
    )  # fmt: skip
    return Answer(report.to_dict(), lambda: _show_doctor(report), 1 if report.problems else 0)


def _show_check(report: CheckLiveReport) -> None:
    output.say(f"{report.compared:,} of {report.drawn:,} images compared with {report.reference}")
    for number, what in ((report.gone, "gone"), (report.changed, "changed"), (report.unusable, "unusable")):
        if number:
            output.say(f"  {number:,} {what}, not compared")
    for note in report.notes:
        output.say(f"  {note}")
    if report.cosine_least is None:
        output.say("Nothing could be compared.")
        return
    output.say(f"Cosine: least {report.cosine_least:.6f}, mean {report.cosine_mean:.6f}")
    output.say(f"Relative error: largest {report.relative_error_largest:.2e}")
    if report.flips is not None:
        output.say(f"Predictions that change: {report.flips:,}")
    output.table(
        ["worst", "layer", "cosine", "relative error"],
        [(one.uri, one.layer, f"{one.cosine:.6f}", f"{one.relative_error:.2e}") for one in report.worst],
        right=["cosine", "relative error"],
    )
    bounds = f"cosine at least {report.cosine_floor:g}, relative error at most {report.relative_error_limit:g}"
    if report.ok:
        output.say(f"All within tolerance ({bounds}).")
    else:
        output.say(f"Beyond the tolerance ({bounds}): {counted(report.failed, 'images')}.")
        output.say("These vectors were not made by the recipe that the store names. Extract into a new store.")


def _show_doctor(report: DoctorReport) -> None:
    output.say(f"featcache {report.featcache}, Python {report.python}")
    output.say(f"Processor: {report.processor or 'unknown'}, {report.cores} cores")
    output.say(f"  features: {' '.join(report.features) or 'unknown'}")
    output.say(f"  bfloat16: {'yes' if report.bfloat16 else 'no'}")
    for runtime in report.runtimes:
        state = runtime.problem or (f"on {', '.join(runtime.devices)}" if runtime.devices else "")
        output.say(f"Runtime {runtime.name}: {' '.join(filter(None, [runtime.version or 'not installed', state]))}")
    for model in report.weights:
        output.say(f"Weights of {model.name}: {model.weights}")
    for extra in report.extras:
        state = f"missing {', '.join(extra.missing)}: pip install 'featcache[{extra.name}]'" if extra.missing else ""
        output.say(f"Extra {extra.name}: {state or 'installed'}")
    for disk in report.disks:
        output.say(f"Free for the {disk.use}: {output.size(disk.free_bytes)} ({disk.folder})")
    if report.speed is not None:
        speed = report.speed
        output.say(
            f"{report.backbone}: {speed.images_per_second:.0f} images/s in {speed.runtime}, "
            f"{speed.images:,} JPEGs of 500 × 375 pixels in {output.span(speed.seconds)}"
        )
        for note in speed.notes:
            output.say(f"  {note}")
    if report.vector_bytes is not None:
        catalogue = "" if report.catalogue_bytes is None else f", {report.catalogue_bytes:,} in the catalogue"
        output.say(f"Bytes per image: {report.vector_bytes:,} for the pooled vector{catalogue}")
    for problem in report.problems:
        output.say(f"Problem: {problem}")
