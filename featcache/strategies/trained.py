"""What a training of a suffix or of a whole network leaves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import nn

from featcache.finetuning.history import Curve


@dataclass(frozen=True, slots=True)
class Trained:
    """A trained network.

    Attributes:
        model: from what it was trained on to scores (n, k), in evaluation mode.
        output: its last layer.
        classes: k labels.
        curve: of the training.
        fit: (m,) rows that were trained on.
        validation: rows that decided when the training ended.
        chosen: ``epoch`` whose weights were kept (0: those of the beginning), and what was chosen for the output that
            the training began with.
        temperature: that the output was divided by; None where it was not.
        refitted: items that the output learned from where the beginning was kept.
    """

    model: nn.Module
    output: nn.Linear
    classes: tuple[str, ...]
    curve: Curve
    fit: np.ndarray
    validation: np.ndarray
    chosen: Mapping[str, object]
    temperature: float | None
    refitted: int

    @property
    def learned(self) -> int:
        """How many items taught what answers: with the weights of the beginning, those that validated as well."""
        return len(self.fit) if self.curve.kept else self.refitted
