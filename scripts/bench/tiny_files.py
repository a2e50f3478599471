"""Extraction over very many tiny images: what grows with their number, and whether it grows faster.

    python scripts/bench/tiny_files.py FOLDER [--images 50000 200000]

FOLDER takes the images and the stores. The network is so small that all else is what is measured.
Each number of images is measured in a process of its own: listing them, the first extraction, a second
one that finds nothing to do, and the anonymous memory at a quarter of the way and at the end.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

import featcache as fc

sys.path.insert(0, str(Path(__file__).parent))
import recording

A_FOLDER = 1000


def make(photos: Path, count: int) -> float:
    """*count* JPEGs of 32 × 32 pixels, each with bytes of its own after the image."""
    began = time.monotonic()
    rng = np.random.default_rng(0)
    seeds = []
    for _ in range(100):
        data = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(data, "JPEG", quality=60)
        seeds.append(data.getvalue())
    for i in range(count):
        if i % A_FOLDER == 0:
            (photos / f"class{i // A_FOLDER:04}").mkdir(parents=True)
        path = photos / f"class{i // A_FOLDER:04}" / f"{i:07}.jpg"
        path.write_bytes(seeds[i % len(seeds)] + i.to_bytes(4, "big"))
    return time.monotonic() - began


def anonymous_mib() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("this system does not tell the anonymous memory of a process")


class Watch:
    """Notes the memory on the way."""

    def __init__(self) -> None:
        self.total = self.done = 0
        self.at: dict[int, float] = {}

    def start(self, what: str, total: int | None, unit: str) -> None:
        self.total, self.done = total or 0, 0

    def advance(self, n: int = 1) -> None:
        self.done += n
        quarter = 4 * self.done // max(self.total, 1)
        if quarter not in self.at and self.done >= 5000:
            self.at[quarter] = anonymous_mib()

    def note(self, text: str) -> None:
        print(text, file=sys.stderr)

    def finish(self) -> None:
        pass


def measure(photos: Path, store: Path) -> dict[str, object]:
    """What this process is for: one extraction, timed."""
    import torch
    from torch import nn

    from featcache.core.recipe import StandardTransform
    from featcache.images.sources import open_source

    began = time.monotonic()
    listed = len(open_source(photos).entries())
    listing = time.monotonic() - began

    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 32, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(1))
    half = (0.5, 0.5, 0.5)
    transform = StandardTransform((32,), (32, 32), "bilinear", half, half)
    backbone = fc.Backbone.from_module(module, transform=transform, name="small", version="1")
    watch = Watch()
    began, worked = time.monotonic(), time.process_time()
    report = fc.extract(photos, store, backbone=backbone, config=fc.ExtractionConfig(batch_size=64), progress=watch)
    return {
        "listed": listed,
        "listing_seconds": round(listing, 2),
        "computed": report.computed,
        "seconds": round(time.monotonic() - began, 2),
        # What the machine does besides counts for less here.
        "cpu_seconds": round(time.process_time() - worked, 2),
        "anonymous_mib": {f"{quarter}/4": round(mib, 1) for quarter, mib in watch.at.items()},
        "catalogue_bytes": (store / "catalog.sqlite").stat().st_size,
        "shards": len(list((store / "shards").glob("*/*.h5"))),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, nargs="+", default=[50_000, 200_000])
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.folder, options.measure)))
        return
    for count in options.images:
        photos, store = options.folder / f"photos{count}", options.folder / f"tiny{count}.fcache"
        for old in (photos, store):
            shutil.rmtree(old, ignore_errors=True)
        making = make(photos, count)
        # A file younger than two seconds is read again by the next run.
        time.sleep(3)
        runs = []
        for _ in ("first", "second"):
            words = [sys.executable, __file__, str(photos), "--measure", str(store)]
            done = subprocess.run(words, stdout=subprocess.PIPE, check=True, env=os.environ)
            runs.append(json.loads(done.stdout))
        first, second = runs
        assert (first["computed"], second["computed"]) == (count, 0)
        recording.append(
            "tiny_files",
            {
                "images": count,
                "making_seconds": round(making, 1),
                "listing_seconds": first["listing_seconds"],
                "first_seconds": first["seconds"],
                "images_per_second": round(count / first["seconds"], 1),
                "first_cpu_milliseconds_per_image": round(1000 * first["cpu_seconds"] / count, 3),
                "second_seconds": second["seconds"],
                "second_cpu_milliseconds_per_image": round(1000 * second["cpu_seconds"] / count, 3),
                "second_images_per_second": round(count / second["seconds"]),
                "anonymous_mib_on_the_way": first["anonymous_mib"],
                "catalogue_bytes_per_image": round(first["catalogue_bytes"] / count, 1),
                "shards": first["shards"],
            },
        )
        shutil.rmtree(photos)


if __name__ == "__main__":
    main()
