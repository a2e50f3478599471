"""How early the frozen network stops to help: probes of each block, from the input to ``pooled``.

The later layers of a network are about the data that it was trained on (J. Yosinski and others, "How transferable are
features in deep neural networks?", NIPS 2014). Where they go on helping, these images are like that data.

That no later layer is shown to be better is not yet a finding: with few images nothing can be shown. So the depth at
which the network has given all that it can is told only where the intervals exclude that a later layer is better by
more than `MARGIN` (a test of non-inferiority; S. Wellek, "Testing Statistical Hypotheses of Equivalence and
Noninferiority", 2nd edition, chapter 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from featcache.finetuning.advise.outcome import Compared, Outcome, compare, plain

MOST = 12
"""Blocks that are probed; of more some are passed over evenly."""
MARGIN = 0.02
"""Share of right answers that counts as no difference: about what another draw of the hold-out of a thousand images
moves the score of one and the same head by, so that nobody would choose a layer for it."""


@dataclass(frozen=True)
class Depth:
    """Probes by depth.

    Attributes:
        layers: names, from the input to ``pooled``.
        depths: (l,) relative depth, from 0 at the input to 1 at ``pooled``.
        outcomes: of each layer.
        earliest: place of the first layer that is not worse than the most accurate one beyond doubt.
        unknown: why it is not known whether later layers help more than the earliest; None where each of them is
            better by `MARGIN` at most.
        late_gain: ``pooled`` compared with the block in the middle; None where there is none.
    """

    layers: tuple[str, ...]
    depths: tuple[float, ...]
    outcomes: tuple[Outcome, ...]
    earliest: int
    unknown: str | None
    late_gain: Compared | None

    @property
    def at_least(self) -> float:
        """Relative depth of the earliest layer: up to it the layers help beyond doubt."""
        return self.depths[self.earliest]

    @property
    def similarity(self) -> float | None:
        """Relative depth at which the network has given all that it can; None where later layers may give more.

        Near 1: each layer up to the last ones still helps, the images are like those that the network learned from.
        The smaller, the less its last layers are about these images.
        """
        return self.at_least if self.unknown is None else None

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
            "similarity_at_least": self.at_least,
            "similarity_unknown": self.unknown,
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
    unknown = _unknown(
        [
            compare(later, outcomes[earliest], units, confidence=confidence, seed=seed)
            for later in outcomes[earliest + 1 :]
        ]
    )
    middle = int(np.argmin(np.abs(np.array(depths[:-1]) - 0.5))) if len(layers) > 1 else None
    late = None if middle is None else compare(outcomes[-1], outcomes[middle], units, seed=seed)
    return Depth(tuple(layers), tuple(depths), tuple(outcomes), earliest, unknown, late)


def ceiling(found: Compared) -> float:
    """The most by which A may be better than B, with half of what the confidence leaves open.

    The bootstrap knows only what it has seen: of n units on which A never won it says that A cannot. Yet what happens
    to a share q of all units is not seen among n with probability (1 - q)^n (for 95 % that makes q about 3 / n:
    J. Hanley and A. Lippman-Hand, "If nothing goes wrong, is everything all right?", JAMA 249, 1983).
    """
    return float(max(found.high, 1 - ((1 - found.confidence) / 2) ** (1 / found.units)))


def _unknown(later: Sequence[Compared | None]) -> str | None:
    """Why it is not known that none of the later layers is better, by their comparisons with the earliest."""
    found = [(ceiling(compared), compared) for compared in later if compared is not None]
    if not found:
        return None
    most, by = max(found, key=lambda pair: pair[0])
    if most <= MARGIN:
        return None
    return (
        f"by its {100 * by.confidence:.3g} % interval on {by.items:,} items {by.a} may be better than {by.b} by up to "
        f"{100 * most:.1f} points"
    )
