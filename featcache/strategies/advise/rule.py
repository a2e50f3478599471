"""Which strategy is recommended: the cheapest that nothing measured speaks against.

The cheapest strategy stays unless another is better beyond doubt on the items that both answered. Then, of those that
are better than it beyond doubt and are not worse than any other beyond doubt, the cheapest is taken. So what is
recommended instead of the cheapest always has a paired interval to it that lies above 0. All comparisons with one
strategy hold together at 95 %: each interval is that much wider (Bonferroni's inequality).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from featcache.strategies.advise.outcome import Compared

ORDER = ("softmax", "multilayer", "mlp", "tune", "finetune", "scratch", "knn")
"""From cheap to dear; knn last, since it keeps all vectors and is worth that only where it is really better."""

Compare = Callable[[str, str], "Compared | None"]
"""From two names to their comparison; None where no item was answered by both."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What is recommended.

    Attributes:
        name: of the strategy.
        over: what shows that it is better than the cheapest; None where it is the cheapest.
        runner_up: the other one that comes nearest, or is ahead by what may be chance; None without any.
        second: the runner-up less the recommended; None without a runner-up.
        worse: of each strategy that is worse than another beyond doubt the comparison that shows it best.
        contradictory: some are better than the cheapest, but each of them is worse than another.
    """

    name: str
    over: Compared | None
    runner_up: str | None
    second: Compared | None
    worse: tuple[Compared, ...]
    contradictory: bool = False


def in_order(names: Sequence[str]) -> list[str]:
    """Names from cheap to dear; of several cuts those that train least come first, as they are given."""
    return sorted(names, key=lambda name: ORDER.index(name.partition(" ")[0]))


def confidence_for(strategies: int) -> float:
    """Of each interval, so that all comparisons with one strategy hold together at 95 %."""
    return 1 - 0.05 / max(1, strategies - 1)


def recommend(names: Sequence[str], compare: Compare) -> Choice:
    """Choose.

    Args:
        names: of the strategies that were measured, one or more.
        compare: compares two of them.
    """
    ordered = in_order(names)
    cheapest = ordered[0]
    ahead = {name: found for name in ordered[1:] if _better(found := compare(name, cheapest), name)}
    worse: list[Compared] = []
    for name in ordered:
        rivals = list(ahead) if name == cheapest or name in ahead else [cheapest, *ahead]
        beaten = [found for other in rivals if other != name and _better(found := compare(other, name), other)]
        if beaten:
            worse.append(max((c for c in beaten if c is not None), key=lambda c: c.low))
    losers = {found.b for found in worse}
    unbeaten = [name for name in ahead if name not in losers]
    chosen = unbeaten[0] if unbeaten else cheapest
    others = [name for name in ordered if name != chosen and (name not in losers or name == cheapest)]
    seconds = [(found, name) for name in others if (found := compare(name, chosen)) is not None]
    second = max(seconds, key=lambda pair: pair[0].difference) if seconds else None
    return Choice(
        chosen,
        ahead[chosen] if unbeaten else None,
        None if second is None else second[1],
        None if second is None else second[0],
        tuple(worse),
        contradictory=bool(ahead) and not unbeaten,
    )


def _better(found: Compared | None, name: str) -> bool:
    return found is not None and found.better == name
