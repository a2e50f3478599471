"""Spaces compared in pairs, by ridge on ``pooled``: which network and which pixels suit these images, at what cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from featcache.backbones.layers import POOLED
from featcache.core.errors import MissingVectorsError, UsageError
from featcache.core.progress import Budget
from featcache.core.recipe import StandardTransform
from featcache.heads import resolve_head
from featcache.metrics import splits
from featcache.metrics.classification import paired, sign_test
from featcache.store.status import images_per_second
from featcache.training.dataset import FeatureDataset
from featcache.training.fit import answers, fit
from featcache.training.holdout import held_out
from featcache.training.own_splits import split_rows, without_splits

if TYPE_CHECKING:
    from featcache.core.progress import Progress
    from featcache.metrics.classification import Difference
    from featcache.store import FeatureStore
    from featcache.store.spaces import Space
    from featcache.training.selection import Selection

FOLDS = 5
_START, _EACH = 0.5, 2e-3
"""Seconds of processor time of a comparison, and of each vector in it: the work is its square up to their length."""


@dataclass(frozen=True, slots=True)
class SpaceScore:
    """How ridge on ``pooled`` of one space answers the training items, in folds.

    Attributes:
        space, backbone, pixels: fingerprint, name, and what becomes of an image's size.
        items: how many were answered.
        accuracy: share of right answers.
        difference, low, high: accuracy minus that of the first space on the same items, with an interval that holds
            for all spaces together at 95 %; 0 for the first.
        seconds: per image of the last extraction, on all cores; None if that is not known.
        chosen: whether it is the cheapest that none is better than, of those that are better than the first beyond
            chance; the first where none is.
    """

    space: str
    backbone: str
    pixels: str
    items: int
    accuracy: float
    difference: float
    low: float
    high: float
    seconds: float | None
    chosen: bool = False

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values."""
        return asdict(self)


def comparable_spaces(store: FeatureStore, space: str | None) -> list[Space]:
    """The spaces of whole images with ``pooled`` among which there is a choice; one at most where *space* names it."""
    found = [one for one in store.spaces if POOLED in one.layers and one.recipe.detection is None]
    return [one for one in found if space in (None, one.recipe.backbone) or one.fingerprint.startswith(str(space))]


def compare_spaces(
    store: FeatureStore, spaces: Sequence[Space], select: Selection, *, seed: int = 0, progress: Progress
) -> list[SpaceScore]:
    """Compare spaces by ridge on ``pooled``, by folds of the training items; what is held out takes no part.

    Args:
        store: the store.
        spaces: from `comparable_spaces`; those without vectors of all the items of the first are left out.
        select: source and labels.
        seed: of the hold-out, the folds and the bootstrap.
        progress: is told.

    Returns:
        One score a space, in their order; one of them is chosen.

    Raises:
        MissingVectorsError: the first space has no vectors of labeled images.
        UsageError: fewer than two classes with two independent images.
    """
    datasets: dict[str, FeatureDataset] = {}
    for space in spaces:
        try:
            dataset = FeatureDataset.from_store(store, POOLED, replace(select, split=None, space=space.fingerprint))
        except MissingVectorsError:
            if not datasets:
                raise
            continue
        if not datasets or _keys(dataset) >= _keys(next(iter(datasets.values()))):
            datasets[space.fingerprint] = dataset
    first = next(iter(datasets.values()))
    items = first.subset(_rows(first, store, select, seed))
    folds, _ = splits.folds_of_most(items.y, items.groups, FOLDS, seed)
    right = {}
    for fingerprint, dataset in datasets.items():
        place = {(item.source, item.uri): row for row, item in enumerate(dataset.items)}
        same = dataset.subset(np.array([place[item.source, item.uri] for item in items.items])).in_memory()
        right[fingerprint] = _right(replace(same, groups=items.groups), folds, seed)
    confidence = 1 - 0.05 / max(1, len(right) - 1)

    def compared(a: str, b: str) -> tuple[Difference, bool]:
        """The difference in accuracy, and whether *a* is better beyond chance."""
        found = paired(right[a], right[b], units=items.groups, seed=seed, resamples=4000, confidence=confidence)
        if math.isnan(found.low):
            found = replace(found, low=found.difference, high=found.difference)
        # The bootstrap alone trusts a handful of units too much.
        gains = np.bincount(np.unique(items.groups, return_inverse=True)[1], right[a] - right[b])
        return found, found.low > 0 and sign_test(gains) < 1 - confidence

    base, rates, scores = next(iter(right)), images_per_second(store), []
    for space in spaces:
        if (key := space.fingerprint) in right:
            found, transform = compared(key, base)[0], space.recipe.pixels.transform
            pixels = transform.size_words if isinstance(transform, StandardTransform) else transform.name
            seconds = 1 / rates[key] if key in rates else None
            scores.append(
                SpaceScore(
                    key, space.recipe.backbone, pixels, len(items.y), found.a, found.difference, found.low, found.high,
                    seconds,
                )
            )  # fmt: skip
    better = [score for score in scores if compared(score.space, base)[1]]
    best = [one for one in better if not any(compared(other.space, one.space)[1] for other in better)]
    cheapest = min(best, key=lambda one: math.inf if one.seconds is None else one.seconds, default=scores[0])
    return [replace(score, chosen=score is cheapest) for score in scores]


def choose_space(
    store: FeatureStore, select: Selection, seed: int, progress: Progress, budget: Budget | None = None
) -> tuple[Selection, list[SpaceScore]]:
    """The selection with the space that suits its images best, and how all did.

    No score where there is no choice, or nothing to choose by, or the *budget* is too small; then it is the first.
    """
    spaces = comparable_spaces(store, select.space)
    if len(spaces) < 2:
        return select, []
    within = budget or Budget(math.inf)
    n = sum(column.rows for column in (space.layers[POOLED] for space in spaces))
    work = partial(compare_spaces, store, spaces, select, seed=seed, progress=progress)
    found = within.run("spaces", within.pace() * (_START + n * _EACH), work) or []
    if budget is None:
        for part in within.parts:
            if part["reason"] is not None:
                progress.note(f"The spaces are not compared: {part['reason']} The first is taken.")
    chosen = next((score.space for score in found if score.chosen), spaces[0].fingerprint)
    return replace(select, space=chosen), found


def _rows(dataset: FeatureDataset, store: FeatureStore, select: Selection, seed: int) -> np.ndarray:
    """The training rows, without classes of a single independent image."""
    loose = without_splits(dataset)
    own = np.zeros(0, np.int64) if loose.all() else split_rows(dataset, select.split or "train")
    rows = np.union1d(own, np.flatnonzero(loose & ~held_out(dataset, store, seed)))
    y, groups = dataset.y[rows], dataset.groups[rows]
    known = [name for name in np.unique(y) if len(np.unique(groups[y == name])) > 1]
    if len(known) < 2:
        raise UsageError("No two classes have two independent images, so there is nothing to compare spaces by.")
    return np.asarray(rows[np.isin(y, known)])


def _keys(dataset: FeatureDataset) -> set[tuple[str, str]]:
    return {(item.source, item.uri) for item in dataset.items}


def _right(items: FeatureDataset, folds: Sequence[tuple[np.ndarray, np.ndarray]], seed: int) -> np.ndarray:
    """(n,) 1 for each right answer of a ridge that was fitted on the other folds."""
    right, head = np.zeros(len(items.y)), resolve_head("ridge", seed=seed)
    for train, test in folds:
        _, predicted = answers(fit(items, train, head), items, test)
        right[test] = predicted == items.y[test]
    return right
