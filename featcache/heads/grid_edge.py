"""Whether the best C of a grid lies inside it.

C is measured against the squares of the vectors: for vectors a thousand times as large the best C is a
million times smaller. So for vectors far from the scale of 1 the best C can lie outside of a fixed grid, and
the best of the grid is then its first or last. That alone says little: where classes are far apart all large C are as
good, and where vectors tell nothing all small ones are. It is the slope of the held-out loss at the edge that tells.
"""

from __future__ import annotations

import numpy as np

_STEEP = 0.01
"""A last step of the loss by more than this share of all its change: not flat."""
_FLAT = 1e-4
"""A loss that changes less over the whole grid, as a share of itself, is that of weights near 0, or of no penalty."""
_CONSTANT = 1e-6
"""Vectors that vary less than that, as a share of their largest number, are equal."""


class GridEdgeWarning(UserWarning):
    """The best C of those tried is at the edge of the grid."""


def edge_of_grid(Cs: np.ndarray, losses: np.ndarray, best: int, X: np.ndarray) -> str | None:
    """What is wrong with a grid that probably does not hold the best C, and what to do; None if nothing is.

    Args:
        Cs: (c,) the grid, ascending, of two or more.
        losses: (c,) mean held-out log-loss of each, infinite where it was not tried.
        best: the place of the C that was chosen.
        X: (n, d) the vectors.
    """
    advice = "or bring the vectors nearer to the scale of 1 (all multiplied by one number)."
    known = losses[np.isfinite(losses)]
    span = float(np.ptp(known))
    if span <= _FLAT * float(known.min()):
        if len(known) < len(Cs) or (np.ptp(X, axis=0) <= _CONSTANT * np.abs(X).max()).all():
            return None
        return (
            f"No C of the {len(Cs)} from {Cs[0]:g} to {Cs[-1]:g} changes the held-out loss, so the vectors are "
            f"probably far too small for them, or too large. Give other Cs, {advice}"
        )
    for place, neighbour, name, better in ((0, 1, "first", "smaller"), (len(Cs) - 1, len(Cs) - 2, "last", "larger")):
        if best == place and losses[neighbour] - losses[place] > _STEEP * span:
            return (
                f"The best C = {Cs[place]:g} is the {name} of the {len(Cs)} tried, and a {better} one would probably "
                f"be better. Give {better} Cs, {advice}"
            )
    return None
