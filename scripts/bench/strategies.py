"""How much to freeze: every strategy, on three data sets, with few and with many images of each class.

    python scripts/bench/strategies.py FOLDER [--data ...] [--per-class 10 40 0] [--strategies ...] [--seeds 0 1 2]

FOLDER takes the stores. Data: the textiles of conformal-clip-data (unlike the photographs that Lite0 has learned from),
``trashnet-480`` (from FEATCACHE_DATA; like them) and scikit-learn's digits, enlarged to 32 × 32. A fifth of each class
is the test set, the same for every cell; of the others so many of each class are learned from (0: all), drawn by the
seed. A cell is appended to results/strategies.json when it is done, with the right and wrong answers of the test items
in order, so that two strategies can be compared in pairs; cells that are there are skipped. ``--most-seconds`` leaves
out cells that would take longer by the rate of the same strategy with fewer images.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import sys
import time
from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

import featcache as fc

sys.path.insert(0, str(Path(__file__).parent))
import recording

FROM_LAYER = "blocks.6"


def textiles(folder: Path) -> Path:
    found = find_spec("conformal_clip_data")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("pip install conformal-clip-data")
    return Path(found.submodule_search_locations[0], "data", "textile_images", "simulated")


def trashnet(folder: Path) -> Path:
    return Path(os.environ.get("FEATCACHE_DATA", "."), "trashnet-480")


def digits(folder: Path) -> Path:
    from PIL import Image
    from sklearn.datasets import load_digits

    made = folder / "digits"
    if not made.is_dir():
        pixels, labels = load_digits(return_X_y=True)
        for i, (row, label) in enumerate(zip(pixels, labels, strict=True)):
            path = made / str(label) / f"{i:04}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            small = Image.fromarray((row.reshape(8, 8) * 15.9).astype(np.uint8))
            small.resize((32, 32), Image.Resampling.BICUBIC).save(path)
        time.sleep(3)
    return made


DATA = {"trashnet-480": trashnet, "textiles": textiles, "digits": digits}


def store_of(data: str, folder: Path) -> Path:
    store = folder / f"{data}.fcache"
    fc.extract(DATA[data](folder), store, name=data, layers=["pooled"])
    return store


def split(data: str, store: Path, folder: Path, per_class: int, seed: int) -> int:
    """Give the store's items their splits; returns how many are learned from."""
    members: dict[str, list[str]] = defaultdict(list)
    for item in fc.open(store).items():
        members[str(item.label)].append(item.uri)

    def ranked(uris: list[str], words: str) -> list[str]:
        return sorted(uris, key=lambda uri: hashlib.sha256(f"{words}:{uri}".encode()).digest())

    rows, learned = [], 0
    for uris in members.values():
        order = ranked(uris, "test")
        test, others = order[: len(order) // 5], ranked(order[len(order) // 5 :], str(seed))
        chosen = others[: per_class or len(others)]
        learned += len(chosen)
        rows += [(uri, "test") for uri in test] + [(uri, "train") for uri in chosen]
    path = folder / f"{data}-split.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("path", "split"), *rows])
    fc.extract(DATA[data](folder), store, name=data, layers=["pooled"], split=path, progress=False)
    return learned


def run(strategy: str, data: str, store: Path, seed: int) -> fc.Bundle:
    if strategy in ("knn", "softmax"):
        return fc.train(store, strategy, layers="pooled", views="first", seed=seed)
    if strategy == "all-blocks":
        return fc.train(store, layers="all-blocks", seed=seed)
    if strategy == "partial-new":
        return fc.finetune(store, FROM_LAYER, init="new", seed=seed)
    if strategy == "partial":
        return fc.finetune(store, FROM_LAYER, seed=seed)
    if strategy == "finetune":
        return fc.finetune(store, seed=seed)
    return fc.finetune(store, init="scratch", arch="scratch:small_cnn", seed=seed)


STRATEGIES = ("knn", "softmax", "all-blocks", "partial-new", "partial", "scratch", "finetune")


def answers(bundle: fc.Bundle, store: Path, photos: Path) -> str:
    """Right (1) or wrong (0) for each test item, in the order of URIs."""
    opened = fc.open(store)
    items = opened.items(split="test")
    if bundle.weights is None:
        X, y, items = opened.arrays(split="test", layers=[use.name for use in bundle.layers])
        said = bundle.predict_vectors(X)
        labels = [str(label) for label in y]
    else:
        found = bundle.predict([photos / item.uri for item in items], top=1)
        said = np.array([prediction.labels[0][0] for prediction in found])
        labels = [str(item.label) for item in items]
    order = np.argsort([item.uri for item in items])
    return "".join(str(int(said[i] == labels[i])) for i in order)


def cells() -> list[dict[str, Any]]:
    path = recording.RESULTS / "strategies.json"
    return json.loads(path.read_text()) if path.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA))
    parser.add_argument("--per-class", nargs="+", type=int, default=[10, 40, 0])
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=list(STRATEGIES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--most-seconds", type=float, default=3600)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    stores = {data: store_of(data, options.folder) for data in options.data}
    for strategy in options.strategies:
        for per_class in options.per_class:
            for seed in options.seeds:
                for data, store in stores.items():
                    wanted = {"data": data, "per_class": per_class, "strategy": strategy, "seed": seed}
                    if any(all(cell.get(key) == value for key, value in wanted.items()) for cell in cells()):
                        continue
                    learned = split(data, store, options.folder, per_class, seed)
                    rates = [
                        cell["seconds"] / cell["learned"]
                        for cell in cells()
                        if (cell["data"], cell["strategy"]) == (data, strategy)
                    ]
                    if rates and min(rates) * learned > options.most_seconds:
                        print(f"left out: {wanted}", file=sys.stderr)
                        continue
                    began = time.monotonic()
                    bundle = run(strategy, data, store, seed)
                    seconds = time.monotonic() - began
                    right = answers(bundle, store, DATA[data](options.folder))
                    report = bundle.report
                    recording.append(
                        "strategies",
                        wanted
                        | {
                            "learned": learned,
                            "tested": len(right),
                            "accuracy": right.count("1") / len(right),
                            "log_loss": report["log_loss"]["value"],
                            "seconds": round(seconds, 1),
                            "fit_seconds": round(report["fit_seconds"], 2),
                            "curve": report.get("curve"),
                            "right": right,
                            "load": round(os.getloadavg()[0], 1),
                        },
                    )


if __name__ == "__main__":
    main()
