"""How several layers are weighed against each other: the scales that their vectors are divided by.

Layers differ in size and width, and what a head makes of each depends on one number per layer. Three ways to set it are
compared, and the last layer alone beside them where no layers were named, by the exact leave-one-out log-loss of ridge
regression (`featcache.heads.ridge`) on images of the training part. A common factor makes the mean square of a number 1
(about the mean or not), which heads that learn by gradients count on.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from featcache.training.layer_use import LayerUse, scale_layers

if TYPE_CHECKING:
    from featcache.training.dataset import FeatureDataset

WEIGHTINGS = {
    "equal centred norm": {"centred": True, "per_element": False},
    "equal norm": {"centred": False, "per_element": False},
    "per element": {"centred": False, "per_element": True},
}
"""Arguments of `layer_uses`. Of equally good ones the first is chosen."""
ALONE = "the last layer alone"

COMPARED = 500
"""Images that the choice is made on: it is as good as on all (`scripts/bench/stack.py --weighting`)."""
_EQUAL = 1e-4
"""Losses in nats that differ by less are equal: rounding must not choose."""
_PER_CLASS = 3
_BATCH = 8192
_CONSTANT = 1e-6


@dataclass(frozen=True)
class LayerChoice:
    """How the layers are weighed.

    Attributes:
        uses: the layers that are read, with their scales.
        weighting: a name in `WEIGHTINGS`, or `ALONE`; None for a single layer.
        losses: leave-one-out log-loss by name; empty where nothing was compared.
        compared: images that it was computed on.
    """

    uses: tuple[LayerUse, ...]
    weighting: str | None = None
    losses: dict[str, float] | None = None
    compared: int = 0

    def report(self) -> dict[str, object] | None:
        """For a head's report; None for a single layer."""
        if self.losses is None:
            return None
        return {"weighting": self.weighting, "log_loss": self.losses, "compared_on": self.compared}


def layer_uses(
    dataset: FeatureDataset, rows: np.ndarray, *, centred: bool = False, per_element: bool = True
) -> tuple[LayerUse, ...]:
    """The layers with their scales, from *rows* in all their views; a single layer has the scale 1.

    Args:
        dataset: labeled vectors.
        rows: (m,) row numbers.
        centred: subtract the mean first.
        per_element: root mean square of a number, so that wide layers weigh more; else of the whole vector.
    """
    scales = np.ones(len(dataset.layers))
    if len(dataset.layers) > 1:
        widths, edges = np.array(dataset.widths), np.cumsum([0, *dataset.widths])
        total, view_rows = np.zeros(edges[-1]), dataset.view_rows(rows)
        squares = np.zeros(len(widths))
        for start in range(0, len(view_rows), _BATCH):
            X = dataset.read_views(view_rows[start : start + _BATCH])
            squares += [float(np.square(X[:, a:b], dtype=np.float64).sum()) for a, b in pairwise(edges)]
            total += X.sum(axis=0, dtype=np.float64)
        about = squares
        if centred:
            about = squares - [float(np.square(total[a:b]).sum()) / len(view_rows) for a, b in pairwise(edges)]
            about = np.where(about > _CONSTANT**2 * squares, about, 0)  # the rest is rounding
        roots = np.sqrt(about / (len(view_rows) * (widths if per_element else widths.mean())))
        scales = np.where(roots > 0, roots, 1.0)
    return tuple(
        LayerUse(name, shape, float(scale))
        for name, shape, scale in zip(dataset.layers, dataset.shapes, scales, strict=True)
    )


def choose_layers(dataset: FeatureDataset, rows: np.ndarray, *, alone: bool, seed: int) -> LayerChoice:
    """The weighting with the lowest leave-one-out log-loss of ridge regression.

    Args:
        dataset: labeled vectors.
        rows: (m,) row numbers to learn from.
        alone: whether the last layer alone is among the candidates; if it is chosen, only it is read.
        seed: draws the images that are compared, where there are more than `COMPARED` and three a class.
    """
    if len(dataset.layers) == 1:
        return LayerChoice(layer_uses(dataset, rows))
    if dataset.labels is not None:
        # With several labels per image there is no leave-one-out loss; the best of the measurements is taken.
        return LayerChoice(layer_uses(dataset, rows, **next(iter(WEIGHTINGS.values()))), next(iter(WEIGHTINGS)), {})
    from featcache.heads.ridge import RidgeHead  # it imports scikit-learn, which reading vectors can do without

    some = _sample(dataset, rows, seed)
    X, y, groups = dataset.read(some), dataset.y[some], dataset.groups[some]
    losses, last = {}, X.shape[1] - dataset.widths[-1]
    for name, how in WEIGHTINGS.items():
        scaled = scale_layers(X, layer_uses(dataset, some, **how))
        losses[name] = float(RidgeHead().fit(scaled, y, groups).scores_.min())
    if alone:
        losses[ALONE] = float(RidgeHead().fit(X[:, last:], y, groups).scores_.min())
    best = next(name for name, loss in losses.items() if loss <= min(losses.values()) + _EQUAL)
    if best == ALONE:
        uses: tuple[LayerUse, ...] = (LayerUse(dataset.layers[-1], dataset.shapes[-1], 1.0),)
    else:
        uses = layer_uses(dataset, rows, **WEIGHTINGS[best])
    return LayerChoice(uses, best, losses, len(some))


def _sample(dataset: FeatureDataset, rows: np.ndarray, seed: int) -> np.ndarray:
    """`COMPARED` rows, or three a class if those are more, of each class its share, with all others of their groups."""
    most = max(COMPARED, _PER_CLASS * len(np.unique(dataset.y[rows])))
    if len(rows) <= most:
        return rows
    mixed = rows[np.random.default_rng(seed).permutation(len(rows))]
    rank = np.empty(len(mixed))
    for label in np.unique(dataset.y[mixed]):
        of = np.flatnonzero(dataset.y[mixed] == label)
        rank[of] = (np.arange(len(of)) + 0.5) / len(of)  # so that each class has its share
    first = mixed[np.argsort(rank, kind="stable")[:most]]
    return rows[np.isin(dataset.groups[rows], dataset.groups[first])]
