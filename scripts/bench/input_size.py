"""The input's size: ridge on ``pooled`` of the published pixels against whole images, at the published size and larger.

    python scripts/bench/input_size.py FOLDER [--data ...] [--backbones ...] [--images 800] [--repeats 5]

FOLDER takes the stores. Data: those of strategies.py, of each at most so many images, spread over the classes.
Five folds, repeated; the difference of each item's answers to those with the published pixels, over all repeats, has a
bootstrap interval of 95 %. Cost: seconds of processor time of an extraction per image, decoding and all, by the graph
that an extraction before has converted. Each data set and backbone is one cell of results/input_size.json.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import featcache as fc
from featcache.core.recipe import StandardTransform
from featcache.heads import resolve_head
from featcache.metrics import splits
from featcache.metrics.classification import paired
from featcache.training.dataset import FeatureDataset
from featcache.training.selection import Selection

sys.path.insert(0, str(Path(__file__).parent))
import recording
from strategies import DATA

FOLDS = 5
BACKBONES = ("bundled:efficientnet_lite0", "bundled:efficientnet_lite1", "bundled:efficientnet_lite2")


def sizes_of(name: str) -> dict[str, dict[str, Any]]:
    """Options of `extract` by what is tried."""
    transform = fc.backbones.get(name).recipe.pixels.transform
    assert isinstance(transform, StandardTransform)
    side = transform.crop[0]
    larger = {f"whole {of}/7": {"input_size": 16 * round(side * of / 7 / 16), "fit": "whole"} for of in (9, 11)}
    return {"published": {}, "whole": {"fit": "whole"}, **larger}


def extract(data: str, name: str, folder: Path, images: int, options: dict[str, Any]) -> tuple[str, float | None]:
    """The space, and seconds of processor time per image; None where nothing had to be computed."""
    given: dict[str, Any] = {"backbone": name, "name": data, "progress": False, **options}
    source, store = DATA[data](folder), folder / f"{data}.fcache"
    fc.extract(source, folder / "warm.fcache", limit=8, **given)
    began = time.process_time()
    report = fc.extract(source, store, limit=images, **given)
    return report.space, (time.process_time() - began) / report.computed if report.computed else None


def right(store: Path, space: str, repeats: int) -> tuple[np.ndarray, np.ndarray]:
    """Share of right answers (n,) of each item over the repeats, and its unit (n,)."""
    items = FeatureDataset.from_store(fc.open(store), "pooled", Selection(space=space)).in_memory()
    X, found = items.read(np.arange(len(items.y))), np.zeros(len(items.y))
    for seed in range(repeats):
        for train, test in splits.folds(items.y, items.groups, FOLDS, seed):
            head = resolve_head("ridge").make().fit(X[train], items.y[train], groups=items.groups[train])
            found[test] += head.predict(X[test]) == items.y[test]
    return found / repeats, items.groups


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", nargs="+", default=list(DATA), choices=list(DATA))
    parser.add_argument("--backbones", nargs="+", default=list(BACKBONES))
    parser.add_argument("--images", type=int, default=800)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--largest", action="store_true", help="11/7 of the size too")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for name in options.backbones:
        for data in options.data:
            answers, cell = dict[str, np.ndarray](), {"data": data, "backbone": name, "tried": list[dict[str, Any]]()}
            for what, given in sizes_of(name).items():
                if what == "whole 11/7" and not options.largest:
                    continue
                space, seconds = extract(data, name, options.folder, options.images, given)
                answers[what], units = right(options.folder / f"{data}.fcache", space, options.repeats)
                found = paired(answers[what], answers["published"], units=units).to_dict()
                cell["tried"].append({"pixels": what, **given, "cpu_seconds_per_image": seconds, **found})
            recording.append("input_size", cell | {"images": len(units), "repeats": options.repeats})


if __name__ == "__main__":
    main()
