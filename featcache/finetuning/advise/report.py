"""`Advice`: what was measured and what follows from it, as plain values."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Advice:
    """What `advise` found out. Accuracies are shares of 1, intervals are of 95 % unless they say otherwise.

    Attributes:
        store: the store's path.
        backbone: whose vectors they are.
        classes: labels.
        items: that were learned from and answered for, all outside the hold-out.
        units: independent ones among them.
        held_out: items of the hold-out, which took no part.
        folds: of the cross-validation.
        views: of ``pooled`` that heads on it learned from.
        rare_classes: of each class that has fewer independent items than there are folds, how many it has.
        near_duplicates: ``pairs`` among the items, ``across`` folds, ``threshold``, ``dataset``, ``note``, and
            ``grouped``: whether they count as one item, see `featcache.finetuning.advise.learning_items`.
        seed: of all that was drawn.
        budget, seconds: that were allowed, and that were spent.
        learning_curve: of the softmax on ``pooled``: ``learned``, ``accuracy`` and ``log_loss`` (each with ``value``,
            ``low``, ``high``), from few items to all.
        more_data: all items compared with half of them; None where that was not measured.
        depth: see `featcache.finetuning.advise.depth.Depth`; None where it was not measured.
        strategies: of each that was measured ``name``, ``items``, ``accuracy``, ``log_loss``, ``learned``, ``fits``,
            ``seconds``, ``note``.
        comparisons: that were needed, see `featcache.finetuning.advise.outcome.Compared`.
        costs: of every strategy ``strategy``, ``seconds``, ``bytes``, ``how``.
        parts: what was measured and what was not: ``name``, ``estimate``, ``seconds``, ``reason``.
        recommendation: name of the strategy.
        runner_up: likewise; None where nothing else was measured.
        reasons: sentences.
        command: what to run next.
    """

    store: str
    backbone: str
    classes: list[str]
    items: int
    units: int
    held_out: int
    folds: int
    views: list[str]
    rare_classes: dict[str, int]
    near_duplicates: dict[str, Any]
    seed: int
    budget: float
    seconds: float
    learning_curve: list[dict[str, Any]]
    more_data: dict[str, Any] | None
    depth: dict[str, Any] | None
    strategies: list[dict[str, Any]]
    comparisons: list[dict[str, Any]]
    costs: list[dict[str, Any]]
    parts: list[dict[str, Any]]
    recommendation: str
    runner_up: str | None
    reasons: list[str]
    command: str

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values."""
        return asdict(self)
