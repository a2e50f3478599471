"""How much memory `featcache predict` holds, over the number of images.

    python scripts/bench/predict_memory.py FOLDER [--counts 10000 100000] [--ways csv json both screen]

FOLDER takes the store and the tables. A store that lists so many images, with vectors of 1280 float16 that are drawn,
is asked about itself, so that the network's own memory and time stay out of it. Each way of answering (``--csv FILE``,
``--json``, both, the screen) is a process of its own, whose anonymous memory (RssAnon) is read ten times a second;
``curve`` has the largest of each tenth of the run.
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

sys.path.insert(0, str(Path(__file__).parent))
import recording
from extract_memory import anonymous

import featcache as fc
from featcache.store import StoreWriter
from featcache.store.sources import Record, SourceRecords

WIDTH, CHUNK, CLASSES = 1280, 4096, 10
WAYS = {"csv": ["--csv", "t.csv"], "json": ["--json"], "both": ["--csv", "t.csv", "--json"], "screen": []}


def make(folder: Path, count: int) -> None:
    """A store of *count* images, in ``many.fcache``, and a head on some of them, in ``many.fch``."""
    recipe = fc.backbones.get("bundled:efficientnet_lite0").recipe
    rng = np.random.default_rng(0)
    means = rng.standard_normal((CLASSES, WIDTH))
    with StoreWriter(folder / "many.fcache") as writer:
        space = writer.space(recipe)
        space.declare("pooled", "0", 0, "float16")
        records = SourceRecords(writer.catalogue, "many", str(folder / "images"))
        for start in range(0, count, CHUNK):
            places = range(start, min(count, start + CHUNK))
            keys = [hashlib.sha256(b"%d" % i).digest() for i in places]
            labels = np.arange(start, start + len(keys)) % CLASSES
            vectors = means[labels] + rng.standard_normal((len(keys), WIDTH), dtype=np.float32)
            space.append(keys, {("pooled", "0"): vectors.astype(np.float16)})
            rows = zip(places, keys, labels, strict=True)
            records.save(
                [
                    Record(f"{i:07}.jpg", key, f"class {label}", "train" if i < 1000 else "rest", None, 1, 2, 3, 4, 5)
                    for i, key, label in rows
                ]
            )
        space.seal()
    fc.train(folder / "many.fcache", "centroid", split="train", progress=False).save(folder / "many.fch", force=True)


def measure(folder: Path, way: str) -> dict[str, object]:
    words = [sys.executable, "-m", "featcache", "predict", "many.fch", "many.fcache", *WAYS[way]]
    curve: list[float] = []
    began = time.monotonic()
    with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
        child = subprocess.Popen(words, cwd=folder, stdout=out, stderr=err)
        while child.poll() is None:
            curve.append(anonymous(child.pid))
            time.sleep(0.1)
    assert child.returncode == 0, (folder / "err").read_text()
    told = {}
    if "--json" in words:
        with (folder / "out").open() as out:
            told = {"answers": len(json.load(out)["predictions"])}
    tenth = max(1, len(curve) // 10)
    return {
        "way": way,
        "anonymous_mib_largest": round(max(curve), 1),
        "curve": [round(max(curve[i : i + tenth]), 1) for i in range(0, len(curve), tenth)],
        "seconds": round(time.monotonic() - began, 1),
        **told,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--counts", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    options = parser.parse_args()
    for count in options.counts:
        folder = options.folder / f"predict-{count}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        make(folder, count)
        for way in options.ways:
            recording.append("predict_memory", {"images": count, **measure(folder, way)})
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
