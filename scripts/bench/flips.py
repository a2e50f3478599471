"""Flip single bytes of a store: each flip is found by `verify`, or everything that the store answers is as before.

    python scripts/bench/flips.py FOLDER [--flips 250] [--images 200] [--seed 0]

FOLDER takes the images (some of the demo's textiles) and the stores. One byte is changed of a shard, of the
catalogue or, every fifth time, of the catalogue's backup. Then `repair` and the same `extract` as at first have to
bring all back: vectors, names, labels and splits.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np

import featcache as fc
from featcache.backbones import tiny_backbone
from featcache.cli.demo import textile_folder
from featcache.core.errors import FeatcacheError
from featcache.store import writer

sys.path.insert(0, str(Path(__file__).parent))
import recording

LAYERS = ("pooled", "body.0:mean_std")
CATALOGUE, BACKUP = "catalog.sqlite", "catalog.backup.sqlite"


def take(folder: Path, count: int) -> Path:
    """Copies of *count* textiles, spread over the classes."""
    photos = folder / "photos"
    shutil.rmtree(photos, ignore_errors=True)
    pictures = sorted(textile_folder().glob("*/*.jp*g"))
    for image in pictures[:: len(pictures) // count][:count]:
        (photos / image.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(image, photos / image.parent.name)
    return photos


def extract(photos: Path, store: Path) -> None:
    fc.extract(photos, store, backbone=tiny_backbone(), layers=LAYERS, split="0.8/0.2", progress=False)


def answers(store: Path) -> tuple[list[tuple[object, ...]], np.ndarray]:
    """All that a store tells of its items, and their vectors, (n, d)."""
    vectors, _, items = fc.open(store).arrays(layers=LAYERS)
    return [(item.source, item.uri, item.sha256, item.label, item.split, item.group) for item in items], vectors


def error_of(found: np.ndarray, right: np.ndarray) -> float:
    """The largest relative error of a vector."""
    return float((np.linalg.norm(found - right, axis=1) / np.linalg.norm(right, axis=1)).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--flips", type=int, default=250)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    photos, whole, store = take(options.folder, options.images), options.folder / "whole", options.folder / "flipped"
    shutil.rmtree(whole, ignore_errors=True)
    # Each batch becomes a shard, and so many small ones would be merged at the end of a run.
    writer.SEAL_SECONDS, writer.SEAL_BYTES = 0.0, 4096
    # A file younger than two seconds is read again by the next run.
    time.sleep(3)
    extract(photos, whole)
    items, right = answers(whole)
    assert len(items) == options.images
    assert fc.verify(whole, progress=False).ok

    began = time.monotonic()
    counts: dict[str, Counter[str]] = {}
    worst, computed = 0.0, 0
    missed: list[tuple[str, int, int]] = []
    for flip in range(options.flips):
        shutil.rmtree(store, ignore_errors=True)
        shutil.copytree(whole, store)
        shards = sorted((store / "shards").glob("*/*.h5"))
        kind = "backup" if flip % 5 == 4 else ("shard", "catalogue")[flip % 2]
        file = {"shard": chance.choice(shards), "catalogue": store / CATALOGUE, "backup": store / BACKUP}[kind]
        data = bytearray(file.read_bytes())
        place, change = chance.randrange(len(data)), chance.randrange(1, 256)
        data[place] ^= change
        file.write_bytes(data)
        count = counts.setdefault(kind, Counter())
        count["flips"] += 1
        damaged = {damage["shard"] for damage in fc.verify(store, progress=False).damaged}
        if (file.stem if kind == "shard" else file.name) in damaged:
            count["found"] += 1
        else:
            try:
                as_before, vectors = answers(store)
                harmless = as_before == items and np.array_equal(vectors, right)
            except FeatcacheError:
                harmless = False
            count["harmless" if harmless else "missed"] += 1
            if not harmless:
                missed.append((kind, place, change))
        fc.repair(store, progress=False)
        before = fc.open(store).catalogue.query("i", "SELECT count(*) FROM rows")[0][0]
        extract(photos, store)
        computed += len(LAYERS) * options.images - before
        as_before, vectors = answers(store)
        error = error_of(vectors, right) if as_before == items else float("inf")
        worst = max(worst, error)
        count["restored"] += error <= 1e-4 and fc.verify(store, progress=False).ok
        if flip % 25 == 24:
            print(f"{flip + 1} flips", file=sys.stderr)
    total = sum(counts.values(), Counter[str]())
    recording.append(
        "flips",
        {name: total[name] for name in ("flips", "found", "harmless", "missed", "restored")}
        | {
            "worst_relative_error": worst,
            "vectors_computed_again": computed,
            "missed_at": missed,
            "of": {kind: dict(count) for kind, count in counts.items()},
            "images": options.images,
            "shards": len(shards),
            "vectors": len(LAYERS) * options.images,
            "seed": options.seed,
            "seconds": round(time.monotonic() - began, 1),
        },
    )


if __name__ == "__main__":
    main()
