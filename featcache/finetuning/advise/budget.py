"""The time that advice may take: parts run while their estimate fits what is left, and all others say why not.

An estimate may be wrong, above all where the machine does other work too. So a part that reports to a `Deadline` is
ended at its next step once nothing is left.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import torch

from featcache.core.errors import FeatcacheError, UsageError
from featcache.core.progress import Progress, duration

_T = TypeVar("_T")
_ENDING = 0.02
"""Share of the budget for comparing what was measured."""
_UNITS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600}


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


class BudgetSpentError(FeatcacheError):
    """A part was not done when nothing was left."""


class Budget:
    """Seconds to spend, and what became of each part.

    Args:
        seconds: in all; a small part of them is for what comes after the measurements.
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
        """Seconds that are left to measure, 0 or more."""
        return max(0.0, (1 - _ENDING) * self.seconds - self.spent)

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


class Deadline:
    """Passes on what work reports, and ends the work when the budget is spent.

    Args:
        budget: the time.
        shown: what is passed on to.
    """

    def __init__(self, budget: Budget, shown: Progress) -> None:
        self._budget, self._shown = budget, shown

    def start(self, what: str, total: int | None, unit: str) -> None:
        """Pass it on."""
        self._shown.start(what, total, unit)

    def advance(self, n: int = 1) -> None:
        """Pass it on.

        Raises:
            BudgetSpentError: nothing is left.
        """
        self._shown.advance(n)
        if not self._budget.left:
            self._shown.finish()
            raise BudgetSpentError("it took longer than was thought, and was ended as the budget was spent")

    def note(self, text: str) -> None:
        """Pass it on."""
        self._shown.note(text)

    def finish(self) -> None:
        """Pass it on."""
        self._shown.finish()


def seconds_of(text: str) -> float:
    """A time such as ``90``, ``90s``, ``10m`` or ``1.5h`` in seconds.

    Raises:
        UsageError: it is no such time, or not above 0.
    """
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(s|m|min|h)?\s*", text, flags=re.ASCII)
    seconds = math.nan if found is None else float(found[1]) * _UNITS[found[2] or ""]
    if not 0 < seconds < math.inf:
        raise UsageError(f"The budget is a time above 0 such as 90s, 10m or 2h, not {text!r}.")
    return seconds
