"""The head `stack` on `pooled` and all blocks, beside `softmax` on `pooled`; and how layers are weighed.

    python scripts/bench/stack.py FOLDER [--data trashnet-480 textiles digits] [--per-class N] [--repeats 2] [--rows N]
    python scripts/bench/stack.py FOLDER --weighting

Repeated five-fold cross-validation, paired: each item's answer by the one head less that by the other, the mean and its
standard error over items. All that is chosen (weighting, penalties, weights of members, temperatures) is chosen inside
the folds. Processor seconds are those of the fits alone, without imports and reading. With ``--per-class`` so many
items a class are learned from in each fold, and all others of the fold's other side are scored. With ``--weighting``
ridge on each weighting, on the one that 500 items choose, and on the one that all choose. Stores are made in FOLDER;
cells go to ``results/stack.json``.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import featcache as fc
from featcache.core.errors import GridEdgeWarning
from featcache.heads import resolve_head
from featcache.heads.ridge import RidgeHead
from featcache.metrics import splits
from featcache.metrics.calibration import expected_calibration_error
from featcache.metrics.classification import right_and_losses
from featcache.training.dataset import FeatureDataset
from featcache.training.fit import answers, fit
from featcache.training.layer_scales import ALONE, WEIGHTINGS, choose_layers, layer_uses
from featcache.training.layer_use import scale_layers

sys.path.insert(0, str(Path(__file__).parent))
import recording
from strategies import DATA

BLOCKS = ["blocks.*:mean_std", "pooled"]


def datasets(data: str, folder: Path, rows: int | None) -> tuple[FeatureDataset, FeatureDataset]:
    """The items on `pooled`, and the same on all layers."""
    store = folder / f"{data}.fcache"
    fc.extract(DATA[data](folder), store, name=data, layers=BLOCKS)
    found = [FeatureDataset.from_store(fc.open(store), layers).in_memory() for layers in ("pooled", "+".join(BLOCKS))]
    if rows is not None and rows < len(found[0].y):
        some = np.sort(np.random.default_rng(0).permutation(len(found[0].y))[:rows])
        found = [one.subset(some) for one in found]
    return found[0], replace(found[1], layers_named=False)


def few(y: np.ndarray, rows: np.ndarray, per_class: int | None, seed: int) -> np.ndarray:
    if per_class is None:
        return rows
    rng = np.random.default_rng(seed)
    return np.sort(np.concatenate([rng.permutation(rows[y[rows] == label])[:per_class] for label in np.unique(y)]))


class Answers:
    """Of one head to all items, a row for each repeat."""

    def __init__(self, repeats: int, n: int) -> None:
        self.right, self.losses, self.sure = (np.full((repeats, n), np.nan) for _ in range(3))
        self.seconds = 0.0

    def over(self, dataset: FeatureDataset, head: str, repeat: int, train: np.ndarray, test: np.ndarray) -> Any:
        began = time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", GridEdgeWarning)
            bundle = fit(dataset, train, resolve_head(head, seed=repeat))
        self.seconds += time.process_time() - began
        probabilities, predicted = answers(bundle, dataset, test)
        assert probabilities is not None
        self.right[repeat, test], self.losses[repeat, test] = right_and_losses(
            dataset.y[test], probabilities, predicted, bundle.classes
        )
        self.sure[repeat, test] = probabilities.max(axis=1)
        return bundle

    def ece(self) -> float:
        return float(np.mean([expected_calibration_error(p, r) for p, r in zip(self.sure, self.right, strict=True)]))


def paired(new: np.ndarray, old: np.ndarray) -> dict[str, float]:
    """The mean difference over items, and its standard error; the repeats of an item are one observation."""
    difference = (new - old).mean(axis=0)
    error = float(difference.std(ddof=1) / np.sqrt(len(difference)))
    return {"difference": float(difference.mean()), "standard_error": error}


def compare(data: str, folder: Path, per_class: int | None, repeats: int, rows: int | None) -> dict[str, Any]:
    pooled, all_layers = datasets(data, folder, rows)
    n = len(pooled.y)
    old, new = Answers(repeats, n), Answers(repeats, n)
    weights: dict[str, list[float]] = {}
    for repeat in range(repeats):
        for train, test in splits.folds(pooled.y, pooled.groups, 5, repeat):
            train = few(pooled.y, train, per_class, repeat)
            order = [(old, pooled, "softmax"), (new, all_layers, "stack")]
            for who, dataset, head in order if repeat % 2 == 0 else order[::-1]:
                bundle = who.over(dataset, head, repeat, train, test)
            for member in bundle.report["members"] or ():
                weights.setdefault(member["name"], []).append(member["weight"])
    return {
        "data": data,
        "items": n,
        "per_class": per_class,
        "repeats": repeats,
        "accuracy": [float(old.right.mean()), float(new.right.mean())],
        "log_loss": [float(old.losses.mean()), float(new.losses.mean())],
        "accuracy_gain": paired(new.right, old.right),
        "log_loss_gain": paired(new.losses, old.losses),
        "ece": [old.ece(), new.ece()],
        "processor_seconds_per_fit": [old.seconds / repeats / 5, new.seconds / repeats / 5],
        "ratio": new.seconds / old.seconds,
        "weights": {name: float(np.mean(found)) for name, found in weights.items()},
    }


def weigh(data: str, folder: Path, repeats: int, rows: int | None) -> dict[str, Any]:
    """Ridge on each weighting, and on those chosen by 500 and by all items."""
    _, all_layers = datasets(data, folder, rows)
    n, names = len(all_layers.y), [*WEIGHTINGS, ALONE]
    right = {name: np.full((repeats, n), np.nan) for name in [*names, "chosen by 500", "chosen by all"]}
    losses = {name: np.full((repeats, n), np.nan) for name in right}
    for repeat in range(repeats):
        for train, test in splits.folds(all_layers.y, all_layers.groups, 5, repeat):
            loss_of = {}
            for name in names:
                last = all_layers.widths[-1]
                uses = None if name == ALONE else layer_uses(all_layers, train, **WEIGHTINGS[name])
                X, Z = (
                    all_layers.read(at)[:, -last:] if uses is None else scale_layers(all_layers.read(at), uses)
                    for at in (train, test)
                )
                head = RidgeHead().fit(X, all_layers.y[train], all_layers.groups[train])
                loss_of[name] = head.scores_.min()
                p = head.predict_proba(Z)
                right[name][repeat, test], losses[name][repeat, test] = right_and_losses(
                    all_layers.y[test], p, head.classes_[p.argmax(axis=1)], tuple(head.classes_)
                )
            chosen = {
                "chosen by 500": str(choose_layers(all_layers, train, alone=True, seed=repeat).weighting),
                "chosen by all": min(loss_of, key=loss_of.__getitem__),
            }
            for name, of in chosen.items():
                for found in (right, losses):
                    found[name][repeat, test] = found[of][repeat, test]
    return {
        "data": data,
        "items": n,
        "repeats": repeats,
        "weighting": {
            name: {
                "accuracy": float(right[name].mean()),
                "log_loss": float(losses[name].mean()),
                "to_pooled": paired(right[name], right[ALONE]),
            }
            for name in right
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA))
    parser.add_argument("--per-class", type=int)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--rows", type=int)
    parser.add_argument("--weighting", action="store_true")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    for data in given.data:
        if given.weighting:
            cell = weigh(data, given.folder, given.repeats, given.rows)
        else:
            cell = compare(data, given.folder, given.per_class, given.repeats, given.rows)
        recording.append("stack", cell)


if __name__ == "__main__":
    main()
