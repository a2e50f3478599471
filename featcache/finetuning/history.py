"""What a training measured after each epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Epoch:
    """One pass over the training items, and what the network was worth after it.

    Attributes:
        number: from 1.
        training_loss: mean cross-entropy of the items in nats, each as the network was when its batch came; with
            label smoothing where there is any.
        validation_loss: mean cross-entropy of the validation items in nats, without label smoothing.
        tempered_loss: the same at the temperature that makes it least. It decides which epoch is the best, since label
            smoothing makes a network less sure than it is right, which one number mends.
        accuracy: share of the validation items whose likeliest class is theirs.
        rate: learning rate of the last stage at the last step.
        seconds: of the pass and the validation.
    """

    number: int
    training_loss: float
    validation_loss: float
    tempered_loss: float
    accuracy: float
    rate: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Beginning:
    """What a network was worth before it was trained.

    Attributes:
        validation_loss, tempered_loss, accuracy: as of an `Epoch`.
        kept: its weights were kept, since training made nothing better beyond chance.
    """

    validation_loss: float
    tempered_loss: float
    accuracy: float
    kept: bool


@dataclass(frozen=True, slots=True)
class Curve:
    """A training, epoch by epoch.

    Attributes:
        epochs: in order, one or more.
        ended: why there are no more: ``"epochs"``, all were done, or ``"patience"``, the validation loss did not
            get better any more.
        beginning: of a network that knew something; None where the training was not compared with it.
    """

    epochs: tuple[Epoch, ...]
    ended: Literal["epochs", "patience"]
    beginning: Beginning | None = None

    @property
    def best(self) -> Epoch:
        """The epoch of the least tempered validation loss."""
        return best_of(self.epochs)

    @property
    def kept(self) -> int:
        """The number of the epoch whose weights were kept; 0 for those of the beginning."""
        return 0 if self.beginning is not None and self.beginning.kept else self.best.number

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Curve:
        """The curve of `to_dict`."""
        beginning = data.get("beginning")
        return cls(
            tuple(Epoch(**epoch) for epoch in data["epochs"]),
            data["ended"],
            None if beginning is None else Beginning(**beginning),
        )

    def to_dict(self) -> dict[str, Any]:
        """The curve as plain values, with ``best_epoch`` and ``kept_epoch``."""
        return {
            "epochs": [asdict(epoch) for epoch in self.epochs],
            "ended": self.ended,
            "beginning": None if self.beginning is None else asdict(self.beginning),
            "best_epoch": self.best.number,
            "kept_epoch": self.kept,
        }


def best_of(epochs: Sequence[Epoch]) -> Epoch:
    """The epoch of the least tempered validation loss; the first of equal ones."""
    return min(epochs, key=lambda epoch: epoch.tempered_loss)
