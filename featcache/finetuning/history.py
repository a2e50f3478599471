"""What a training measured after each epoch, and its figure.

matplotlib is imported when a curve is drawn, and no window is opened.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from featcache.core.outputs import FIGURE, check_output
from featcache.metrics.plots import save_figure


@dataclass(frozen=True, slots=True)
class Epoch:
    """One pass over the training items, and how good the network was after it.

    Attributes:
        number: from 1.
        training_loss: mean cross-entropy of the items in nats, each as the network was when its batch came; with
            label smoothing where there is any.
        validation_loss: mean cross-entropy of the validation items in nats, without label smoothing.
        tempered_loss: the same at the temperature that makes it least. It decides which epoch is the best, since label
            smoothing makes a network less sure than it is right, which one number mends.
        accuracy: share of the validation items whose likeliest class is theirs.
        lr: learning rate of the last stage at the last step.
        seconds: of the pass and the validation.
    """

    number: int
    training_loss: float
    validation_loss: float
    tempered_loss: float
    accuracy: float
    lr: float
    seconds: float


@dataclass(frozen=True, slots=True)
class ProbeScore:
    """How good the linear probe was with which the training began.

    Attributes:
        validation_loss, tempered_loss, accuracy: as of an `Epoch`.
        kept: it was kept, since fine-tuning did not beat it beyond chance.
        p: how probable so good an epoch as the best would be, if no epoch were better than the probe; None in a curve
            of an earlier version.
    """

    validation_loss: float
    tempered_loss: float
    accuracy: float
    kept: bool
    p: float | None = None


@dataclass(frozen=True, slots=True)
class Curve:
    """A training, epoch by epoch.

    Attributes:
        epochs: in order, one or more.
        ended: why there are no more: ``"epochs"``, all were done; ``"patience"``, the validation loss did not
            get better any more; or ``"non-finite"``, a loss was no longer finite.
        linear_probe: with which the training began; None where it began with new or random layers.
        losses: (epochs, n) of each validation item after each epoch, at the temperature of that epoch; empty in a curve
            of `from_dict`.
    """

    epochs: tuple[Epoch, ...]
    ended: Literal["epochs", "patience", "non-finite"]
    linear_probe: ProbeScore | None = None
    losses: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)), repr=False, compare=False)

    @property
    def best(self) -> Epoch:
        """The epoch of the least tempered validation loss."""
        return best_of(self.epochs)

    @property
    def kept(self) -> int:
        """The number of the epoch whose weights were kept; 0 where the linear probe was kept."""
        return 0 if self.linear_probe is not None and self.linear_probe.kept else self.best.number

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Curve:
        """The curve of `to_dict`."""
        probe = data.get("linear_probe")
        return cls(
            tuple(Epoch(**epoch) for epoch in data["epochs"]),
            data["ended"],
            None if probe is None else ProbeScore(**probe),
        )

    def to_dict(self) -> dict[str, Any]:
        """The curve as plain values, with ``best_epoch`` and ``kept_epoch``."""
        return {
            "epochs": [asdict(epoch) for epoch in self.epochs],
            "ended": self.ended,
            "linear_probe": None if self.linear_probe is None else asdict(self.linear_probe),
            "best_epoch": self.best.number,
            "kept_epoch": self.kept,
        }


def best_of(epochs: Sequence[Epoch]) -> Epoch:
    """The epoch of the least tempered validation loss; the first of equal ones."""
    return min(epochs, key=lambda epoch: epoch.tempered_loss)


def draw_learning_curve(curve: Curve, path: str | Path, *, force: bool = False) -> None:
    """Write training loss, validation loss and validation accuracy over the epochs as a PNG.

    Args:
        curve: the training; its best epoch is marked, and the linear probe.
        path: the file, ``*.png``; a figure of featcache that is there is replaced.
        force: replace any other file too.

    Raises:
        UsageError: the file cannot be written, or there is another one.
    """
    check_output(path, FIGURE, force=force)
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(6, 6), dpi=110, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    numbers = [epoch.number for epoch in curve.epochs]
    # Dots, since one epoch alone makes no line.
    above.plot(numbers, [epoch.training_loss for epoch in curve.epochs], marker=".", label="training")
    above.plot(numbers, [epoch.validation_loss for epoch in curve.epochs], marker=".", label="validation")
    tempered = [epoch.tempered_loss for epoch in curve.epochs]
    above.plot(numbers, tempered, marker=".", color="C2", label="validation, at its best temperature")
    above.set_ylabel("cross-entropy")
    below.plot(numbers, [epoch.accuracy for epoch in curve.epochs], marker=".", color="C1")
    below.set_ylabel("accuracy on the validation items")
    below.set_xlabel("epoch")
    below.xaxis.set_major_locator(MaxNLocator(integer=True))
    best = curve.best
    for axes in (above, below):
        axes.axvline(best.number, color="0.6", linewidth=0.8, linestyle="--", label=f"best: epoch {best.number}")
        axes.grid(which="major", alpha=0.3)
    if curve.linear_probe is not None:
        name = "linear probe (kept)" if curve.linear_probe.kept else "linear probe"
        above.axhline(curve.linear_probe.tempered_loss, color="C2", linewidth=0.8, linestyle=":", label=name)
        below.axhline(curve.linear_probe.accuracy, color="C1", linewidth=0.8, linestyle=":", label=name)
    below.plot([best.number], [best.accuracy], "o", color="C3", zorder=3, label=f"accuracy {best.accuracy:.4f}")
    above.legend(fontsize=8)
    below.legend(fontsize=8)
    save_figure(figure, path, force=force)
