"""Scores of classifiers with their intervals, scores per class, and two classifiers compared on the same items.

Values are those of scikit-learn's functions of the same names; intervals are those of `featcache.metrics.intervals`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from featcache.core.errors import UsageError
from featcache.metrics.intervals import Interval, bootstrap, draws, percentile_interval, wilson


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
        raise UsageError("There are no items to score on.")
    names = sorted({str(c) for c in classes} | {str(v) for v in y_true} | {str(v) for v in predicted})
    place = {name: i for i, name in enumerate(names)}
    truth = np.array([place[str(v)] for v in y_true])
    answered = np.array([place[str(v)] for v in predicted])
    losses = None
    if probabilities is not None:
        losses = item_losses(y_true, probabilities, classes)
    groups = np.unique(np.arange(n) if units is None else units, return_inverse=True)[1]
    sizes = np.bincount(groups)

    def statistics(times: np.ndarray) -> list[float]:
        found = _from_counts(truth, answered, times[groups], len(names))
        if losses is not None:
            found.append(float(times[groups] @ losses / (times @ sizes)))
        return found

    right, *others = bootstrap(statistics, len(sizes), resamples=resamples, seed=seed).T
    balanced, f1, *loss = map(percentile_interval, others)
    return Scores(n, percentile_interval(right, trials=len(sizes)), balanced, f1, loss[0] if loss else None)


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


def _from_counts(truth: np.ndarray, answered: np.ndarray, weights: np.ndarray, k: int) -> list[float]:
    """Accuracy, balanced accuracy and macro-F1 where item i occurs ``weights[i]`` times."""
    true = np.bincount(truth, weights, k)
    called = np.bincount(answered, weights, k)
    hits = np.bincount(truth, weights * (truth == answered), k)
    occurs, named = true > 0, true + called > 0
    balanced = (hits[occurs] / true[occurs]).mean()
    f1 = (2 * hits[named] / (true + called)[named]).mean()
    return [float(hits.sum() / true.sum()), float(balanced), float(f1)]


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
    """Compare two heads by the mean of one number per item.

    Each resample takes both heads' answers to the units drawn, so what makes an item hard for both cancels out: the
    interval of the difference is much narrower than the two separate ones suggest.

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
        raise UsageError("There are no items to compare two heads on.")
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    groups = np.unique(np.arange(n) if units is None else units, return_inverse=True)[1]
    sizes, sums = np.bincount(groups), np.bincount(groups, a - b)
    drawn = [block @ sums / (block @ sizes) for block in draws(len(sizes), resamples, seed)]
    values = np.concatenate([[a.mean() - b.mean()], *drawn])
    gains = values[1:] if larger_is_better else -values[1:]
    better = float((gains > 0).mean() + (gains == 0).mean() / 2)
    found = percentile_interval(values, confidence=confidence)
    return Difference(float(a.mean()), float(b.mean()), found.value, found.low, found.high, better)


def sign_test(gains: np.ndarray) -> float:
    """p of the two-sided sign test: that gains (n,) above 0 are as likely as those below.

    Conover, "Practical Nonparametric Statistics", 3rd edition, section 3.4; ties are left out. For gains of -1, 0 and
    1 it is McNemar's exact test.
    """
    from scipy.special import bdtr

    above, below = int((gains > 1e-12).sum()), int((gains < -1e-12).sum())
    return float(min(1.0, 2 * bdtr(min(above, below), above + below, 0.5))) if above + below else 1.0


def detectable_gain(gains: np.ndarray, alpha: float, size: float) -> float | None:
    """The smallest sum of gains with p < *alpha* in `sign_test`, where as many units differ as in *gains* (n,).

    Where even all of these would not do, as many as are needed differ.

    Args:
        gains: of each unit.
        alpha: the significance level.
        size: gain of a unit where none differs in *gains*.

    Returns:
        None where there are not so many units.
    """
    from scipy.special import bdtr

    differ = np.abs(gains) > 1e-12
    fewest = math.floor(math.log2(2 / alpha)) + 1  # all of m units in one direction have p = 2 / 2^m
    if fewest > len(gains):
        return None
    n = max(int(differ.sum()), fewest)
    below = np.arange(n // 2 + 1)
    against = int(below[2 * bdtr(below, n, 0.5) < alpha].max())
    return float((n - 2 * against) * (np.abs(gains[differ]).mean() if differ.any() else size))


def right_and_losses(
    y: np.ndarray, probabilities: np.ndarray | None, predicted: np.ndarray, classes: Sequence[str]
) -> tuple[np.ndarray, np.ndarray | None]:
    """Whether each answer is right (n,), and each item's log-loss (n,) or None without probabilities."""
    right = np.array([str(t) == str(p) for t, p in zip(y, predicted, strict=True)])
    return right, None if probabilities is None else item_losses(y, probabilities, classes)
