"""The time that advice may take: parts run while their estimate fits what is left, and all others say why not."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import torch

from featcache.errors import FeatcacheError
from featcache.progress import duration

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Part:
    """One measurement, made or not.

    Attributes:
        name: what was to be measured.
        estimate: seconds that it was thought to take; None where nothing was known before.
        seconds: that it took; None where it was not made.
        reason: why it was not made, or could not be ended.
    """

    name: str
    estimate: float | None
    seconds: float | None
    reason: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values."""
        return asdict(self)


class Budget:
    """Seconds to spend, and what became of each part.

    Args:
        seconds: in all.
        clock: tells the time in seconds.

    Attributes:
        seconds: in all.
        parts: in the order in which they were decided on.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds, self.parts = seconds, list[Part]()
        self._clock = clock
        self._began = clock()

    @property
    def spent(self) -> float:
        """Seconds since the beginning."""
        return self._clock() - self._began

    @property
    def left(self) -> float:
        """Seconds that are left, 0 or more."""
        return max(0.0, self.seconds - self.spent)

    def run(self, name: str, estimate: float | None, work: Callable[[], _T]) -> _T | None:
        """Do a part, if its estimate fits what is left.

        Args:
            name: of the part.
            estimate: seconds; None for what has to be done in any case.
            work: does it.

        Returns:
            What *work* gives; None where it was not begun or could not be done, with the reason in ``parts``.
        """
        if estimate is not None and estimate > self.left:
            self.leave_out(name, f"it would take about {duration(estimate)}, {self.said_left()}", estimate)
            return None
        began = self._clock()
        try:
            result = work()
        except (FeatcacheError, MemoryError, torch.OutOfMemoryError) as error:
            if estimate is None:
                raise
            self.parts.append(Part(name, estimate, self._clock() - began, " ".join(str(error).split())))
            return None
        self.parts.append(Part(name, estimate, self._clock() - began))
        return result

    def leave_out(self, name: str, reason: str, estimate: float | None = None) -> None:
        """Note a part that is not made."""
        self.parts.append(Part(name, estimate, None, reason))

    def said_left(self) -> str:
        """What is left, in words."""
        return f"and {duration(self.left)} of {duration(self.seconds)} are left"
