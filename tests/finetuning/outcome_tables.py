"""Outcome tables to choose from: each strategy wins, ties, contradicts another or is cut off by the budget."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

TABLES, DEPTHS = 500, 60
NAMES = (
    "softmax", "stack --layers all-blocks", "mlp", "knn",
    "finetune --from b.1", "finetune --from b.0", "finetune", "finetune --init scratch",
)  # fmt: skip
RECORDED = json.loads((Path(__file__).parent / "recorded_choices.json").read_text(encoding="utf-8"))
"""What the first version of the rule chose of the tables below (``drawn``, ``depths``), and of ``given`` ones."""

Table = dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]
"""By name of the strategy: rows (m,), share of right answers (m,), log-losses (m,)."""


def drawn_table(number: int) -> tuple[np.ndarray, Table]:
    """Units (n,) and outcomes, the same on every machine."""
    rng = Random(number)
    n, together = rng.choice([40, 60, 90]), rng.choice([1, 1, 1, 2])
    folds = [list(range(start, n, 5)) for start in range(5)]
    others = rng.sample(NAMES[1:], rng.randint(1, len(NAMES) - 1))
    if number % 3 and NAMES[1] not in others:
        others.append(NAMES[1])
    hard = [rng.random() for _ in range(n)]
    base, kind = rng.uniform(0.3, 0.7), number % 8
    winners = set(others if kind == 4 else rng.sample(others, min(len(others), 1 + kind % 3)))
    table: Table = {}
    for place, name in enumerate(["softmax", *others]):
        rows = list(range(n))
        share = base + (rng.uniform(0.2, 0.5) if name in winners and kind != 0 else rng.uniform(-0.1, 0.1))
        if kind == 5 and name != "softmax":  # worse than the base
            share = base - rng.uniform(0, 0.4)
        if kind in (2, 3, 6) and name.startswith("finetune"):  # the budget ended the trial
            rows = sorted(row for fold in rng.sample(folds, rng.randint(1, 4)) for row in fold)
        right = [float(0.8 * hard[row] + 0.2 * rng.random() < share) for row in rows]
        if kind == 7:  # several draws of the training rows, averaged
            right = [(one + float(hard[row] < share)) / 2 for one, row in zip(right, rows, strict=True)]
        if kind == 6 and place in (1, 2, 3):  # right on one third alone, so worse than the next one on the other
            thirds = [range(n)[start * n // 3 : (start + 1) * n // 3] for start in (place - 1, place % 3)]
            rows = sorted([*thirds[0], *thirds[1]])
            right = [float(row in thirds[0]) for row in rows]
        elif kind == 6:
            right = [0.0] * len(rows)
        loss = 2 - 1.5 * sum(right) / len(right) + rng.uniform(-0.2, 0.2)
        table[name] = np.array(rows), np.array(right), np.full(len(rows), loss)
    return np.arange(n) // together, table


def drawn_layers(number: int) -> np.ndarray:
    """Answers (l, n) of the probes of l layers, the same on every machine."""
    rng = Random(10_000 + number)
    n, layers = rng.choice([30, 60, 90, 600]), rng.randint(1, 6)
    hard = [rng.random() for _ in range(n)]
    first, last, noise = rng.uniform(0.2, 1.1), rng.uniform(0.4, 1.1), rng.choice([0.0, 0.2])
    shares = [first + (last - first) * min(1.0, layer / rng.choice([1, 2, 3])) for layer in range(layers)]
    return np.array([[float((1 - noise) * h + noise * rng.random() < share) for h in hard] for share in shares])


def given_table(recorded: dict[str, Any]) -> tuple[np.ndarray, Table]:
    """Units and outcomes of a recorded table: a problem of the benchmarks, or of an earlier test."""
    table: Table = {}
    for name, (rows, right, losses) in recorded["outcomes"].items():
        at = np.arange(recorded["n"]) if rows is None else np.array(rows)
        values = np.array([int(digit) for digit in f"{int(right, 16):0{len(at)}b}"], dtype=float)
        table[name] = at, values, np.full(len(at), losses)
    return np.arange(recorded["n"]), table
