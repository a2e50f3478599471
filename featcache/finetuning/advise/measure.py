"""What is measured for advice on frozen vectors: heads, more training images, and deeper layers."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np

from featcache.core.errors import GridEdgeWarning
from featcache.finetuning.advise.choose import Compared, Outcome, compare
from featcache.heads import resolve_head
from featcache.metrics import splits
from featcache.metrics.classification import right_and_losses
from featcache.training.activations import SAFETY
from featcache.training.fit import answers, fit

if TYPE_CHECKING:
    from featcache.core.progress import Progress
    from featcache.training.dataset import FeatureDataset

Fold = tuple[np.ndarray, np.ndarray]
CURVE = ((1 / 8, 3), (1 / 4, 2), (1 / 2, 2))
"""Shares of the training items on the learning curve, and how often each is drawn."""
MOST_BLOCKS, MARGIN = 12, 0.02
"""Blocks to probe; and an accuracy that counts as no difference: what another hold-out of 1000 images may change."""
_FEW = 400  # of fewer items a fit takes no less time


def answer(name: str, items: FeatureDataset, head: str, seed: int, progress: Progress, fold: Fold) -> Outcome:
    """Fit a head on what a fold trains on, and answer the others."""
    began, (train, test) = time.monotonic(), fold
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GridEdgeWarning)  # told when the head that is kept is trained
        bundle = fit(items, train, resolve_head(head, seed=seed), progress=progress)
    right, losses = right_and_losses(items.y[test], *answers(bundle, items, test), bundle.classes)
    assert losses is not None
    return Outcome(name, test, right.astype(np.float64), losses, len(train), time.monotonic() - began)


def cross_validate(name: str, items: FeatureDataset, folds: Sequence[Fold], seed: int, progress: Progress) -> Outcome:
    """The answers of the head ``softmax`` to the items of all folds."""
    return reduce(Outcome.joined, [answer(name, items, "softmax", seed, progress, fold) for fold in folds])


def learning_curve(
    whole: Outcome, items: FeatureDataset, folds: Sequence[Fold], seed: int, progress: Progress
) -> list[Outcome]:
    """The softmax on ``pooled`` over the number of training items; *whole* is that on all of them."""
    found = []
    for share, draws in CURVE:
        made = []
        for draw in range(draws):
            drawn = list[Fold]()
            for number, (train, test) in enumerate(folds):
                rng = np.random.default_rng([seed, draw, number])
                drawn.append((train[splits.draw_share(items.y[train], items.groups[train], share, rng)], test))
            made.append(cross_validate(f"softmax, 1/{round(1 / share)} of the items", items, drawn, seed, progress))
        right, losses = (np.mean([getattr(one, name) for one in made], axis=0) for name in ("right", "losses"))
        learned = float(np.mean([one.learned for one in made]))
        seconds, fits = sum(one.seconds for one in made), sum(one.fits for one in made)
        found.append(replace(made[0], right=right, losses=losses, learned=learned, seconds=seconds, fits=fits))
    return [*found, whole]


def probed_blocks(layers: Sequence[str]) -> tuple[list[str], list[float]]:
    """Blocks to probe, evenly spaced where there are many, with their relative depth; ``pooled`` has depth 1."""
    at = np.unique(np.linspace(0, len(layers) - 1, min(MOST_BLOCKS, len(layers))).round().astype(int))
    return [layers[place] for place in at], [(int(place) + 1) / (len(layers) + 1) for place in at]


def depth_report(
    layers: Sequence[str], depths: Sequence[float], outcomes: Sequence[Outcome], units: np.ndarray, seed: int
) -> tuple[dict[str, Any], Compared | None]:
    """From which depth on later layers add nothing, by probes in network order; and the last layer against the middle.

    Later layers are about the data of the network's training (J. Yosinski and others, "How transferable are features in
    deep neural networks?", NIPS 2014). That none is shown to be better is not yet a finding, so ``similarity`` is
    told only where the intervals exclude a gain of more than `MARGIN` (a test of non-inferiority).
    """
    confidence = 1 - 0.05 / max(1, len(layers) - 1)
    best = int(np.argmax([outcome.right.mean() for outcome in outcomes]))

    def pair(a: int, b: int) -> Compared:
        found = compare(outcomes[a], outcomes[b], units, confidence=confidence, seed=seed)
        assert found is not None
        return found

    first = next((place for place in range(best) if pair(best, place).better != outcomes[best].name), best)
    later = [pair(place, first) for place in range(first + 1, len(layers))]
    unknown = late = None
    if later and ceiling(most := max(later, key=ceiling)) > MARGIN:
        unknown = (
            f"by its {100 * most.confidence:.3g} % interval on {most.items:,} items {most.a} may be better than "
            f"{most.b} by up to {100 * ceiling(most):.1f} points"
        )
    if len(layers) > 1:
        middle = int(np.argmin(np.abs(np.array(depths[:-1]) - 0.5)))
        late = compare(outcomes[-1], outcomes[middle], units, seed=seed)
    return {
        "layers": [
            {"layer": layer, "depth": depth, "accuracy": outcome.to_dict(units, seed)["accuracy"]}
            for layer, depth, outcome in zip(layers, depths, outcomes, strict=True)
        ],
        "best": layers[best],
        "similarity": depths[first] if unknown is None else None,
        "similarity_at_least": depths[first],
        "similarity_unknown": unknown,
        "late_gain": None if late is None else late.to_dict(),
    }, late


def ceiling(found: Compared) -> float:
    """The most by which *a* may be better than *b*, seen or not (J. Hanley and A. Lippman-Hand, JAMA 249, 1983)."""
    return float(max(found.high, 1 - ((1 - found.confidence) / 2) ** (1 / found.units)))


def curve_seconds(whole: Outcome) -> float:
    """About how long the learning curve takes."""
    floor = min(1.0, _FEW / len(whole.rows))
    return SAFETY * sum(draws * max(share, floor) for share, draws in CURVE) * whole.seconds


def probe_seconds(whole: Outcome, items: FeatureDataset, widths: Sequence[int]) -> float:
    """About how long the softmax on view 0 of vectors of these widths takes; *whole* is that on *items*."""
    views = len(items.views)
    share = max(1 / views, min(1.0, _FEW / (views * len(whole.rows))))
    return SAFETY * share * whole.seconds * sum(max(1.0, width / sum(items.widths)) for width in widths)
