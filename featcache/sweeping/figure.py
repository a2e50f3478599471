"""A picture of how the held-out log-loss of the swept heads runs over C."""

from __future__ import annotations

import io
from collections.abc import Sequence

from featcache.training.sweep_cells import Cell
from featcache.training.sweep_report import called

_MARKERS = "osD^vP*X"


def draw(cells: Sequence[Cell], winner: Cell) -> bytes | None:
    """The curves of all cells that have one, as a PNG; None where none has.

    Args:
        cells: the cells.
        winner: the one to be drawn boldly.
    """
    shown = [cell for cell in cells if sum(loss is not None for _, loss in cell.curve) > 1]
    if not shown:
        return None
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

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
            label=f"{cell.head}, {called(cell.layers)}" + (" (winner)" if bold else ""),
        )
        best = min(points, key=lambda point: point[1])
        axes.plot(*best, marker="o", markersize=9, fillstyle="none", color="black", zorder=4)
    axes.set_xscale("log")
    axes.set_xlabel("C (less regularised →)")
    axes.set_ylabel("held-out log-loss (circle: least)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    made = io.BytesIO()
    figure.savefig(made, format="png")
    return made.getvalue()
