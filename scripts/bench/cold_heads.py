"""A head in a fresh process: from the import of featcache to a saved score, and the memory that it takes.

    python scripts/bench/cold_heads.py FOLDER [--head ridge] [--rows N] [--classes K]

FOLDER is where the store of synthetic vectors is made (5 GB for a million rows of 1280 float32); a store that
is there already is used again. The figures are those of the fastest of three runs, from a warm page cache.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

WIDTH, CHUNK, SEED = 1280, 4096, 0


def make(store: Path, rows: int, classes: int) -> None:
    """Vectors as a network's last layer gives them: not negative, of some hundred directions, classes that overlap."""
    import numpy as np

    from featcache.core.recipe import PixelPath, Recipe, StandardTransform
    from featcache.store import StoreWriter
    from featcache.store.sources import Record, SourceRecords

    rng = np.random.default_rng(SEED)
    directions = rng.normal(size=(128, WIDTH)).astype(np.float32)
    centres = rng.normal(size=(classes, 128)).astype(np.float32)
    transform = StandardTransform((256,), (224, 224), "bicubic", (0.5,) * 3, (0.5,) * 3)
    with StoreWriter(store) as writer:
        space = writer.space(Recipe("bench:synthetic", "0" * 64, PixelPath(transform)))
        space.declare("pooled", "0", 0, "float32")
        records = SourceRecords(writer.catalogue, "synthetic", "/nowhere")
        for start in range(0, rows, CHUNK):
            n = min(CHUNK, rows - start)
            keys = [hashlib.sha256(b"%d" % i).digest() for i in range(start, start + n)]
            numbers = rng.integers(0, classes, n)
            latent = 0.35 * centres[numbers] + rng.standard_normal((n, 128), dtype=np.float32)
            noise = 4 * rng.standard_normal((n, WIDTH), dtype=np.float32)
            space.append(keys, {("pooled", "0"): np.maximum(latent @ directions + noise, 0)})
            records.save(
                [
                    Record(f"{i:08}.jpg", key, f"class {number:03}", None, None, 1, 2, 3, 4, 5)
                    for i, key, number in zip(range(start, start + n), keys, numbers, strict=True)
                ]
            )


def measure(store: Path, head: str) -> dict[str, object]:
    """In a process of its own, which has imported nothing yet."""
    peak, over = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not over.wait(0.02):
            line = next(s for s in Path("/proc/self/status").read_text().splitlines() if s.startswith("RssAnon"))
            peak = max(peak, int(line.split()[1]))

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    import featcache as fc

    bundle = fc.train(store, head, progress=False)
    bundle.save(store.with_suffix(f".{head}.fch"))
    seconds = time.perf_counter() - began
    over.set()
    watcher.join()
    report = bundle.report
    return {
        "seconds": seconds,
        "fit_seconds": report["fit_seconds"],
        "cpu_seconds": time.process_time(),
        "peak_anonymous_mib": peak / 1024,
        "accuracy": report["score"]["accuracy"],
        "log_loss": report["log_loss"]["value"],
        "chosen": report["chosen"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--head", default="ridge")
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    store = arguments.folder / f"synthetic-{arguments.rows}-{arguments.classes}.fcache"
    if arguments.one:
        print(json.dumps(measure(store, arguments.head)))
        return
    from recording import append

    if not store.exists():
        make(store, arguments.rows, arguments.classes)
    found = []
    for _ in range(arguments.runs):
        command = [sys.executable, __file__, *sys.argv[1:], "--one"]
        began = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found.append(json.loads(done.stdout) | {"process_seconds": time.perf_counter() - began})
    best = min(found, key=lambda cell: cell["process_seconds"])
    append("cold_heads", {"head": arguments.head, "rows": arguments.rows, "classes": arguments.classes} | best)


if __name__ == "__main__":
    main()
