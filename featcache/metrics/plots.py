"""The confusion matrix and the ROC curve as PNG. matplotlib is imported on use, and no window is opened."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from featcache.core.errors import UsageError
from featcache.core.outputs import FIGURE, FIGURE_SOFTWARE, check_output, written_output
from featcache.core.visible import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from featcache.metrics.verification import OperatingPoint, Roc

_LONGEST = 24
_PIXELS_PER_INCH = 110
METADATA = {"Software": FIGURE_SOFTWARE}
"""Of the PNGs that are written; by it a figure is known that may be replaced."""


def draw_confusion(confusion: np.ndarray, labels: Sequence[str], path: str | Path, *, force: bool = False) -> None:
    """Write a confusion matrix as a PNG.

    Colors show shares of the rows, so that small classes show as clearly as large ones; numbers are
    items, and where there are none the cell stays empty.

    Args:
        confusion: (k, k) int64, true labels in rows and predicted ones in columns.
        labels: k labels.
        path: the file, ``*.png``; a figure of featcache that is there is replaced.
        force: replace any other file too.

    Raises:
        UsageError: the file cannot be written, or there is another one.
    """
    check_output(path, FIGURE, force=force)
    from matplotlib.figure import Figure

    k = len(labels)
    cell = float(np.clip(7 / k, 0.32, 0.9))
    size = float(np.clip(cell * 20, 6, 10))
    shown = [visible(label) for label in labels]
    names = [label if len(label) <= _LONGEST else label[: _LONGEST - 1] + "…" for label in shown]
    # Room for the names, in inches: a letter is some 0.6 of its height wide, and 72 points are an inch.
    margin = 0.6 + max(len(name) for name in names) * size * 0.62 / 72
    side = k * cell
    width, height = margin + side + 1.1, margin + side + 0.5
    figure = Figure(figsize=(width, height), dpi=_PIXELS_PER_INCH)
    axes = figure.add_axes((margin / width, margin / height, side / width, side / height))
    totals = confusion.sum(axis=1, keepdims=True)
    shares = confusion / np.where(totals > 0, totals, 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.argwhere(confusion > 0):
        count = f"{confusion[row, column]}"
        axes.text(
            column,
            row,
            count,
            ha="center",
            va="center",
            # Long numbers get smaller, so that they stay within their cell.
            fontsize=min(size, cell * 72 * 1.35 / max(len(count), 2)),
            color="white" if shares[row, column] > 0.5 else "black",
        )
    # Names are text, not formulas: a $ in one means itself.
    axes.set_xticks(range(k), names, rotation=90, fontsize=size, parse_math=False)
    axes.set_yticks(range(k), names, fontsize=size, parse_math=False)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_xticks(np.arange(k - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(k - 1) + 0.5, minor=True)
    axes.grid(which="minor", color="0.85", linewidth=0.5)
    axes.tick_params(which="minor", length=0)
    bar = figure.add_axes(((margin + side + 0.2) / width, margin / height, 0.15 / width, min(side, 4) / height))
    figure.colorbar(image, cax=bar, label="share of the true class")
    save_figure(figure, path, force=force)


def save_figure(figure: Figure, path: str | Path, *, force: bool = False) -> None:
    """Write a figure as a PNG that names featcache; no window is opened.

    Raises:
        UsageError: the file cannot be written, or there is one that is no figure of featcache, unless *force*.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    try:
        with written_output(path, FIGURE, force=force) as aside:
            figure.savefig(aside, format="png", metadata=METADATA)
    except OSError as error:
        raise UsageError(f"The image {path} cannot be written: {error.strerror}. Give another file.") from error


def draw_roc(curve: Roc, path: str | Path, point: OperatingPoint | None = None, *, force: bool = False) -> None:
    """Write a ROC curve as a PNG, the false accept rate on a logarithmic axis.

    The axis begins at half of what one false accept makes. The curve is a stair, since no rate lies between those
    that occur.

    Args:
        curve: the curve.
        path: the file, ``*.png``; a figure of featcache that is there is replaced.
        point: one to be marked, with the intervals of both its rates.
        force: replace any other file too.

    Raises:
        UsageError: the file cannot be written, or there is another one.
    """
    check_output(path, FIGURE, force=force)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 5), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    least = 0.5 / curve.different
    # Where the curve turns; what lies between on a straight line adds nothing to see.
    corners = np.append(np.diff(curve.far) > 0, True) | np.append(True, np.diff(curve.far) > 0)
    far, tar = np.maximum(curve.far[corners], least), curve.tar[corners]
    axes.plot(far, tar, drawstyle="steps-post", label=f"AUC {curve.auc():.4f}, EER {curve.eer():.4f}")
    chance = np.geomspace(least, 1, 200)
    axes.plot(chance, chance, color="0.6", linewidth=0.8, linestyle="--", label="chance")
    if point is not None:
        x, y = max(point.far.value, least), point.tar.value
        axes.errorbar(
            [x],
            [y],
            xerr=[[max(0.0, x - max(point.far.low, least))], [max(0.0, point.far.high - x)]],
            yerr=[[y - point.tar.low], [point.tar.high - y]],
            fmt="o",
            color="C3",
            capsize=3,
            zorder=3,
            label=f"threshold {point.threshold:.4g}: FAR {point.far.value:.3g}, TAR {y:.3g}",
        )
    axes.set_xscale("log")
    axes.set_xlim(least, 1)
    axes.set_ylim(0, 1.01)
    axes.set_xlabel(f"false accept rate (of {curve.different:,} pairs of different people)")
    axes.set_ylabel(f"true accept rate (of {curve.same:,} pairs of one person)")
    axes.grid(which="major", alpha=0.3)
    axes.legend(loc="lower right", fontsize=8)
    save_figure(figure, path, force=force)
