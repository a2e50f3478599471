"""What is told before a head is fitted that takes long for the size of the problem.

A head that knows how its time grows has ``seconds_needed(n, d, k)``, in seconds of processor time.
`scripts/bench/head_seconds.py` compares that with what the heads take.
"""

from __future__ import annotations

from typing import Any

from featcache.core.progress import duration

LONG = 60.0
"""Seconds of processor time from which on a fit is told to be long."""
_CLEARLY = 5.0


def told_if_long(estimator: Any, name: str, n: int, d: int, k: int, fits: int = 1) -> str | None:
    """How long a head takes, and ``ridge`` where that is clearly quicker; None where it is not long or not known.

    Args:
        estimator: an unfitted head, perhaps with ``seconds_needed(n, d, k)``.
        name: what the head is called.
        n, d, k: vectors, numbers a vector, classes.
        fits: how often it is fitted.
    """
    ask = getattr(estimator, "seconds_needed", None)
    if ask is None or (seconds := fits * ask(n, d, k)) < LONG:
        return None
    from featcache.heads.ridge import RidgeHead

    often = "" if fits == 1 else f" in {fits} fits"
    text = (
        f"The head {name} takes about {duration(seconds)} of processor time for {n:,} vectors of {d:,} numbers and "
        f"{k:,} classes{often}"
    )
    ridge = fits * RidgeHead().seconds_needed(n, d, k)
    return f"{text}; the head ridge about {duration(ridge)}." if _CLEARLY * ridge < seconds else f"{text}."
