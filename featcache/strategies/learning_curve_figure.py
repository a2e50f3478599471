"""A learning curve as a picture. matplotlib is imported when one is drawn, and no window is opened."""

from __future__ import annotations

from pathlib import Path

from featcache.core.errors import UsageError
from featcache.finetuning.history import Curve
from featcache.metrics.plots import check_png


def draw_learning_curve(curve: Curve, path: str | Path) -> None:
    """Write training loss, validation loss and validation accuracy over the epochs as a PNG.

    Args:
        curve: the training; its best epoch is marked, and what the network was worth at the beginning.
        path: the file, ``*.png``.

    Raises:
        UsageError: the file cannot be written, or its name says another kind of file.
    """
    check_png(path)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(6, 6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True)
    numbers = [epoch.number for epoch in curve.epochs]
    # Dots, since one epoch alone makes no line.
    above.plot(numbers, [epoch.training_loss for epoch in curve.epochs], marker=".", label="training")
    above.plot(numbers, [epoch.validation_loss for epoch in curve.epochs], marker=".", label="validation")
    tempered = [epoch.tempered_loss for epoch in curve.epochs]
    above.plot(numbers, tempered, marker=".", color="C2", label="validation, at the temperature that suits it")
    above.set_ylabel("cross-entropy")
    below.plot(numbers, [epoch.accuracy for epoch in curve.epochs], marker=".", color="C1")
    below.set_ylabel("accuracy on the validation items")
    below.set_xlabel("epoch")
    below.xaxis.set_major_locator(MaxNLocator(integer=True))
    best = curve.best
    for axes in (above, below):
        axes.axvline(best.number, color="0.6", linewidth=0.8, linestyle="--", label=f"best: epoch {best.number}")
        axes.grid(which="major", alpha=0.3)
    if curve.beginning is not None:
        name = "beginning (kept)" if curve.beginning.kept else "beginning"
        above.axhline(curve.beginning.tempered_loss, color="C2", linewidth=0.8, linestyle=":", label=name)
        below.axhline(curve.beginning.accuracy, color="C1", linewidth=0.8, linestyle=":", label=name)
    below.plot([best.number], [best.accuracy], "o", color="C3", zorder=3, label=f"accuracy {best.accuracy:.4f}")
    above.legend(fontsize=8)
    below.legend(fontsize=8)
    try:
        figure.savefig(path, format="png")
    except OSError as error:
        raise UsageError(f"The picture {path} cannot be written: {error.strerror}. Give another file.") from error
