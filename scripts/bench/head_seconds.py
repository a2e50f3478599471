"""Seconds of processor time that heads take by the size of the problem, and what they say beforehand.

    OMP_NUM_THREADS=1 python scripts/bench/head_seconds.py [--heads softmax ridge mlp] [--sizes CLASSESxROWSxNUMBERS …]

Rows are of each class, drawn around a mean of its own; the spread over the numbers falls as in vectors of a network.
"""

from __future__ import annotations

import argparse
import time
import warnings
from typing import Any

import numpy as np
import torch
from recording import append

from featcache.heads import resolve_head

SIZES = ["6x20x1280", "10x100x1280", "100x6x256", "10x500x1280", "100x10x1280", "100x50x512", "300x6x1280"]
APART = (0.15, 0.35)
"""Distances of the classes: most rows are told apart, and all."""


def drawn(classes: int, rows: int, d: int, apart: float) -> tuple[np.ndarray, np.ndarray]:
    rng, y = np.random.default_rng(0), np.repeat(np.arange(classes), rows)
    spread = (1 + np.arange(d)) ** -0.5
    spread *= 0.5 * np.sqrt(d / np.square(spread).sum())
    means = apart * rng.normal(size=(classes, d))
    return ((means[y] + rng.normal(size=(len(y), d))) * spread).astype(np.float32), y


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", nargs="+", default=["softmax", "ridge", "mlp"])
    parser.add_argument("--sizes", nargs="+", default=SIZES)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for size in options.sizes:
        classes, rows, d = map(int, size.split("x"))
        for apart in APART:
            X, y = drawn(classes, rows, d, apart)
            cell: dict[str, Any] = {"classes": classes, "rows": len(X), "numbers": d, "apart": apart}
            for name in options.heads:
                head = resolve_head(name).make()
                began = time.process_time()
                head.fit(X, y)
                cell[name] = {"seconds": time.process_time() - began}
                if hasattr(head, "seconds_needed"):
                    cell[name]["said"] = head.seconds_needed(len(X), d, classes)
            append("head_seconds", cell)


if __name__ == "__main__":
    main()
