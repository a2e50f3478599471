"""The measurements on frozen vectors: learning curve, depth, all blocks together, neighbours, hidden layers."""

from __future__ import annotations

from itertools import pairwise

from featcache.labelled_vectors import LabelledVectors
from featcache.strategies.advise.depth import Depth, by_depth, probed_blocks
from featcache.strategies.advise.outcome import Outcome
from featcache.strategies.advise.probes import curve_seconds, learning_curve, probe, seconds_for
from featcache.strategies.advise.situation import Situation

_MLP_STEPS, _MLP_BATCH, _HIDDEN = 2000, 128, 512
_PRODUCTS, _STEP = 2e10, 1e-3
"""Multiplications a second that any machine does, and seconds that a step takes besides: only the first fold of the
head ``mlp`` is estimated by them."""


def measured_curve(at: Situation) -> list[Outcome]:
    """The softmax over the number of images; that of all images alone where the budget does not allow more."""
    examples, folds = at.items.examples, at.items.folds
    found = at.budget.run(
        "learning curve",
        curve_seconds(at.whole),
        lambda: learning_curve(at.whole, examples, folds, at.seed, at.shown),
    )
    return found or [at.whole]


def measured_depth(at: Situation) -> Depth | None:
    """Probes of the blocks."""
    what = "accuracy by depth"
    blocks, depths = probed_blocks([layer for layer in at.layers if layer != "pooled"])
    if not blocks:
        at.budget.leave_out(what, at.why_not or "the network has no blocks")
        return None
    if not at.provide(what, at.layers):
        return None

    def measure() -> Depth:
        outcomes = [
            probe(f"softmax on {layer}", at.vectors([layer]), at.items.folds, "softmax", at.seed, at.shown)
            for layer in blocks
        ]
        return by_depth([*blocks, "pooled"], [*depths, 1.0], [*outcomes, at.whole], at.items.examples.units, at.seed)

    widths = [sum(at.vectors([layer]).widths) for layer in blocks]
    return at.budget.run(what, seconds_for(at.whole, _width(at), widths), measure)


def measured_heads(at: Situation) -> list[Outcome]:
    """All blocks together, nearest neighbours and hidden layers, as far as the budget goes."""
    examples, folds = at.items.examples, at.items.folds
    found = []
    several = len(at.layers) > 1
    if not several:
        at.budget.leave_out("multilayer", at.why_not or "the network has no blocks")
    elif at.provide("multilayer", at.layers):
        wide = at.vectors(at.layers)
        found.append(
            at.budget.run(
                "multilayer",
                seconds_for(at.whole, _width(at), [sum(wide.widths)]),
                lambda: probe("multilayer", wide, folds, "softmax", at.seed, at.shown),
            )
        )
    found.append(
        at.budget.run("knn", at.whole.seconds, lambda: probe("knn", examples, folds, "knn", at.seed, at.shown))
    )
    found.append(_mlp(at, examples))
    return [outcome for outcome in found if outcome is not None]


def _mlp(at: Situation, examples: LabelledVectors) -> Outcome | None:
    """The head ``mlp``: one fold, which tells how long the others take, and these."""
    folds = at.items.folds
    widths = [_width(at), _HIDDEN, len(set(examples.y.tolist()))]
    # Forwards once and backwards twice.
    products = 3 * min(_MLP_BATCH, len(folds[0][0])) * sum(a * b for a, b in pairwise(widths))
    guess = _MLP_STEPS * (products / _PRODUCTS + _STEP)
    first = at.budget.run(
        f"mlp, fold 1 of {len(folds)}",
        guess,
        lambda: probe("mlp", examples, folds[:1], "mlp", at.seed, at.shown),
    )
    if first is None:
        return None
    rest = at.budget.run(
        "mlp, the other folds",
        1.2 * first.seconds * (len(folds) - 1),
        lambda: probe("mlp", examples, folds[1:], "mlp", at.seed, at.shown),
    )
    return first if rest is None else first.joined(rest)


def _width(at: Situation) -> int:
    return sum(at.items.examples.widths)
