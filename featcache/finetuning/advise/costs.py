"""What each strategy would cost on this machine, whether it was tried or not."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one strategy on all items to learn from.

    Attributes:
        strategy: its name.
        seconds: about how long it takes at most, with what has to be extracted first; None where no rate is known.
        bytes: what it puts into the store first; None where that is not known.
        how: where the seconds come from, in words.
    """

    strategy: str
    seconds: float | None
    bytes: int | None
    how: str

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values."""
        return asdict(self)
