"""Is what `advise` recommends as good as the best strategy? On the nine problems of strategies.py.

    python scripts/bench/advise.py FOLDER [--data ...] [--per-class 10 40 0] [--budget 180]

FOLDER takes the stores, one a problem: the items to learn from (as many of each class as strategies.py learns from with
seed 0) and the test set, with ``pooled`` alone. What is recommended is trained and answers the test items; a cell is
appended to results/advise.json, and with all images a figure beside it. ``strategies_report.py`` compares the answers
with those of all strategies.
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import time
from pathlib import Path
from typing import Any

import recording
import strategies

import featcache as fc
from featcache.finetuning.advise import draw_advice
from featcache.finetuning.advise.choose import ALL_BLOCKS, FROM, SCRATCH, kind_of


def problem(data: str, per_class: int, folder: Path) -> Path:
    """A store of one problem."""
    whole = strategies.store_of(data, folder / "whole")
    strategies.split(data, whole, folder / "whole", per_class, seed=0)
    photos = strategies.DATA[data](folder / "whole")
    place = folder / f"{data}-{per_class}"
    items = [item for item in fc.open(whole).items() if item.split]
    for item in items:
        (place / item.uri).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(photos / item.uri, place / item.uri)
    with (place / "items.csv").open("w", newline="") as file:
        rows = [(item.uri, item.label, item.split) for item in items]
        csv.writer(file).writerows([("path", "label", "split"), *rows])
    store = place / "s.fcache"
    fc.extract(place / "items.csv", store, name=data, layers=["pooled"])
    return store


def trained(name: str, store: Path) -> fc.Bundle:
    """What is recommended."""
    kind = kind_of(name)
    if kind == FROM:
        return fc.finetune(store, name.removeprefix(FROM).strip())
    if kind in ("finetune", SCRATCH):
        return fc.finetune(store, init="pretrained" if kind == "finetune" else "scratch")
    return fc.train(store, layers="all-blocks") if kind == ALL_BLOCKS else fc.train(store, kind, layers="pooled")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", nargs="+", choices=strategies.DATA, default=list(strategies.DATA))
    parser.add_argument("--per-class", nargs="+", type=int, default=[10, 40, 0])
    parser.add_argument("--budget", type=float, default=180)
    options = parser.parse_args()
    (options.folder / "whole").mkdir(parents=True, exist_ok=True)
    for per_class in options.per_class:
        for data in options.data:
            store = problem(data, per_class, options.folder)
            began = time.monotonic()
            advice = fc.advise(store, budget=options.budget)
            seconds = time.monotonic() - began
            wanted: dict[str, Any] = {"data": data, "per_class": per_class}
            if not per_class:
                draw_advice(advice, recording.RESULTS / f"advise-{data}.png")
            right = strategies.answers(trained(advice.recommendation, store), store, store.parent)
            recording.append(
                "advise",
                wanted
                | {
                    "budget": options.budget,
                    "seconds": round(seconds, 1),
                    "recommended": advice.recommendation,
                    "runner_up": advice.runner_up,
                    "measured": [found["name"] for found in advice.strategies],
                    "reasons": advice.reasons,
                    "accuracy": right.count("1") / len(right),
                    "right": right,
                    "load": round(os.getloadavg()[0], 1),
                },
            )


if __name__ == "__main__":
    main()
