"""What strategies.py and advise.py measured: a table, the comparisons in pairs, and one figure.

    python scripts/bench/strategies_report.py [--figure results/strategies.png]

Comparisons: the same items to learn from (seed 0), the same test items; bootstrap over test items, 10,000 resamples.
The figure has the three reasons that people give for transfer learning: accuracy over the number of images, the time to
an accuracy, and the spread over seeds; each with pretrained weights and from scratch.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import recording
import strategies

RESAMPLES = 10_000
COLOURS = {
    "softmax": "C0", "all-blocks": "C9", "partial": "C2", "finetune": "C1", "scratch": "C3",
}  # fmt: skip


def compared(a: str, b: str) -> tuple[float, float, float]:
    """Accuracy of A less that of B, and its 95 % interval."""
    gains = np.array([int(x) - int(y) for x, y in zip(a, b, strict=True)])
    drawn = np.random.default_rng(0).integers(0, len(gains), (RESAMPLES, len(gains)))
    low, high = np.quantile(gains[drawn].mean(axis=1), [0.025, 0.975])
    return float(gains.mean()), float(low), float(high)


def said(found: tuple[float, float, float]) -> str:
    return f"{100 * found[0]:+.1f} ({100 * found[1]:+.1f} to {100 * found[2]:+.1f})"


def table(cells: list[dict[str, Any]]) -> None:
    """Accuracy in percent, mean over seeds, and the seconds of seed 0."""
    groups: dict[tuple[str, int], dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for cell in cells:
        groups[cell["data"], cell["per_class"]][cell["strategy"]].append(cell)
    print("| data, a class | " + " | ".join(strategies.STRATEGIES) + " |")
    print("|---" * (1 + len(strategies.STRATEGIES)) + "|")
    for (data, per_class), found in sorted(groups.items(), key=lambda pair: (pair[0][0], pair[0][1] or 10**9)):
        row = [f"{data}, {per_class or 'all'}"]
        for strategy in strategies.STRATEGIES:
            values = found.get(strategy, [])
            mean = 100 * np.mean([cell["accuracy"] for cell in values]) if values else None
            row.append("–" if mean is None else f"{mean:.1f} ({len(values)}; {values[0]['seconds']:.0f} s)")
        print("| " + " | ".join(row) + " |")
    print("\nAccuracy in % (seeds; seconds of one). Left out: " + ", ".join(left_out(groups)))


def left_out(groups: dict[tuple[str, int], dict[str, list[dict[str, Any]]]]) -> list[str]:
    return [
        f"{strategy} on {data} with {per_class or 'all'}"
        for (data, per_class), found in groups.items()
        for strategy in strategies.STRATEGIES
        if strategy not in found
    ]


def advised(cells: list[dict[str, Any]]) -> None:
    """What `advise` recommended against the best of the grid."""
    path = recording.RESULTS / "advise.json"
    worse = 0
    advice = json.loads(path.read_text()) if path.exists() else []
    print("\n| data, a class | advised | accuracy | best of the grid | less than the best, points | seconds of |")
    print("|---|---|---|---|---|---|")
    for cell in advice:
        rivals = {
            other["strategy"]: other["right"]
            for other in cells
            if other["seed"] == 0 and (other["data"], other["per_class"]) == (cell["data"], cell["per_class"])
        }
        if not rivals:
            continue
        best = max(rivals, key=lambda name: rivals[name].count("1"))
        found = compared(cell["right"], rivals[best])
        worse += found[2] < 0
        share = rivals[best].count("1") / len(rivals[best])
        print(
            f"| {cell['data']}, {cell['per_class'] or 'all'} | {cell['recommended']} | {100 * cell['accuracy']:.1f} | "
            f"{best} {100 * share:.1f} | {said(found)} | {cell['seconds']:.0f} of {cell['budget']:.0f} |"
        )
    print(f"\nWorse beyond chance in {worse} of {len(advice)}.")


def pairs(cells: list[dict[str, Any]], a: str, b: str) -> None:
    """One strategy less another, wherever both were measured with the same seed."""
    print(f"\n{a} less {b}, points:")
    answers = {(c["data"], c["per_class"], c["seed"], c["strategy"]): c["right"] for c in cells}
    for (data, per_class, seed, strategy), right in answers.items():
        other = answers.get((data, per_class, seed, b))
        if strategy == a and other is not None:
            print(f"- {data}, {per_class or 'all'}, seed {seed}: {said(compared(right, other))}")


def draw(cells: list[dict[str, Any]], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    data = [name for name in strategies.DATA if any(c["data"] == name and c["strategy"] == "scratch" for c in cells)]
    if not data:
        raise SystemExit("There is no cell of scratch yet, so no figure is drawn.")
    figure, axes = plt.subplots(3, len(data), figsize=(4 * len(data), 10), layout="constrained", squeeze=False)
    for column, name in enumerate(data):
        mine = [cell for cell in cells if cell["data"] == name]
        _over_images(axes[0][column], mine)
        axes[0][column].set_title(name)
        _over_time(axes[1][column], mine)
        _spread(axes[2][column], mine)
    axes[0][0].legend(fontsize=8)
    figure.savefig(path, dpi=110)


def _over_images(axes: Any, cells: list[dict[str, Any]]) -> None:
    for strategy, colour in COLOURS.items():
        by_count: dict[int, list[float]] = defaultdict(list)
        for cell in cells:
            if cell["strategy"] == strategy:
                by_count[cell["learned"]].append(cell["accuracy"])
        counts = sorted(by_count)
        if counts:
            axes.plot(counts, [np.mean(by_count[n]) for n in counts], marker="o", color=colour, label=strategy)
    axes.set(xscale="log", xlabel="images to learn from", ylabel="accuracy on the test set")
    axes.grid(alpha=0.3)


def _over_time(axes: Any, cells: list[dict[str, Any]]) -> None:
    """Of the largest problem: the best validation accuracy so far over the seconds of training."""
    for strategy in ("softmax", "partial", "finetune", "scratch"):
        found = [c for c in cells if c["strategy"] == strategy and c["seed"] == 0]
        if not found:
            continue
        cell = max(found, key=lambda c: c["learned"])
        colour = COLOURS[strategy]
        if cell["curve"] is None:
            axes.plot([cell["fit_seconds"]], [cell["accuracy"]], "o", color=colour)
            continue
        seconds = np.cumsum([epoch["seconds"] for epoch in cell["curve"]["epochs"]])
        best = np.maximum.accumulate([epoch["accuracy"] for epoch in cell["curve"]["epochs"]])
        axes.step(seconds, best, where="post", color=colour, label=f"{strategy}, {cell['learned']} images")
    axes.set(xscale="log", xlabel="seconds of training", ylabel="best validation accuracy so far\n(dot: test accuracy)")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)


def _spread(axes: Any, cells: list[dict[str, Any]]) -> None:
    """Accuracy with the fewest images, a dot for each seed."""
    fewest = min(cell["learned"] for cell in cells)
    names = [name for name in COLOURS if any(c["strategy"] == name and c["learned"] == fewest for c in cells)]
    for place, name in enumerate(names):
        values = [c["accuracy"] for c in cells if c["strategy"] == name and c["learned"] == fewest]
        axes.plot([place] * len(values), values, "o", color=COLOURS[name], alpha=0.7)
    axes.set_xticks(range(len(names)), names, rotation=20, fontsize=8)
    axes.set_ylabel(f"accuracy with {fewest} images,\na dot for each seed")
    axes.grid(axis="y", alpha=0.3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figure", type=Path, default=recording.RESULTS / "strategies.png")
    options = parser.parse_args()
    cells = strategies.cells()
    table(cells)
    pairs(cells, "all-blocks", "softmax")
    pairs(cells, "partial", "softmax")
    pairs(cells, "finetune", "softmax")
    advised(cells)
    draw(cells, options.figure)
    print(f"\n{options.figure}")


if __name__ == "__main__":
    main()
