"""Several labels per item: scores with their intervals, and folds stratified by every label.

Values are those of scikit-learn's functions; intervals are those of `featcache.metrics.intervals`. Folds are made by
iterative stratification (Sechidis, Tsoumakas and Vlahavas 2011) of whole units: those of the rarest label come first,
each goes to the part that lacks most of that label, on a tie to the one that lacks most units. Units are taken in the
order of SHA-256 of ``seed:key``, so the draw depends on names alone.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from featcache.core.errors import UsageError
from featcache.metrics.classification import ClassScore, counted_score
from featcache.metrics.intervals import Interval, bootstrap, percentile_interval


@dataclass(frozen=True, slots=True)
class MultilabelScores:
    """Scores of one head on one set of items.

    Attributes:
        n: items scored.
        mean_average_precision: mean over the labels that occur of the average precision.
        micro_f1: F1 over all decisions together, a label being given where its probability is above 0.5.
        macro_f1: mean of F1 over the labels that occur or are given.
        exact_match: share of the items whose labels are all right.
        log_loss: mean over items and labels of -ln of the probability of what is true.
    """

    n: int
    mean_average_precision: Interval
    micro_f1: Interval
    macro_f1: Interval
    exact_match: Interval
    log_loss: Interval


@dataclass(frozen=True, slots=True)
class LabelScore(ClassScore):
    """One label.

    Attributes:
        average_precision: area under its curve of precision over recall, as scikit-learn sums it; None where the
            label does not occur.
    """

    average_precision: float | None


def binary_losses(Y: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """-ln of the probability of what is true, (n, k), which is bounded below by the float64 epsilon."""
    p = np.where(Y, probabilities, 1 - probabilities)
    return np.asarray(-np.log(np.clip(p, np.finfo(np.float64).eps, 1.0)))


def score(
    Y: np.ndarray,
    probabilities: np.ndarray,
    *,
    units: np.ndarray | None = None,
    seed: int = 0,
    resamples: int = 1000,
) -> MultilabelScores:
    """Score probabilities of labels.

    Args:
        Y: (n, k) bool, the labels that are true.
        probabilities: (n, k).
        units: (n,) int64; items that are no independent evidence share a number.
        seed: of the bootstrap.
        resamples: of the bootstrap; fewer, but at least 100, where items × labels are more than 200,000.

    Raises:
        UsageError: there is nothing to score.
    """
    n, k = Y.shape
    if n == 0:
        raise UsageError("There are no items to score on.")
    given = probabilities > 0.5
    # Columns: for each label hits, true, given; then exact matches, losses, ones.
    summed = np.column_stack(
        [Y & given, Y, given, (given == Y).all(axis=1), binary_losses(Y, probabilities).mean(axis=1), np.ones(n)]
    )
    ranked = _Ranked(Y, probabilities)
    groups = np.unique(np.arange(n) if units is None else units, return_inverse=True)[1]
    count = int(groups.max()) + 1

    def statistics(times: np.ndarray) -> list[float]:
        weights = times[groups].astype(np.float64)
        *sums, exact, loss, total = weights @ summed
        hits, true, called = np.array(sums).reshape(3, k)
        named = true + called > 0
        return [
            ranked.mean_average_precision(weights),
            2 * hits.sum() / max((true + called).sum(), 1),
            (2 * hits[named] / (true + called)[named]).mean() if named.any() else 0.0,
            exact / total,
            loss / total,
        ]

    drawn = bootstrap(statistics, count, resamples=resamples, seed=seed, cost=n * k).T
    trials = (None, None, None, count, None)
    return MultilabelScores(n, *(percentile_interval(v, trials=t) for v, t in zip(drawn, trials, strict=True)))


def per_label(
    Y: np.ndarray, probabilities: np.ndarray, labels: Sequence[str], *, units: np.ndarray | None = None
) -> list[LabelScore]:
    """The scores of each label by itself, a label being given where its probability is above 0.5.

    Args:
        Y: (n, k) bool, the labels that are true.
        probabilities: (n, k).
        labels: k names.
        units: (n,) int64; items that are no independent evidence share a number.
    """
    given = probabilities > 0.5
    units = np.arange(len(Y)) if units is None else units
    precisions = _Ranked(Y, probabilities).average_precisions(np.ones(len(Y)))
    return [
        LabelScore(
            **counted_score(
                label,
                hits=int((Y[:, i] & given[:, i]).sum()),
                items=int(Y[:, i].sum()),
                called=int(given[:, i].sum()),
                units=len(np.unique(units[Y[:, i]])),
            ),
            average_precision=None if math.isnan(precisions[i]) else float(precisions[i]),
        )
        for i, label in enumerate(labels)
    ]


class _Ranked:
    """Items sorted by probability for each label, so that a resample costs one running sum."""

    def __init__(self, Y: np.ndarray, probabilities: np.ndarray) -> None:
        n, k = Y.shape
        self.order = np.argsort(-probabilities.T, axis=1, kind="stable")
        ranked = np.take_along_axis(probabilities.T, self.order, axis=1)
        # Precision is taken at the last of those with an equal probability.
        last = np.ones((k, n), dtype=bool)
        last[:, :-1] = ranked[:, 1:] != ranked[:, :-1]
        places = np.where(last, np.arange(n), n)
        ends = np.minimum.accumulate(places[:, ::-1], axis=1)[:, ::-1]
        true = np.take_along_axis(Y.T, self.order, axis=1)
        self.label, place = np.nonzero(true)
        self.item = self.order[self.label, place]
        self.end = self.label * n + ends[self.label, place]
        # How many true ones of all labels come up to that place, and before the label's first.
        self.upto = np.cumsum(true.ravel())[self.end]
        self.before = np.concatenate([[0], np.cumsum(true.sum(axis=1))])

    def average_precisions(self, weights: np.ndarray) -> np.ndarray:
        """(k,) of each label, where item i occurs ``weights[i]`` times; NaN of those that do not occur."""
        seen = weights[self.order].cumsum(axis=1).ravel()[self.end]
        hits = weights[self.item]
        found = np.concatenate([[0.0], hits.cumsum()])
        start = found[self.before]
        precision = (found[self.upto] - start[self.label]) / np.maximum(seen, 1)
        total = np.diff(start)
        sums = np.bincount(self.label, hits * precision, len(total))
        return np.where(total > 0, sums / np.where(total > 0, total, 1), math.nan)

    def mean_average_precision(self, weights: np.ndarray) -> float:
        """The mean over the labels that occur; NaN where none does."""
        found = self.average_precisions(weights)
        occurring = found[~np.isnan(found)]
        return float(occurring.mean()) if len(occurring) else math.nan


def folds(Y: np.ndarray, units: np.ndarray, k: int = 5, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """Folds with whole units.

    Args:
        Y: (n, k) bool.
        units: (n,) int64.
        k: how many.
        seed: of the draw.

    Returns:
        k pairs of row numbers: to learn from, to test on. Every row is tested on once.

    Raises:
        UsageError: fewer than two folds, or fewer units than folds.
    """
    if k < 2:
        raise UsageError(f"There must be at least 2 folds, not {k}.")
    names, has = _by_unit(Y, [str(unit) for unit in units])
    if len(names) < k:
        raise UsageError(f"There are {len(names)} independent items, too few for {k} folds.")
    shares = np.repeat(has.sum(axis=0)[None] / k, k, axis=0)
    parts = _share_out(has, _order(names, seed), shares, np.full(k, len(names) / k))
    if len(np.unique(parts)) < k:
        # Of few units with many labels a fold can get none; then labels are not looked at.
        parts[_order(names, seed)] = np.arange(len(names)) % k
    part = dict(zip(names, parts.tolist(), strict=True))
    of_row = np.array([part[str(unit)] for unit in units])
    return [(np.flatnonzero(of_row != fold), np.flatnonzero(of_row == fold)) for fold in range(k)]


def _by_unit(Y: np.ndarray, keys: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """The units' names, sorted, and the labels (u, k) that their items have."""
    names, place = np.unique(np.asarray(keys, dtype=object).astype(str), return_inverse=True)
    has = np.zeros((len(names), Y.shape[1]), dtype=bool)
    np.logical_or.at(has, place, Y)
    return names.tolist(), has


def _order(names: Sequence[str], seed: int) -> np.ndarray:
    digests = [hashlib.sha256(f"{seed}:{name}".encode()).digest() for name in names]
    return np.array(sorted(range(len(names)), key=digests.__getitem__), dtype=np.int64)


def _share_out(has: np.ndarray, order: np.ndarray, shares: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The part (u,) of each unit.

    Args:
        has: (u, k) bool.
        order: (u,) in which units are taken.
        shares: (parts, k) how many units of each label each part should get.
        sizes: (parts,) how many units each part should get.
    """
    parts = np.full(len(has), -1)
    lacks, room = shares.astype(np.float64), sizes.astype(np.float64)
    open_units = has.sum(axis=0)
    while open_units.any():
        label = int(np.argmin(np.where(open_units > 0, open_units, np.iinfo(np.int64).max)))
        for unit in order[(parts[order] < 0) & has[order, label]]:
            best = max(range(len(room)), key=lambda part: (lacks[part, label], room[part], -part))
            parts[unit] = best
            lacks[best, has[unit]] -= 1
            room[best] -= 1
            open_units -= has[unit]
    for unit in order[parts[order] < 0]:
        parts[unit] = best = int(np.argmax(room))
        room[best] -= 1
    return parts
