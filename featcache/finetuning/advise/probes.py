"""Heads on frozen vectors, answered for by cross-validation on the items to learn from."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from featcache.core.errors import GridEdgeWarning
from featcache.core.progress import Progress
from featcache.finetuning.advise.learning_items import Folds, shared
from featcache.finetuning.advise.outcome import Outcome
from featcache.heads import resolve_head
from featcache.metrics.classification import right_and_losses
from featcache.training.dataset import FeatureDataset
from featcache.training.fit import answers, fit

CURVE: tuple[tuple[float, int], ...] = ((1 / 8, 3), (1 / 4, 2), (1 / 2, 2))
"""Shares of the learned items, and how often each is drawn; all of them are learned from besides."""
_FEW, _MARGIN = 400, 1.2
"""Of fewer items, as of shorter vectors, a fit takes no less time; estimates are so many times what was measured."""


def probe(
    name: str,
    dataset: FeatureDataset,
    folds: Folds,
    head: Any,
    seed: int,
    shown: Progress,
    *,
    share: float = 1.0,
    draws: int = 1,
    within: Progress | None = None,
) -> Outcome:
    """Answers to the items of some folds by a head that did not learn from them.

    Args:
        name: of the outcome.
        dataset: the items to learn from.
        folds: of the cross-validation.
        head: a name or a scikit-learn classifier.
        seed: of the head and the draws.
        shown: is told of the fits.
        share: of what a fold may learn from, drawn at random in every class.
        draws: how often; an item's answers are averaged.
        within: is told of each step of a fit, where the head counts its own.
    """
    began, count, resolved = time.monotonic(), len(dataset.y), resolve_head(head, seed=seed)
    right, losses, learned = np.zeros(count), np.zeros(count), 0
    shown.start(name, draws * len(folds), "fits")
    for draw in range(draws):
        for number, (train_rows, test) in enumerate(folds):
            chosen = train_rows
            if share < 1:
                rng = np.random.default_rng([seed, draw, number])
                chosen = train_rows[shared(dataset.y[train_rows], dataset.groups[train_rows], share, rng)]
            with warnings.catch_warnings():
                # Whether the grid of C is wide enough is told when the head is trained that is kept.
                warnings.simplefilter("ignore", GridEdgeWarning)
                bundle = fit(dataset, chosen, resolved, progress=within)
            probabilities, said = answers(bundle, dataset, test)
            hits, missed = right_and_losses(dataset.y[test], probabilities, said, bundle.classes)
            right[test] += hits / draws
            losses[test] += np.nan if missed is None else missed / draws
            learned += len(chosen)
            shown.advance()
    shown.finish()
    fits = draws * len(folds)
    rows = np.sort(np.concatenate([test for _, test in folds]))
    return Outcome(name, rows, right[rows], losses[rows], learned / fits, time.monotonic() - began, fits)


def curve_seconds(whole: Outcome) -> float:
    """About how long a learning curve takes, by the time that all items took."""
    floor = min(1.0, _FEW / len(whole.rows))
    return _MARGIN * sum(draws * max(share, floor) for share, draws in CURVE) * whole.seconds


def learning_curve(whole: Outcome, dataset: FeatureDataset, folds: Folds, seed: int, shown: Progress) -> list[Outcome]:
    """The softmax probe over the number of learned items, from few to all.

    Args:
        whole: the probe that learned from all items.
        dataset, folds, seed, shown: as for `probe`.
    """
    return [
        probe(f"softmax, {_said(share)} of the items", dataset, folds, "softmax", seed, shown, share=share, draws=draws)
        for share, draws in CURVE
    ] + [whole]


def _said(share: float) -> str:
    return f"1/{round(1 / share)}"


def seconds_for(whole: Outcome, width: int, widths: Sequence[int], views: int = 1) -> float:
    """About how long softmax probes on view 0 of vectors of other widths take.

    Args:
        whole: a probe that learned from all items, in *views* of each.
        width: of its vectors.
        widths: of the others.
        views: how many.
    """
    share = max(1 / views, min(1.0, _FEW / (views * len(whole.rows))))
    return _MARGIN * share * sum(whole.seconds * max(1.0, other / width) for other in widths)
