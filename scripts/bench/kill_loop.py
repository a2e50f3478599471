"""Kill `extract` again and again at random moments, and look at what is left.

    python scripts/bench/kill_loop.py FOLDER [--kills 300] [--images 2000] [--seed 0]

FOLDER takes the images that are drawn and the stores. Every process seals after each batch of eight, so
that a kill meets every step of the commit protocol often. When a store is complete, the next begins.
After each kill the store is verified and every row that it holds is compared with an uninterrupted run's.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

import featcache as fc
from featcache.store.folder import has_catalogue

sys.path.insert(0, str(Path(__file__).parent))
from typing import TYPE_CHECKING

import recording

if TYPE_CHECKING:
    from multiprocessing.sharedctypes import Synchronized

BATCH = 8
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch", "featcache.extraction", "featcache.backbones", "kill_loop"])


def draw(folder: Path, count: int) -> Path:
    """*count* images of noise, each of another content."""
    photos = folder / "photos"
    if len(list(photos.glob("*/*.png"))) != count:
        shutil.rmtree(photos, ignore_errors=True)
        rng = np.random.default_rng(0)
        for i in range(count):
            place = photos / "ab"[i % 2]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(place / f"{i:05}.png")
    return photos


def extract(photos: Path, store: Path, computed: Synchronized[int]) -> None:
    """One extraction with a small network that counts the images it was given."""
    import torch
    from torch import nn

    from featcache.core.recipe import StandardTransform
    from featcache.store import writer

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.body = nn.Sequential(nn.Conv2d(3, 16, 3, 2), nn.ReLU(), nn.Conv2d(16, 32, 3, 2), nn.ReLU())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found = self.body(x).mean(dim=(2, 3))
            # A trial pass, which finds out the shapes, is one of zeros; no image of noise is of one color.
            computed.value += len(x) if x.min() < x.max() else 0
            return found

    torch.set_num_threads(1)
    writer.SEAL_SECONDS = 0.0
    half = (0.5, 0.5, 0.5)
    backbone = fc.Backbone.from_module(
        Counting(), transform=StandardTransform((32,), (32, 32), "bilinear", half, half), name="counting", version="1"
    )
    backbone.resolve_layers(["pooled"])
    computed.value = 0
    fc.extract(photos, store, backbone=backbone, config=fc.ExtractionConfig(batch_size=BATCH), progress=False)


def rows(store: Path) -> dict[bytes, np.ndarray]:
    """All vectors of a store by content."""
    if not has_catalogue(store):
        return {}
    opened = fc.open(store)
    if not opened.spaces or not opened.spaces[0].layers:
        return {}
    column = opened.column("pooled").column
    hashes = [h for (h,) in opened.catalogue.query("h", "SELECT sha256 FROM rows WHERE column_id = ?", (column,))]
    return dict(zip(hashes, opened.gather(hashes, ["pooled"])[0], strict=True))


def start(photos: Path, store: Path) -> tuple[multiprocessing.process.BaseProcess, Synchronized[int]]:
    computed = CONTEXT.Value("q", -1, lock=False)
    process = CONTEXT.Process(target=extract, args=(photos, store, computed))
    process.start()
    return process, computed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    photos = draw(options.folder, options.images)
    whole = options.folder / "whole.fcache"
    shutil.rmtree(whole, ignore_errors=True)
    process, _ = start(photos, whole)
    process.join()
    expected = rows(whole)
    assert len(expected) == options.images
    for left_over in options.folder.glob("killed*.fcache"):
        shutil.rmtree(left_over)

    began = time.monotonic()
    kills = stores = lost = wrong = recomputed = most = damaged = 0
    worst = 0.0
    held: dict[bytes, np.ndarray] = {}
    store = options.folder / f"killed{stores}.fcache"
    while kills < options.kills:
        process, computed = start(photos, store)
        while computed.value < 0 and process.is_alive():
            time.sleep(0.001)
        # Short lives for the first steps of a run, long ones for the last.
        time.sleep(chance.uniform(0.0, chance.choice((0.2, 1.0, 5.0))))
        before = process.is_alive()
        process.kill()
        process.join()
        if before and process.exitcode == -signal.SIGKILL:
            kills += 1
        elif process.exitcode != 0:
            raise SystemExit(f"extract ended with {process.exitcode}")
        # The next writer does for the dead one what is left to do.
        if has_catalogue(store):
            fc.compact(store, progress=False) if chance.random() < 0.1 else fc.repair(store, progress=False)
            damaged += not fc.verify(store, progress=False).ok
        now = rows(store)
        lost += len(held.keys() - now.keys())
        for sha256, vector in now.items():
            error = float(np.linalg.norm(vector - expected[sha256]) / np.linalg.norm(expected[sha256]))
            worst = max(worst, error)
            wrong += error > 1e-4
        again = max(computed.value, 0) - (len(now) - len(held))
        recomputed += again
        most = max(most, again)
        held = now
        if kills % 25 == 0:
            print(f"{kills} kills, {stores} stores complete, {len(held)} rows in this one", file=sys.stderr)
        if len(held) == options.images:
            stores += 1
            shutil.rmtree(store)
            store, held = options.folder / f"killed{stores}.fcache", {}
    recording.append(
        "kill_loop",
        {
            "kills": kills,
            "images": options.images,
            "rows_in_a_shard": BATCH,
            "stores_completed": stores,
            "rows_lost": lost,
            "rows_wrong": wrong,
            "worst_relative_error": worst,
            "stores_damaged": damaged,
            "images_recomputed": recomputed,
            "most_recomputed_after_one_kill": most,
            "seed": options.seed,
            "seconds": round(time.monotonic() - began, 1),
        },
    )


if __name__ == "__main__":
    main()
