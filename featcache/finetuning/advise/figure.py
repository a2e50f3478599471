"""The advice as a picture. matplotlib is imported when one is drawn, and no window is opened."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from featcache.core.errors import UsageError
from featcache.core.progress import duration
from featcache.finetuning.advise.report import Advice
from featcache.metrics.plots import check_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_advice(advice: Advice, path: str | Path) -> None:
    """Write learning curve, accuracy by depth, and all strategies with their cost as a PNG.

    Args:
        advice: what was found; what was not measured stays an empty panel that says so.
        path: the file, ``*.png``.

    Raises:
        UsageError: the file cannot be written, or its name says another kind of file.
    """
    check_png(path)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = max(len(advice.costs), 1)
    figure = Figure(figsize=(9, 4.2 + 0.42 * rows), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, 2, height_ratios=(3.4, 0.8 + 0.42 * rows))
    _curve(figure.add_subplot(grid[0, 0]), advice)
    _depth(figure.add_subplot(grid[0, 1]), advice)
    _strategies(figure.add_subplot(grid[1, :]), advice)
    try:
        figure.savefig(path, format="png")
    except OSError as error:
        raise UsageError(f"The picture {path} cannot be written: {error.strerror}. Give another file.") from error


def _curve(axes: Axes, advice: Advice) -> None:
    axes.set_title("Softmax: more images", fontsize=10)
    axes.set_xlabel("images learned from")
    axes.set_ylabel("accuracy, %")
    points = advice.learning_curve
    if len(points) < 2:
        _empty(axes, "not measured")
        return
    learned = [point["learned"] for point in points]
    _errorbar(axes, learned, [point["accuracy"] for point in points], "C0")
    axes.set_xscale("log", base=2)
    axes.set_xticks(learned, [f"{value:.0f}" for value in learned])
    axes.minorticks_off()
    axes.grid(alpha=0.3)


def _depth(axes: Axes, advice: Advice) -> None:
    axes.set_title("Softmax: depth of the frozen network", fontsize=10)
    axes.set_xlabel("relative depth (1: pooled)")
    if advice.depth is None:
        _empty(axes, "not measured")
        return
    layers = advice.depth["layers"]
    _errorbar(axes, [layer["depth"] for layer in layers], [layer["accuracy"] for layer in layers], "C2")
    at_least, known = advice.depth["similarity_at_least"], advice.depth["similarity"] is not None
    label = "later layers help no more" if known else "later layers may help more"
    axes.axvline(at_least, color="0.5", linewidth=0.9, linestyle="--", label=label)
    axes.set_xlim(0, 1.05)
    axes.legend(fontsize=8, loc="lower right")
    axes.grid(alpha=0.3)


def _strategies(axes: Axes, advice: Advice) -> None:
    axes.set_title("Strategies: accuracy with 95 % interval; time of the whole training here", fontsize=10)
    known = {outcome["name"]: outcome for outcome in advice.strategies}
    names = [cost["strategy"] for cost in advice.costs]
    for place, cost in enumerate(advice.costs):
        outcome = known.get(cost["strategy"])
        bold = cost["strategy"] == advice.recommendation
        if outcome is not None:
            low, value, high = _ends(outcome["accuracy"])
            axes.plot([low, high], [place, place], color="C3" if bold else "C0", linewidth=3 if bold else 1.6)
            axes.plot([value], [place], "o", color="C3" if bold else "C0", markersize=8 if bold else 5)
        told = _cost(cost) + ("" if outcome is None else f"; {outcome['items']:,} items")
        axes.annotate(
            told + ("" if outcome is not None else "; not tried"),
            (1.01, place),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=8,
            annotation_clip=False,
        )
    labels = [f"{name} (recommended)" if name == advice.recommendation else name for name in names]
    axes.set_yticks(range(len(names)), labels, fontsize=9, parse_math=False)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel(
        "accuracy, % (compare those of equal items alone; intervals that overlap may still differ in pairs)", fontsize=8
    )
    axes.grid(axis="x", alpha=0.3)


def _errorbar(axes: Axes, x: list[float], accuracies: list[dict[str, Any]], colour: str) -> None:
    ends = [_ends(accuracy) for accuracy in accuracies]
    values = [value for _, value, _ in ends]
    below, above = [value - low for low, value, _ in ends], [high - value for _, value, high in ends]
    axes.errorbar(x, values, yerr=[below, above], marker="o", markersize=4, capsize=3, color=colour, linewidth=1.4)


def _ends(accuracy: dict[str, Any]) -> tuple[float, float, float]:
    """Low, value and high in percent."""
    value = accuracy["value"]
    low, high = (value if accuracy[end] is None else accuracy[end] for end in ("low", "high"))
    return 100 * low, 100 * value, 100 * high


def _cost(cost: dict[str, Any]) -> str:
    time = "time not known" if cost["seconds"] is None else f"about {duration(cost['seconds'])}"
    return time + (f", {cost['bytes'] / 1e6:,.0f} MB" if cost["bytes"] else "")


def _empty(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes, color="0.5")
    axes.set_xticks([])
    axes.set_yticks([])
