"""The report of a sweep: plain values, a page of Markdown, and a plot of the log-loss over C."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from featcache.core.html import HtmlTable
from featcache.core.visible import visible

if TYPE_CHECKING:
    from featcache.training.bundle import Bundle
    from featcache.training.sweep_cells import Cell


@dataclass
class SweepReport(HtmlTable):
    """The result of `sweep`.

    Attributes:
        store: the store's path.
        cells: every head on every layer set, the best first.
        winner: ``head``, ``layers`` and ``chosen`` (its hyper-parameters).
        score: of the winner on the images that took no part in the choice: ``accuracy`` with ``low`` and ``high``,
            ``log_loss``, ``n`` and the ``protocol`` in words.
        near_duplicates: among the training part and those images, as in the report of a head: ``pairs``, of these
            ``across``, ``threshold``, ``examples``, ``note``.
        folds: of the cross-validation by which the winner was chosen.
        n: images in the training part that the choice is based on.
        left_out: classes that took no part in the choice, as they have one independent image.
        computed, reused: cells computed in this run, and taken from earlier ones.
        seconds: of the whole run.
        bundle: the winner, fitted on the training part.
        spaces: those that were compared first, see `featcache.training.spaces.SpaceScore`.
        paths: of the files written: ``json``, ``markdown`` and ``figure``; None for one that was not.
    """

    store: str
    cells: list[Cell]
    winner: dict[str, Any]
    score: dict[str, Any]
    near_duplicates: dict[str, Any]
    folds: int
    n: int
    left_out: list[str]
    computed: int
    reused: int
    seconds: float
    bundle: Bundle
    paths: dict[str, str | None] = field(default_factory=dict)
    spaces: list[dict[str, Any]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """All but the bundle as plain values."""
        plain = {name: value for name, value in self.__dict__.items() if name not in ("bundle", "cells")}
        return {"cells": [cell.to_dict() for cell in self.cells], **plain}


def ranked(cells: Sequence[Cell]) -> list[Cell]:
    """The cells, the best first: by log-loss, ties in order.

    A head without probabilities is ranked by accuracy: it comes before the first cell that it beats. Cells without a
    score come last.
    """
    order = sorted((c for c in cells if c.log_loss is not None), key=lambda c: c.log_loss or 0.0)
    for cell in sorted((c for c in cells if c.accuracy is not None and c.log_loss is None), key=_accuracy):
        place = next((i for i, other in enumerate(order) if _accuracy(cell) > _accuracy(other)), len(order))
        order.insert(place, cell)
    return order + [c for c in cells if c.accuracy is None]


def called(layers: Sequence[str]) -> str:
    """A layer set in short."""
    return "+".join(layers) if len(layers) < 3 else f"{layers[0]} … {layers[-1]} ({len(layers)})"


def markdown(report: SweepReport) -> str:
    """The report as a page that links its figure."""
    score = report.score
    lines = [
        f"# Sweep of {_cell(report.store)}",
        "",
        f"Each row: out-of-fold predictions of {report.folds} folds on the {report.n:,} items of the training part, "
        "with 95 % bootstrap intervals.",
        "",
        "| head | layers | d | accuracy | log-loss | chosen | seconds |",
        "|---|---|---:|---:|---:|---|---:|",
    ]
    for cell in report.cells:
        if cell.problem is not None:
            shown = ["", f"no score: {cell.problem}", "", "", ""]
        else:
            chosen = ", ".join(f"{name} = {value}" for name, value in cell.chosen.items())
            shown = [
                str(cell.d),
                _value(100, 1, cell.accuracy, cell.low, cell.high, " %"),
                _value(1, 3, cell.log_loss, cell.log_loss_low, cell.log_loss_high),
                chosen,
                f"{cell.seconds:.1f}" + (" (reused)" if cell.reused else ""),
            ]
        lines.append("| " + " | ".join(map(_cell, [cell.head, " + ".join(cell.layers), *shown])) + " |")
    lines += [
        *[f"Left out of the choice, with one independent image: {_cell(name)}." for name in report.left_out],
        "",
        f"**Winner: {_cell(report.winner['head'])} on {_cell(' + '.join(report.winner['layers']))}.** "
        + ("Its score above took part in the choice, so it is a little too high. " if report.folds else "")
        + "On items that took no part "
        f"({_cell(score['protocol'])}): accuracy {_value(100, 1, score['accuracy'], score['low'], score['high'], ' %')}"
        + (f", log-loss {score['log_loss']:.3f}." if score["log_loss"] is not None else "."),
    ]
    if report.near_duplicates["across"]:
        lines += [
            "",
            f"Warning: {report.near_duplicates['across']:,} pairs of near-duplicates across the split, so that score "
            "may be too high.",
        ]
    if report.paths.get("figure"):
        name = str(report.paths["figure"]).replace("\\", "/").rpartition("/")[2]
        lines += ["", f"![held-out log-loss over C]({name})"]
    return "\n".join(lines) + "\n"


def _accuracy(cell: Cell) -> float:
    return -math.inf if cell.accuracy is None else cell.accuracy


def _value(factor: float, digits: int, value: Any, low: Any, high: Any, unit: str = "") -> str:
    if value is None:
        return "–"
    shown = [f"{factor * number:.{digits}f}" for number in (value, low, high) if number is not None]
    return f"{shown[0]}{unit}" + (f" ({shown[1]}–{shown[2]})" if len(shown) == 3 else "")


def _cell(text: str) -> str:
    return visible(text).replace("|", "\\|")


_MARKERS = "osD^vP*X"


def draw(cells: Sequence[Cell], winner: Cell) -> bytes | None:
    """A PNG of the curves of all cells that have one; None if none has.

    Args:
        cells: the cells.
        winner: drawn in bold.
    """
    shown = [cell for cell in cells if sum(loss is not None for _, loss in cell.curve) > 1]
    if not shown:
        return None
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from featcache.metrics.plots import METADATA

    figure = Figure(figsize=(9, 5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)  # draws to memory, whatever is set up for windows
    axes = figure.add_subplot()
    sets = list(dict.fromkeys(tuple(cell.layers) for cell in shown))
    heads = list(dict.fromkeys(cell.head for cell in shown))
    # Without the last fifth, whose yellow is hard to see on white.
    colours = [colormaps["viridis"](0.8 * i / max(1, len(sets) - 1)) for i in range(len(sets))]
    for cell in shown:
        points = [(C, loss) for C, loss in cell.curve if C is not None and loss is not None]
        bold = cell is winner
        axes.plot(
            [C for C, _ in points],
            [loss for _, loss in points],
            color=colours[sets.index(tuple(cell.layers))],
            marker=_MARKERS[heads.index(cell.head) % len(_MARKERS)],
            markersize=4,
            linewidth=3 if bold else 1.2,
            zorder=3 if bold else 2,
            label=visible(f"{cell.head}, {called(cell.layers)}") + (" (winner)" if bold else ""),
        )
        best = min(points, key=lambda point: point[1])
        axes.plot(*best, marker="o", markersize=9, fillstyle="none", color="black", zorder=4)
    axes.set_xscale("log")
    axes.set_xlabel("C (less regularized →)")
    axes.set_ylabel("held-out log-loss (circle: least)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    made = io.BytesIO()
    figure.savefig(made, format="png", metadata=METADATA)
    return made.getvalue()
