"""How early the frozen network stops to help: probes of each block, from the input to ``pooled``.

The later layers of a network are about the data that it was trained on (J. Yosinski and others, "How transferable are
features in deep neural networks?", NIPS 2014). Where they go on helping, these images are like that data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from featcache.strategies.advise.outcome import Compared, Outcome, compare, plain

MOST = 12
"""Blocks that are probed; of more some are passed over evenly."""


@dataclass(frozen=True)
class Depth:
    """Probes by depth.

    Attributes:
        layers: names, from the input to ``pooled``.
        depths: (l,) relative depth, from 0 at the input to 1 at ``pooled``.
        outcomes: of each layer.
        similarity: relative depth of the earliest layer that is not worse than the most accurate one beyond doubt.
            Near 1: each layer up to the last ones still helps, the images are like those that the network learned
            from. The smaller, the earlier it has given all that it can, and the less its last layers are about these
            images.
        late_gain: ``pooled`` compared with the block in the middle; None where there is none.
    """

    layers: tuple[str, ...]
    depths: tuple[float, ...]
    outcomes: tuple[Outcome, ...]
    similarity: float
    late_gain: Compared | None

    @property
    def best(self) -> int:
        """Place of the most accurate layer, of equals the earliest."""
        return int(np.argmax([outcome.right.mean() for outcome in self.outcomes]))

    def to_dict(self, units: np.ndarray, seed: int) -> dict[str, Any]:
        """As plain values."""
        return {
            "layers": [
                {"layer": layer, "depth": depth, "accuracy": plain(outcome.accuracy(units, seed))}
                for layer, depth, outcome in zip(self.layers, self.depths, self.outcomes, strict=True)
            ],
            "best": self.layers[self.best],
            "similarity": self.similarity,
            "late_gain": None if self.late_gain is None else self.late_gain.to_dict(),
        }


def probed_blocks(layers: Sequence[str]) -> tuple[list[str], list[float]]:
    """Blocks to probe, evenly where there are very many, and their relative depths.

    Args:
        layers: all blocks in network order, without ``pooled``.
    """
    places = np.unique(np.linspace(0, len(layers) - 1, min(MOST, len(layers))).round().astype(int))
    return [layers[place] for place in places], [(int(place) + 1) / (len(layers) + 1) for place in places]


def by_depth(
    layers: Sequence[str], depths: Sequence[float], outcomes: Sequence[Outcome], units: np.ndarray, seed: int
) -> Depth:
    """What the probes say together.

    Args:
        layers, depths, outcomes: of each layer in network order, ``pooled`` last.
        units: (n,) unit of each item.
        seed: of the bootstrap.
    """
    confidence = 1 - 0.05 / max(1, len(layers) - 1)
    best = int(np.argmax([outcome.right.mean() for outcome in outcomes]))
    earliest = best
    for place in range(best):
        found = compare(outcomes[best], outcomes[place], units, confidence=confidence, seed=seed)
        if found is None or found.better != outcomes[best].name:
            earliest = place
            break
    middle = int(np.argmin(np.abs(np.array(depths[:-1]) - 0.5))) if len(layers) > 1 else None
    late = None if middle is None else compare(outcomes[-1], outcomes[middle], units, seed=seed)
    return Depth(tuple(layers), tuple(depths), tuple(outcomes), depths[earliest], late)
