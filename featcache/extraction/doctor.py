"""`doctor`: what this machine has, what works, and how fast it extracts, decoding and forward pass together."""

from __future__ import annotations

import hashlib
import io
import platform
import re
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from featcache.backbones import ModelInfo, available, compute, get
from featcache.backbones.input_size import InputOptions, InputSize
from featcache.backbones.layers import POOLED
from featcache.backbones.recipe_cache import cache_folder
from featcache.backbones.runtimes import openvino, passes_for
from featcache.core.arguments import checked
from featcache.core.errors import FeatcacheError
from featcache.core.html import HtmlTable
from featcache.core.names import VIEW_0
from featcache.core.progress import Progress, choose
from featcache.extraction.extract import DEFAULT_BACKBONE
from featcache.store.sources import Record, SourceRecords
from featcache.store.writer import StoreWriter

if TYPE_CHECKING:
    from featcache.backbones import Backbone, Layer
    from featcache.backbones.runtimes.passes import Passes
    from featcache.core.recipe import Recipe


FEATURES = (
    "avx2", "fma", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8", "neon",
    "asimd", "bf16", "sve",
)  # fmt: skip
"""Processor features that runtimes use, by their names in Linux."""

WIDTH, HEIGHT = 500, 375
_JPEGS = 16
_SEED = 0
_SECONDS = 5.0
_RECORDS = 2000


@dataclass(frozen=True, slots=True)
class Runtime:
    """A runtime: its version, its devices, and why it does not work, if it does not."""

    name: str
    version: str | None
    devices: list[str]
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Extra:
    """An extra of featcache: its packages, and those that are not installed."""

    name: str
    packages: list[str]
    missing: list[str]


@dataclass(frozen=True, slots=True)
class Disk:
    """A folder that featcache writes to, existing or not, and the free bytes of its disk."""

    use: str
    folder: str
    free_bytes: int


@dataclass(frozen=True, slots=True)
class Speed:
    """The measured speed of a backbone.

    Attributes:
        runtime: as `extract` would choose it.
        images_per_second: decoded and run through the network, once it is ready.
        images: counted images.
        seconds: that these took.
        preparing_seconds: to load the network, and to convert it if that was not done before.
        notes: on the choice of the runtime.
    """

    runtime: str
    images_per_second: float
    images: int
    seconds: float
    preparing_seconds: float
    notes: list[str]


@dataclass
class DoctorReport(HtmlTable):
    """What `doctor` found.

    Attributes:
        featcache, python: versions.
        processor: its model, if known.
        cores: that this process may use.
        features: those of `FEATURES` that the processor has.
        bfloat16: whether the processor computes in bfloat16.
        runtimes: torch and OpenVINO.
        weights: backbones whose weights are pip packages; their ``weights`` says whether they are installed.
        extras: see `Extra`.
        disks: the cache folder and the working folder.
        backbone: the chosen one.
        speed: of extracting ``pooled``; None if the backbone does not run.
        vector_bytes: of one image's ``pooled`` vector in float32; None likewise.
        catalogue_bytes: approximately, of one image in the catalogue; its backup takes as much again.
        problems: what should work and does not, in sentences.
        seconds: from the call to the return.
    """

    featcache: str
    python: str
    processor: str
    cores: int
    features: list[str]
    bfloat16: bool
    runtimes: list[Runtime]
    weights: list[ModelInfo]
    extras: list[Extra]
    disks: list[Disk]
    backbone: str
    speed: Speed | None = None
    vector_bytes: int | None = None
    catalogue_bytes: int | None = None
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values."""
        return asdict(self)


@checked
def doctor(
    backbone: str = DEFAULT_BACKBONE,
    *,
    weights: str | Path | None = None,
    device: str | None = None,
    runtime: str = "auto",
    precision: str = "float32",
    progress: Progress | bool | None = None,
    **pixels: Unpack[InputOptions],
) -> DoctorReport:
    """Report what this machine has and what works, and measure the speed of extraction.

    Args:
        backbone: full name of the one to measure, for about five seconds, on generated JPEGs of 500 × 375 pixels.
        weights, device, runtime, precision: as for ``featcache.backbones.get``.
        progress, **pixels: as for `featcache.extract`.

    Raises:
        UnknownNameError: no such backbone, fit, device, runtime or precision.
        UsageError: no such file of weights, or this machine lacks the device, runtime or precision. All else that is
            missing or broken is in the report's ``problems``.

    Example:
        >>> report = fc.doctor()
        >>> report.runtimes[0].name
        'torch'
    """
    began = time.monotonic()
    size, network = InputSize(**pixels), get(backbone, weights, device, runtime=runtime, precision=precision)
    network = network.with_input(size.input_size, size.fit)
    with choose(progress) as bar:
        bar.start("check", None, "parts")
        runtimes = [_torch(), _openvino()]
        report = DoctorReport(
            metadata.version("featcache"), platform.python_version(), compute.identity().rpartition(" ")[0],
            compute.cores(), [name for name in FEATURES if name in compute.features()], compute.has_bfloat16(),
            runtimes, available(), _extras(),
            [_disk("cache", cache_folder()), _disk("working folder", Path.cwd())], backbone,
        )  # fmt: skip
        report.problems += [f"{runtime.name}: {runtime.problem}" for runtime in runtimes if runtime.problem]
        bar.finish()
        bar.start(f"measure {backbone}", None, "images")
        try:
            (pooled,) = network.resolve_layers([POOLED])
            report.vector_bytes = 4 * int(pooled.shape[0])
            report.speed = measure(network, pooled, seconds=_SECONDS, progress=bar)
            report.catalogue_bytes = _catalogue_bytes(network.recipe)
        except (FeatcacheError, OSError) as error:
            report.problems.append(f"{backbone}: {error}")
    report.seconds = time.monotonic() - began
    return report


def measure(backbone: Backbone, layer: Layer, *, seconds: float, progress: Progress) -> Speed:
    """Decode and compute for a while, with all cores that this process may use.

    Args:
        backbone: the network.
        layer: to compute.
        seconds: how long; batches begun by then are finished, and count.
        progress: is told of images.

    Raises:
        FeatcacheError: the network cannot be loaded, or the runtime asked for cannot run it.
    """
    files, cores = jpegs(), compute.cores()
    began = time.monotonic()
    passes = passes_for(backbone, concurrency=cores, cores=cores)
    passes.ready(_decoded(backbone, files, 0, passes.batch_size), [layer])
    passes.forward(_decoded(backbone, files, 0, passes.batch_size), [layer])
    start = time.monotonic()
    images = _both_in_threads if passes.parallel else _decoding_in_threads
    done = images(backbone, passes, layer, files, cores, start + seconds, progress)
    took = time.monotonic() - start
    return Speed(passes.runtime, done / took, done, took, start - began, list(passes.notes))


def jpegs() -> list[bytes]:
    """JPEGs of WIDTH × HEIGHT pixels at quality 90 that take about as long to decode as photographs."""
    from PIL import Image

    rng, made = np.random.default_rng(_SEED), []
    for _ in range(_JPEGS):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((WIDTH, HEIGHT))
        noise = rng.normal(0, 12, (HEIGHT, WIDTH, 1))
        out = io.BytesIO()
        Image.fromarray(np.clip(np.asarray(coarse) + noise, 0, 255).astype(np.uint8)).save(out, "JPEG", quality=90)
        made.append(out.getvalue())
    return made


def _both_in_threads(
    backbone: Backbone, passes: Passes, layer: Layer, files: Sequence[bytes], cores: int, end: float, progress: Progress
) -> int:
    """Each thread decodes and computes one batch after another."""

    def work(thread: int) -> int:
        done = 0
        while time.monotonic() < end:
            passes.forward(_decoded(backbone, files, thread + done, passes.batch_size), [layer])
            done += passes.batch_size
            progress.advance(passes.batch_size)
        return done

    with ThreadPoolExecutor(cores) as pool:
        return sum(pool.map(work, range(cores)))


def _decoding_in_threads(
    backbone: Backbone, passes: Passes, layer: Layer, files: Sequence[bytes], cores: int, end: float, progress: Progress
) -> int:
    """The runtime has its own threads; meanwhile others decode the next batches."""
    done = 0
    with ThreadPoolExecutor(cores) as pool:
        coming = deque(pool.submit(_decoded, backbone, files, n, passes.batch_size) for n in range(cores))
        while time.monotonic() < end:
            batch = coming.popleft().result()
            coming.append(pool.submit(_decoded, backbone, files, done, passes.batch_size))
            passes.forward(batch, [layer])
            done += passes.batch_size
            progress.advance(passes.batch_size)
    return done


def _decoded(backbone: Backbone, files: Sequence[bytes], first: int, n: int) -> np.ndarray:
    return np.stack([backbone.prepare(backbone.decode(files[(first + i) % len(files)])) for i in range(n)])


def _torch() -> Runtime:
    version = _version("torch")
    try:
        import torch

        gpus = [f"cuda:{n} {torch.cuda.get_device_name(n)}" for n in range(torch.cuda.device_count())]
        return Runtime("torch", version, ["cpu", *gpus])
    except Exception as error:  # a library that does not fit this machine can fail in any way
        return Runtime("torch", version, [], f"it cannot be imported: {error}")


def _openvino() -> Runtime:
    if not compute.has_openvino():
        return Runtime("openvino", None, [])  # it has no wheels for some platforms
    try:
        devices = [str(device) for device in openvino.core().available_devices]
    except Exception as error:
        return Runtime("openvino", _version("openvino"), [], f"it cannot be started: {error}")
    problem = None if "CPU" in devices else f"it finds no CPU device, only {devices}"
    return Runtime("openvino", _version("openvino"), devices, problem)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _extras() -> list[Extra]:
    """The extras for users, by the metadata of the installed featcache."""
    asked: dict[str, list[str]] = {}
    for line in metadata.requires("featcache") or ():
        package, extra = re.match(r"[\w.-]+", line), re.search(r"extra == ['\"](\w+)['\"]", line)
        if package and extra and extra[1] not in ("all", "test"):
            asked.setdefault(extra[1], []).append(package[0])
    return [
        Extra(name, packages, [package for package in packages if _version(package) is None])
        for name, packages in sorted(asked.items())
    ]


def _disk(use: str, folder: Path) -> Disk:
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return Disk(use, str(folder), shutil.disk_usage(there).free)


def _catalogue_bytes(recipe: Recipe) -> int:
    """Bytes that an image with one vector takes in a catalogue, measured on one with `_RECORDS` images."""
    hashes = [hashlib.sha256(str(number).encode()).digest() for number in range(_RECORDS)]
    now = time.time_ns()
    records = [
        Record(f"some-class/IMG_{n:08}.jpg", sha256, "some-class", "train", None, 100_000, now, now, n, now)
        for n, sha256 in enumerate(hashes)
    ]
    with tempfile.TemporaryDirectory(prefix="featcache-") as folder:
        catalogue = Path(folder, "catalog.sqlite")
        with StoreWriter(Path(folder)) as writer:
            space = writer.space(recipe)
            space.declare(POOLED, VIEW_0, 0)
        empty = catalogue.stat().st_size
        with StoreWriter(Path(folder)) as writer:
            SourceRecords(writer.catalogue, "photos", "/photos").save(records)
            space = writer.space(recipe)
            space.declare(POOLED, VIEW_0, 0)
            space.append(hashes, {(POOLED, VIEW_0): np.zeros((_RECORDS, 1), np.float32)})
        return (catalogue.stat().st_size - empty) // _RECORDS
