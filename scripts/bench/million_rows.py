"""A million rows through the real append path: how fast they are written, opened and read, and with what memory.

    python scripts/bench/million_rows.py FOLDER [--rows N]

FOLDER is where the store is made (2.6 GB for a million rows of 1280 float16); it is removed afterwards.
Reading is measured in a process of its own, from a warm page cache.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from recording import append

from featcache.core.recipe import PixelPath, Recipe, StandardTransform
from featcache.store import FeatureStore, StoreWriter

WIDTH, CHUNK, SEED = 1280, 4096, 0


def write(store: Path, rows: int) -> dict[str, float]:
    transform = StandardTransform((256,), (224, 224), "bicubic", (0.5,) * 3, (0.5,) * 3)
    recipe = Recipe("bench:synthetic", "0" * 64, PixelPath(transform))
    block = np.random.default_rng(SEED).standard_normal((CHUNK, WIDTH), dtype=np.float32).astype(np.float16)
    appending = 0.0
    began = time.perf_counter()
    with StoreWriter(store) as writer:
        space = writer.space(recipe)
        space.declare("pooled", "0", 0, "float16")
        for start in range(0, rows, CHUNK):
            n = min(CHUNK, rows - start)
            keys = [hashlib.sha256(b"%d" % i).digest() for i in range(start, start + n)]
            part = block[:n].copy()
            part[:, 0] = np.arange(start, start + n) % 2048
            before = time.perf_counter()
            space.append(keys, {("pooled", "0"): part})
            appending += time.perf_counter() - before
    return {"write_seconds": time.perf_counter() - began, "append_seconds": appending}


def anonymous_mib() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024
    return float("nan")


def read(store: Path) -> dict[str, float]:
    """Figures of one process that opens the store and reads it."""
    before = anonymous_mib()
    began = time.perf_counter()
    vectors = FeatureStore.open(store).vectors()
    opened = time.perf_counter() - began
    rows = len(vectors)
    anonymous = []
    began = time.perf_counter()
    for start in range(0, rows, CHUNK):
        vectors[start : start + CHUNK]
        if start % (CHUNK * 32) == 0:
            anonymous.append(anonymous_mib())
    sequential = time.perf_counter() - began
    at = np.random.default_rng(1).integers(0, rows, 10_000)
    vectors[at]
    times = []
    for round_ in range(5):
        at = np.random.default_rng(2 + round_).integers(0, rows, 10_000)
        began = time.perf_counter()
        got = vectors[at]
        times.append(time.perf_counter() - began)
    np.testing.assert_array_equal(got[:, 0], at % 2048)
    return {
        "rows": rows,
        "open_seconds": opened,
        "sequential_gb_per_second": rows * WIDTH * 2 / sequential / 1e9,
        "random_10000_seconds": sorted(times)[2],
        "anonymous_mib_before": before,
        "anonymous_mib_first": anonymous[0],
        "anonymous_mib_last": anonymous[-1],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--read", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    store = options.folder / "million.fcache"
    if options.read:
        print(json.dumps(read(store)))
        return
    try:
        figures = write(store, options.rows)
        arguments = [sys.executable, __file__, str(options.folder), "--read"]
        rounds = [json.loads(subprocess.run(arguments, check=True, capture_output=True).stdout) for _ in range(3)]
        middle = {name: sorted(r[name] for r in rounds)[1] for name in rounds[0]}
        append("million_rows", middle | figures | {"width": WIDTH, "dtype": "float16", "seed": SEED})
    finally:
        shutil.rmtree(store, ignore_errors=True)


if __name__ == "__main__":
    main()
