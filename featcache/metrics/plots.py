"""The confusion matrix as a picture. matplotlib is imported when one is drawn, and no window is opened."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from featcache.core.errors import UsageError

_LONGEST = 24
_PIXELS_PER_INCH = 110


def draw_confusion(confusion: np.ndarray, labels: Sequence[str], path: str | Path) -> None:
    """Write a confusion matrix as a PNG.

    Colours show shares of the rows, so that small classes show as clearly as large ones; numbers are
    items, and where there are none the cell stays empty.

    Args:
        confusion: (k, k) int64, true labels in rows and predicted ones in columns.
        labels: k labels.
        path: the file, ``*.png``.

    Raises:
        UsageError: the file cannot be written, or its name says another kind of file.
    """
    check_png(path)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    k = len(labels)
    cell = float(np.clip(7 / k, 0.32, 0.9))
    size = float(np.clip(cell * 20, 6, 10))
    names = [label if len(label) <= _LONGEST else label[: _LONGEST - 1] + "…" for label in labels]
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
    FigureCanvasAgg(figure)
    try:
        figure.savefig(path, format="png")
    except OSError as error:
        raise UsageError(f"The picture {path} cannot be written: {error.strerror}. Give another file.") from error


def check_png(path: str | Path) -> None:
    """Find out before the work that a picture cannot be written.

    Raises:
        UsageError: its folder does not exist, or its name says another kind of file.
    """
    target = Path(path)
    if target.suffix.lower() != ".png":
        raise UsageError(f"The picture {target} would be a PNG; call it {target.with_suffix('.png')}.")
    if not target.parent.is_dir():
        raise UsageError(f"The picture {target} cannot be written: there is no folder {target.parent}.")
