"""Which strategy to recommend: the cheapest to use, unless another is better beyond chance.

The base is ``softmax``, or the stack on all blocks where its mean log-loss is lower: that costs next to nothing more
to use, so the better estimate decides, not proof. Of the strategies that are better than the base beyond chance, and
not worse than another of these, the cheapest is recommended. All comparisons with one strategy hold together at 95 %
(Bonferroni). Two are compared on the items that both answered; as the budget ends trials after some folds, comparisons
can contradict each other: where each strategy that beats the base loses to another one, the base stays.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from featcache.metrics.classification import detectable_gain, paired, sign_test
from featcache.metrics.intervals import wilson

ALL_BLOCKS, FROM, SCRATCH = "stack --layers all-blocks", "finetune --from", "finetune --init scratch"
ORDER = ("softmax", ALL_BLOCKS, "mlp", "knn", FROM, "finetune", SCRATCH)
"""From cheap to expensive per answer of the finished head, not by training time: heads on frozen vectors, which one
pass gives for all, then those with a tail or a whole network of their own."""


@dataclass(frozen=True)
class Outcome:
    """Answers of the strategy *name* to items that it was not trained on.

    Attributes:
        rows, right, losses: (m,) row numbers, ascending; 1 for a right answer, or a share of several fits; log-losses.
        learned, seconds, fits: training items of a fit on average, seconds of all fits and answers, and their number.
        note, shortened: what is special about it, and the epochs of a trial that the budget cut short.
    """

    name: str
    rows: np.ndarray
    right: np.ndarray
    losses: np.ndarray
    learned: float
    seconds: float
    fits: int = 1
    note: str | None = None
    shortened: int | None = None

    def joined(self, other: Outcome) -> Outcome:
        """This one with the answers of the same strategy to further items."""
        order = np.argsort(rows := np.concatenate([self.rows, other.rows]), kind="stable")
        right, losses = np.concatenate([self.right, other.right]), np.concatenate([self.losses, other.losses])
        fits, seconds = self.fits + other.fits, self.seconds + other.seconds
        learned = (self.learned * self.fits + other.learned * other.fits) / fits
        joined = replace(self, rows=rows[order], right=right[order], losses=losses[order])
        return replace(joined, learned=learned, seconds=seconds, fits=fits)

    def to_dict(self, units: np.ndarray, seed: int) -> dict[str, Any]:
        """Plain values, with 95 % intervals over the units (n,) of all items."""
        here = units[self.rows]
        accuracy, log_loss = _interval(self.right, here, seed), _interval(self.losses, here, seed)
        if accuracy["low"] is None:
            accuracy["low"], accuracy["high"] = wilson(float(self.right.mean()), len(np.unique(here)))
        plain = {name: getattr(self, name) for name in ("name", "learned", "fits", "seconds", "note", "shortened")}
        return {**plain, "items": len(self.rows), "accuracy": accuracy, "log_loss": log_loss}


@dataclass(frozen=True, slots=True)
class Compared:
    """Accuracy of the strategy *a* minus that of *b*.

    Attributes:
        items, units: how many both answered.
        difference, low, high, confidence: with its bootstrap interval over units.
        p: of the two-sided sign test over units, since the bootstrap alone trusts a handful of units too much.
        detectable: about the smallest difference that both would tell from chance, if as many units differed, or None.
    """

    a: str
    b: str
    items: int
    units: int
    difference: float
    low: float
    high: float
    confidence: float
    p: float
    detectable: float | None

    @property
    def better(self) -> str | None:
        """The one that is better beyond chance; None where neither is."""
        if self.p >= 1 - self.confidence or self.low <= 0 <= self.high:
            return None
        return self.a if self.low > 0 else self.b

    def reversed(self) -> Compared:
        """*b* compared with *a*."""
        return replace(self, a=self.b, b=self.a, difference=-self.difference, low=-self.high, high=-self.low)

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values, and which is ``better``."""
        return {**asdict(self), "better": self.better}


@dataclass(frozen=True, slots=True)
class Choice:
    """The recommended strategy *name*.

    Attributes:
        over: what shows that it is better than the base, or that the base is better than the cheapest.
        second: the runner-up compared with it: the one that comes nearest, or is ahead by what may be chance.
        worse, comparisons: for each strategy that loses to another the clearest comparison; and all that were made.
        contradictory: each strategy that is better than the base is worse than another.
    """

    name: str
    over: Compared | None
    second: Compared | None
    worse: tuple[Compared, ...]
    contradictory: bool
    comparisons: tuple[Compared, ...]


def kind_of(name: str) -> str:
    """Which of `ORDER` a strategy is: ``finetune --from`` for ``finetune --from blocks.6``."""
    return FROM if name.startswith(FROM) else name


def cheapest_first(names: Iterable[str]) -> list[str]:
    """Names from cheap to expensive; of several split points in the order given."""
    return sorted(names, key=lambda name: ORDER.index(kind_of(name)))


def recommend(outcomes: Mapping[str, Outcome], units: np.ndarray, seed: int = 0) -> Choice:
    """Choose among one strategy or more, by name; items that are no independent evidence share one of *units* (n,)."""
    names = cheapest_first(outcomes)
    base, confidence = names[0], 1 - 0.05 / max(1, len(names) - 1)
    if base == "softmax" and ALL_BLOCKS in outcomes:
        base = min("softmax", ALL_BLOCKS, key=lambda name: float(outcomes[name].losses.mean()))
    made: dict[tuple[str, str], Compared | None] = {}

    def compared(a: str, b: str) -> Compared | None:
        if (b, a) in made:
            return None if (known := made[b, a]) is None else known.reversed()
        if (a, b) not in made:
            made[a, b] = compare(outcomes[a], outcomes[b], units, confidence=confidence, seed=seed)
        return made[a, b]

    def wins(names: Iterable[str], over: str) -> list[Compared]:
        found = [compared(name, over) for name in names if name != over]
        return [one for one in found if one is not None and one.better == one.a]

    ahead = [one.a for one in wins(names, base)]
    losses = [wins(ahead if name in (base, *ahead) else [base, *ahead], name) for name in names]
    worse = tuple(max(one, key=lambda found: found.low) for one in losses if one)
    losers = {found.b for found in worse}
    unbeaten = [name for name in ahead if name not in losers]
    chosen = unbeaten[0] if unbeaten else base
    near = [compared(name, chosen) for name in names if name != chosen and (name not in losers or name == base)]
    return Choice(
        name=chosen,
        over=next(iter(wins([chosen], base if chosen != base else names[0])), None),
        second=max((one for one in near if one is not None), key=lambda found: found.difference, default=None),
        worse=worse,
        contradictory=bool(ahead) and not unbeaten,
        comparisons=tuple(found for found in made.values() if found is not None),
    )


def compare(a: Outcome, b: Outcome, units: np.ndarray, *, confidence: float = 0.95, seed: int = 0) -> Compared | None:
    """Two strategies compared by accuracy on the items that both answered, over *units* (n,); None without any."""
    rows, at_a, at_b = np.intersect1d(a.rows, b.rows, return_indices=True)
    if not len(rows):
        return None
    right_a, right_b, here = a.right[at_a], b.right[at_b], units[rows]
    # More resamples than usual: the ends of intervals wider than 95 % are rare.
    found = paired(right_a, right_b, units=here, seed=seed, resamples=4000, confidence=confidence)
    low, high = (found.difference, found.difference) if math.isnan(found.low) else (found.low, found.high)
    gains = np.bincount(np.unique(here, return_inverse=True)[1], right_a - right_b)
    least = detectable_gain(gains, 1 - confidence, len(rows) / len(gains))
    least = None if least is None else max(least / len(rows), (high - low) / 2)
    p = sign_test(gains)
    return Compared(a.name, b.name, len(rows), len(gains), found.difference, low, high, confidence, p, least)


def _interval(values: np.ndarray, units: np.ndarray, seed: int) -> dict[str, float | None]:
    found = paired(values, np.zeros(len(values)), units=units, seed=seed).to_dict()
    return {"value": found["difference"], "low": found["low"], "high": found["high"]}
