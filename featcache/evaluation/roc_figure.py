"""A ROC curve as a picture. matplotlib is imported when one is drawn, and no window is opened."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from featcache.core.errors import UsageError
from featcache.metrics.plots import check_png
from featcache.metrics.verification import OperatingPoint, Roc


def draw_roc(curve: Roc, path: str | Path, point: OperatingPoint | None = None) -> None:
    """Write a ROC curve as a PNG, the false accept rate on a logarithmic axis.

    The axis begins at half of what one false accept makes. The curve is a stair, since no rate lies between those
    that occur.

    Args:
        curve: the curve.
        path: the file, ``*.png``.
        point: one to be marked, with the intervals of both its rates.

    Raises:
        UsageError: the file cannot be written, or its name says another kind of file.
    """
    check_png(path)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
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
    try:
        figure.savefig(path, format="png")
    except OSError as error:
        raise UsageError(f"The picture {path} cannot be written: {error.strerror}. Give another file.") from error
