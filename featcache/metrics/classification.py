"""Scores of classifiers, each with an interval.

Values are those of scikit-learn's functions of the same names. The intervals are percentile bootstrap
intervals (Efron and Tibshirani 1993, chapter 13) over units, since items of one unit are no independent
evidence. They tell how the score would vary over test items, not over trainings. Where all resamples are
equal (every item is right, or wrong, or there is but one unit) they say nothing: the interval of the accuracy
then is Wilson's (1927) with the number of units, and the other scores have none.

How well each class is told from the others.

Two heads on the same items: how much better is the one, and how sure is that?

The bootstrap (Efron and Tibshirani 1993, chapter 13) draws units and takes both heads' answers to them, so
what makes an item hard for both cancels out. The interval of a difference is much narrower for that than
two separate intervals suggest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from featcache.core.errors import UsageError

_Z = 1.959963984540054
_DRAWS, _FEWEST = 200_000_000, 100
"""Of so many units that 1000 resamples would take minutes, fewer are drawn; they are as good then."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with its 95 % interval; ``low`` and ``high`` are NaN where none is known."""

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        """``value``, ``low`` and ``high``."""
        return {"value": self.value, "low": self.low, "high": self.high}


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of one head on one set of items.

    Attributes:
        n: items scored.
        accuracy: share of the items with the right label.
        balanced_accuracy: mean over the classes that occur of the share of their items that are right.
        macro_f1: mean of the F1 score over the classes that occur or are predicted.
        log_loss: mean of -ln of the probability of the true class, which is bounded below by the
            float64 epsilon; None without probabilities.
    """

    n: int
    accuracy: Interval
    balanced_accuracy: Interval
    macro_f1: Interval
    log_loss: Interval | None


def score(
    y_true: np.ndarray,
    probabilities: np.ndarray | None,
    predicted: np.ndarray,
    classes: Sequence[str],
    *,
    units: np.ndarray | None = None,
    seed: int = 0,
    resamples: int = 1000,
) -> Scores:
    """Score predictions.

    Args:
        y_true: (n,) true labels; one that the head does not know counts as wrong, with probability 0.
        probabilities: (n, k) in the order of *classes*, or None.
        predicted: (n,) predicted labels.
        classes: the head's k classes.
        units: (n,) int64; items that are no independent evidence share a number.
        seed: of the bootstrap.
        resamples: of the bootstrap; fewer, but at least 100, where there are more than 200,000 units.

    Raises:
        UsageError: there is nothing to score.
    """
    n = len(y_true)
    if n == 0:
        raise UsageError("There is no item to score on.")
    names = sorted({str(c) for c in classes} | {str(v) for v in y_true} | {str(v) for v in predicted})
    place = {name: i for i, name in enumerate(names)}
    truth = np.array([place[str(v)] for v in y_true])
    said = np.array([place[str(v)] for v in predicted])
    losses = None
    if probabilities is not None:
        losses = item_losses(y_true, probabilities, classes)
    groups = np.unique(np.arange(n) if units is None else units, return_inverse=True)[1]
    count = int(groups.max()) + 1
    sizes = np.bincount(groups)
    rng = np.random.default_rng(seed)
    values: list[list[float]] = []
    for drawn in range(1 + few_enough(resamples, count)):
        # First the sample itself; then as many units as there are, drawn with replacement.
        times = rng.multinomial(count, np.full(count, 1 / count)) if drawn else np.ones(count, dtype=np.int64)
        row = _from_counts(truth, said, times[groups], len(names))
        if losses is not None:
            row.append(float(times[groups] @ losses / (times @ sizes)))
        values.append(row)
    right, balanced, f1, *loss = (_interval(column) for column in np.array(values).T)
    if math.isnan(right.low):
        right = Interval(right.value, *wilson(right.value, count))
    return Scores(n, right, balanced, f1, loss[0] if loss else None)


def item_losses(y_true: np.ndarray, probabilities: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """(n,) -ln of the probability of each item's true class, which is bounded below by the float64 epsilon.

    Args:
        y_true: (n,) true labels; one that the head does not know has probability 0.
        probabilities: (n, k) in the order of *classes*.
        classes: the head's k classes.
    """
    column = {str(c): i for i, c in enumerate(classes)}
    p = np.array(
        [float(row[column[str(v)]]) if str(v) in column else 0.0 for row, v in zip(probabilities, y_true, strict=True)]
    )
    return np.asarray(-np.log(np.clip(p, np.finfo(np.float64).eps, 1.0)))


def few_enough(resamples: int, units: int) -> int:
    """So many resamples of so many units that they take no minutes."""
    return min(resamples, max(_FEWEST, _DRAWS // units))


def wilson(share: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of n independent trials."""
    centre = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n * n))
    # It holds the share; rounding could leave 0 or 1 just outside.
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


def _from_counts(truth: np.ndarray, said: np.ndarray, weights: np.ndarray, k: int) -> list[float]:
    """Accuracy, balanced accuracy and macro-F1 where item i occurs ``weights[i]`` times."""
    true = np.bincount(truth, weights, k)
    answered = np.bincount(said, weights, k)
    hits = np.bincount(truth, weights * (truth == said), k)
    occurs, named = true > 0, true + answered > 0
    balanced = (hits[occurs] / true[occurs]).mean()
    f1 = (2 * hits[named] / (true + answered)[named]).mean()
    return [float(hits.sum() / true.sum()), float(balanced), float(f1)]


def _interval(values: np.ndarray) -> Interval:
    value = float(values[0])
    if len(values) > 1 and np.ptp(values[1:]) < 1e-12:  # but for rounding, all are equal
        return Interval(value, math.nan, math.nan)
    low, high = np.percentile(values[1:], [2.5, 97.5]) if len(values) > 1 else (value, value)
    return Interval(value, min(float(low), value), max(float(high), value))


@dataclass(frozen=True, slots=True)
class ClassScore:
    """One class; a value is None where there is nothing to divide by.

    Attributes:
        label: its name.
        items: items of it.
        precision: share of the items called so that are so.
        recall: share of its items that are called so.
        recall_low, recall_high: Wilson's 95 % interval of the recall, with the number of units of the
            class as the number of trials.
        f1: harmonic mean of precision and recall, 2 hits / (items + items called so).
    """

    label: str
    items: int
    precision: float | None
    recall: float | None
    recall_low: float | None
    recall_high: float | None
    f1: float | None


def confusion_matrix(y: np.ndarray, predicted: np.ndarray, labels: Sequence[str]) -> np.ndarray:
    """(k, k) int64: how many items of each label (row) are called what (column).

    Args:
        y: (n,) true labels.
        predicted: (n,) predicted labels.
        labels: k labels, all that occur.
    """
    place = {label: i for i, label in enumerate(labels)}
    counts = np.zeros((len(labels), len(labels)), dtype=np.int64)
    np.add.at(counts, ([place[str(v)] for v in y], [place[str(v)] for v in predicted]), 1)
    return counts


def per_class(confusion: np.ndarray, labels: Sequence[str], units: np.ndarray) -> list[ClassScore]:
    """The scores of each class.

    Args:
        confusion: (k, k), see `confusion_matrix`.
        labels: k labels.
        units: (k,) how many independent units the items of each class are.
    """
    scores = []
    for i, label in enumerate(labels):
        hits, items, called = int(confusion[i, i]), int(confusion[i].sum()), int(confusion[:, i].sum())
        scores.append(ClassScore(**counted_score(label, hits=hits, items=items, called=called, units=int(units[i]))))
    return scores


def counted_score(label: str, *, hits: int, items: int, called: int, units: int) -> dict[str, Any]:
    """The values of a `ClassScore`.

    Args:
        label: the class.
        hits: items of it that are called so.
        items: items of it.
        called: items called so.
        units: how many independent units its items are.
    """
    low, high = wilson(hits / items, units) if items else (None, None)
    return {
        "label": label,
        "items": items,
        "precision": hits / called if called else None,
        "recall": hits / items if items else None,
        "recall_low": low,
        "recall_high": high,
        "f1": 2 * hits / (items + called) if items + called else None,
    }


def units_of_each(y: np.ndarray, units: np.ndarray, labels: Sequence[str]) -> np.ndarray:
    """(k,) int64: in how many units each label occurs."""
    return np.array([len(np.unique(units[y == label])) for label in labels], dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Difference:
    """One score of two heads, A and B.

    Attributes:
        a, b: the score of each.
        difference: a - b.
        low, high: its interval, by default of 95 %; NaN where all resamples are equal and say nothing: both do equally
            well on every unit, or one is as much better on each, or there is but one unit.
        better: share of the resamples in which A is better, those where they are equal counted half.
    """

    a: float
    b: float
    difference: float
    low: float
    high: float
    better: float

    def to_dict(self) -> dict[str, float | None]:
        """All fields as plain values, None for NaN."""
        return {name: None if math.isnan(value) else value for name, value in asdict(self).items()}


def paired(
    a: np.ndarray,
    b: np.ndarray,
    *,
    units: np.ndarray | None = None,
    larger_is_better: bool = True,
    seed: int = 0,
    resamples: int = 1000,
    confidence: float = 0.95,
) -> Difference:
    """Compare two heads by the mean of one number an item.

    Args:
        a: (n,) of head A, as 1 for a right answer and 0 for a wrong one, or the loss.
        b: (n,) of head B on the same items.
        units: (n,) int64; items that are no independent evidence share a number.
        larger_is_better: false for losses.
        seed: of the bootstrap.
        resamples: of the bootstrap; fewer, but at least 100, where there are more than 200,000 units.
        confidence: of the interval.

    Raises:
        UsageError: there is nothing to compare on.
    """
    n = len(a)
    if n == 0:
        raise UsageError("There is no item to compare two heads on.")
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    groups = np.unique(np.arange(n) if units is None else units, return_inverse=True)[1]
    sizes, sums = np.bincount(groups), np.bincount(groups, a - b)
    count = len(sizes)
    rng = np.random.default_rng(seed)
    drawn = np.empty(few_enough(resamples, count))
    for i in range(len(drawn)):
        times = rng.multinomial(count, np.full(count, 1 / count))
        drawn[i] = times @ sums / (times @ sizes)
    value = float(a.mean() - b.mean())
    gains = drawn if larger_is_better else -drawn
    better = float((gains > 0).mean() + (gains == 0).mean() / 2)
    half = 50 * confidence
    ends = np.percentile(drawn, [50 - half, 50 + half])
    low, high = ends if np.ptp(drawn) > 1e-12 * abs(value) else (math.nan, math.nan)
    # It holds the value; of few resamples the percentiles could miss it. Of a NaN it stays one.
    low, high = np.minimum(low, value), np.maximum(high, value)
    return Difference(float(a.mean()), float(b.mean()), value, float(low), float(high), better)


def right_and_losses(
    y: np.ndarray, probabilities: np.ndarray | None, predicted: np.ndarray, classes: Sequence[str]
) -> tuple[np.ndarray, np.ndarray | None]:
    """Whether each answer is right (n,), and each item's log-loss (n,) or None without probabilities."""
    right = np.array([str(t) == str(p) for t, p in zip(y, predicted, strict=True)])
    return right, None if probabilities is None else item_losses(y, probabilities, classes)
