"""Which strategy is recommended: one of little cost, unless another is better beyond doubt.

The base is ``softmax``, or ``multilayer`` where its mean log-loss is lower: the same head on vectors of the same pass,
so its answers cost next to nothing more, and where nothing is to be lost the better estimate decides, not proof. (The
log-loss tells more of few items than the accuracy does.) No difference between the two is claimed.

The base stays unless another is better beyond doubt. Then, of those that are better than it beyond doubt and not worse
than another one of them beyond doubt, the first in `ORDER` is taken. So what is recommended instead of the base always
has a paired interval to it that lies above 0. All comparisons with one strategy hold together at 95 %: each interval is
that much wider (Bonferroni's inequality).

Two strategies are compared on the items that both answered. A trial that the budget ended after some folds answered the
items of these alone, so three comparisons may be about three sets of items and need not agree: each of those that are
better than the base may be worse than another of them on other items. Then the base stays, and the choice is
called contradictory; among strategies that answered the same items that cannot be. Two that share no item are not
compared, and neither counts as worse than the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from featcache.finetuning.advise.outcome import Compared, Outcome

ORDER = ("softmax", "multilayer", "mlp", "knn", "tune", "finetune", "scratch")
"""From cheap to dear by what an answer of the finished head costs, not by how long it takes to train.

The first four answer from the frozen network's vectors, which one pass gives for all heads and which the store keeps:
``softmax`` by one product with ``pooled``, ``multilayer`` by one with the vectors of all blocks, ``mlp`` by two
products, ``knn`` by the distance to every vector that it learned from, all of which its file holds. Behind them each
head has layers of its own, through which every image passes again for this head alone: the last ones for ``tune``, the
whole network for ``finetune`` and ``scratch``. These two cost the same to use; ``scratch`` is last as it trains longer.
"""

Compare = Callable[[str, str], "Compared | None"]
"""From two names to their comparison; None where no item was answered by both."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What is recommended.

    Attributes:
        name: of the strategy.
        over: what shows that it is better than the base, or that the base is better than the cheapest; None without.
        runner_up: the other one that comes nearest, or is ahead by what may be chance; None without any.
        second: the runner-up less the recommended; None without a runner-up.
        worse: of each strategy that is worse than another beyond doubt the comparison that shows it best.
        contradictory: some are better than the base, but each of them is worse than another.
    """

    name: str
    over: Compared | None
    runner_up: str | None
    second: Compared | None
    worse: tuple[Compared, ...]
    contradictory: bool = False


def cheapest_first(names: Sequence[str]) -> list[str]:
    """Names from cheap to dear; of several cuts those that train least come first, as they are given."""
    return sorted(names, key=lambda name: ORDER.index(name.partition(" ")[0]))


def confidence_for(strategies: int) -> float:
    """Of each interval, so that all comparisons with one strategy hold together at 95 %."""
    return 1 - 0.05 / max(1, strategies - 1)


def base_of(outcomes: Mapping[str, Outcome]) -> str:
    """What stays unless another is better beyond doubt: the cheapest, or ``multilayer`` where its log-loss is lower.

    Args:
        outcomes: of the strategies that were measured, by name.
    """
    first = cheapest_first(list(outcomes))[0]
    if first == "softmax" and "multilayer" in outcomes:
        softmax, multilayer = (float(outcomes[name].losses.mean()) for name in ("softmax", "multilayer"))
        return "multilayer" if multilayer < softmax else "softmax"
    return first


def recommend(names: Sequence[str], compare: Compare, base: str | None = None) -> Choice:
    """Choose.

    Args:
        names: of the strategies that were measured, one or more.
        compare: compares two of them.
        base: of `base_of`; by default the cheapest.
    """
    ordered = cheapest_first(names)
    base = base or ordered[0]
    ahead = {name: found for name in ordered if name != base and _better(found := compare(name, base), name)}
    worse: list[Compared] = []
    for name in ordered:
        rivals = list(ahead) if name == base or name in ahead else [base, *ahead]
        beaten = [found for other in rivals if other != name and _better(found := compare(other, name), other)]
        if beaten:
            worse.append(max((c for c in beaten if c is not None), key=lambda c: c.low))
    losers = {found.b for found in worse}
    unbeaten = [name for name in ahead if name not in losers]
    chosen = unbeaten[0] if unbeaten else base
    others = [name for name in ordered if name != chosen and (name not in losers or name == base)]
    seconds = [(found, name) for name in others if (found := compare(name, chosen)) is not None]
    second = max(seconds, key=lambda pair: pair[0].difference) if seconds else None
    over = ahead[chosen] if unbeaten else None
    if chosen == base != ordered[0] and _better(found := compare(base, ordered[0]), base):
        over = found
    return Choice(
        chosen,
        over,
        None if second is None else second[1],
        None if second is None else second[0],
        tuple(worse),
        contradictory=bool(ahead) and not unbeaten,
    )


def _better(found: Compared | None, name: str) -> bool:
    return found is not None and found.better == name
