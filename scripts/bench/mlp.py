"""Time and score of the head ``mlp`` and of scikit-learn's MLPClassifier, both as they come, in alternating rounds.

    OMP_NUM_THREADS=1 python scripts/bench/mlp.py STORE [STORE …] [--rounds 3]

On ``pooled`` of each store, on 117 of its items, and on 600 of scikit-learn's digits: five folds, seconds of processor
time per fit.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recording import append
from sklearn.datasets import load_digits
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold
from sklearn.neural_network import MLPClassifier

import featcache as fc
from featcache.heads.mlp import MLPHead

MADE = {"mlp": MLPHead, "MLPClassifier": MLPClassifier}


def cross_validated(head: Any, X: np.ndarray, y: np.ndarray, seed: int) -> dict[str, float]:
    right, losses, began = [], [], time.process_time()
    for train, test in StratifiedKFold(5, shuffle=True, random_state=seed).split(X, y):
        fitted = head.fit(X[train], y[train])
        p = fitted.predict_proba(X[test])
        right.append((fitted.classes_[p.argmax(1)] == y[test]).mean())
        losses.append(log_loss(y[test], p, labels=fitted.classes_))
    seconds = (time.process_time() - began) / 5
    return {"seconds": seconds, "accuracy": float(np.mean(right)), "log_loss": float(np.mean(losses))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stores", type=Path, nargs="+")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rng, problems = np.random.default_rng(0), {}
    for store in options.stores:
        X, y, _ = fc.open(store).arrays(layers="pooled")
        some = rng.permutation(len(X))
        for n in (117, min(len(X), 800)):
            problems[f"{store.stem}, {n} items"] = X[some[:n]], np.asarray(y)[some[:n]]
    X, y = load_digits(return_X_y=True)
    some = rng.permutation(len(X))[:600]
    problems["digits, 600 items"] = X[some].astype(np.float32), y[some]
    for name, (X, y) in problems.items():
        found: dict[str, list[dict[str, float]]] = {head: [] for head in MADE}
        for number in range(options.rounds):
            for head, make in MADE.items():
                found[head].append(cross_validated(make(random_state=number), X, y, number))
        cell: dict[str, Any] = {"problem": name, "shape": X.shape, "rounds": options.rounds}
        for head, rounds in found.items():
            seconds = {"seconds": float(np.median([one["seconds"] for one in rounds]))}
            cell[head] = seconds | {
                what: float(np.mean([one[what] for one in rounds])) for what in rounds[0] if what != "seconds"
            }
        cell["ratio"] = float(np.median([a["seconds"] / b["seconds"] for a, b in zip(*found.values(), strict=True)]))
        append("mlp", cell)


if __name__ == "__main__":
    main()
