"""Calibration of probabilities: the expected calibration error, and temperature scaling.

The **expected calibration error** (Naeini et al. 2015; Guo et al. 2017, equation 3) is the mean gap between
confidence and accuracy. Bins hold equally many items (Nguyen and O'Connor 2015), since most of a good head's
probabilities are near 1. **Temperature scaling** (Guo et al. 2017, section 4.2) divides the logits by one number T,
the one with the lowest log-loss on items the head was not fitted on. No label changes by it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

_AT_ONCE = 1_000_000
_FLATTEST, _STEEPEST = 1e-3, 1e6
"""Bounds of the slope 1/T for scores of spread 1."""


def softmax(scores: np.ndarray) -> np.ndarray:
    """(n, k) scores into probabilities, float64, rows that sum to 1."""
    z = np.asarray(scores, dtype=np.float64)
    z = np.exp(z - z.max(axis=1, keepdims=True))
    return np.asarray(z / z.sum(axis=1, keepdims=True))


def sigmoid(scores: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-scores)), float64, of any shape."""
    # Not scipy.special.expit: importing it takes longer than to predict one image.
    return np.asarray(np.exp(-np.logaddexp(0, -np.asarray(scores, dtype=np.float64))))


def log_loss(scores: np.ndarray, class_ids: np.ndarray) -> float:
    """Mean of -ln softmax(scores)[class_id], for (n, k) scores and (n,) class ids."""
    z = scores - scores.max(axis=1, keepdims=True)
    return float((np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(z)), class_ids]).mean())


def fit_temperature(
    scores: np.ndarray,
    class_ids: np.ndarray,
    weights: np.ndarray | None = None,
    start: float | None = None,
    smoothed: bool = True,
) -> tuple[float, float]:
    """The temperature with the lowest log-loss.

    The loss is convex in 1/T. So that it has a minimum where every row is right by its scores, each is
    taken to be right but for a small part, as by Platt (1999, section 2.2): as if there were one row more
    that is right and one whose class is the likeliest of the wrong ones.

    Args:
        scores: (n, k) of rows that the scores were not fitted on.
        class_ids: (n,) the true class of each row, a column of *scores*.
        weights: (n,) of the rows; 1 by default.
        start: a temperature to begin from, which changes the time it takes alone.
        smoothed: False for the least loss of the rows as they are; where that has no minimum, T is a bound.

    Returns:
        T, positive, and the mean log-loss of softmax(scores / T).
    """
    n, k = scores.shape
    weights = np.ones(n) if weights is None else weights
    total = float(weights.sum())
    mean = scores.mean(axis=1, dtype=np.float64, keepdims=True)
    spread = float(np.sqrt(np.mean(np.square(scores - mean)))) or 1.0
    wrong = 1 / (total + 2) if smoothed else 0.0
    size = max(1, _AT_ONCE // k)
    others = np.empty(n)
    for at in range(0, n, size):
        z = (scores[at : at + size] - mean[at : at + size]) / spread
        z[np.arange(len(z)), class_ids[at : at + size]] = -np.inf
        others[at : at + size] = z.max(axis=1)

    def moments(slope: float) -> tuple[float, float, float]:
        """Mean log-loss, and the first two derivatives of the smoothed one."""
        loss = first = second = 0.0
        for at in range(0, n, size):
            z = (scores[at : at + size] - mean[at : at + size]) / spread
            own = z[np.arange(len(z)), class_ids[at : at + size]]
            top = z.max(axis=1, keepdims=True)
            p = np.exp(slope * (z - top))
            mass = p.sum(axis=1)
            p /= mass[:, None]
            expected = (p * z).sum(axis=1)
            target = (1 - wrong) * own + wrong * others[at : at + size]
            w = weights[at : at + size]
            loss += float(w @ (np.log(mass) + slope * (top[:, 0] - own)))
            first += float(w @ (expected - target))
            second += float(w @ ((p * z * z).sum(axis=1) - expected**2))
        return loss / total, first / total, second / total

    low, high = _FLATTEST, _STEEPEST
    slope = min(max(spread / start, low), high) if start else 1.0
    for _ in range(100):
        loss, first, second = moments(slope)
        if first >= 0 and slope == _FLATTEST:
            break
        if first > 0:
            high = slope
        else:
            low = slope
        newton = slope - first / second if second > 0 else np.inf
        following = newton
        if newton <= _FLATTEST:
            following = _FLATTEST
        elif not low < newton < high:
            following = float(np.sqrt(low * high))
        near = abs(following - slope) <= 1e-5 * slope  # and the step, being Newton's, squares that
        slope = following
        if near:
            break
    return spread / slope, loss


BINS = 15


def expected_calibration_error(probabilities: np.ndarray, right: np.ndarray, bins: int = BINS) -> float:
    """The mean of |share of right answers - mean probability| over bins, weighted by their items.

    Args:
        probabilities: (n,) of the label that was answered, or (n, k) of all, of which the largest counts.
        right: (n,) whether the answer was right.
        bins: so many of equal size, as far as possible; items of one probability share a bin.

    Returns:
        From 0 to 1; NaN without items.
    """
    sure = np.asarray(probabilities, dtype=np.float64)
    sure = sure.max(axis=1) if sure.ndim == 2 else sure
    n = len(sure)
    if n == 0:
        return math.nan
    order = np.argsort(sure, kind="stable")
    sure, hits = sure[order], np.asarray(right, dtype=np.float64)[order]
    # Equal probabilities go where the first of them goes, so that the order of the items is irrelevant.
    bin_of = (np.searchsorted(sure, sure, side="left") * bins) // n
    return float(np.abs(np.bincount(bin_of, hits - sure)).sum() / n)


def plain_temperature(logits: np.ndarray, truth: np.ndarray) -> float:
    """The T > 0 for which softmax(logits / T) has the least log-loss, where there is one.

    Args:
        logits: (n, k) of items that the head was not fitted on; rows with a value that is not finite
            are left out.
        truth: (n,) class ids.

    Returns:
        T; 1 where no T is best: every answer is right (the smaller the better), or they are no better
        than chance (the larger the better).
    """
    usable = np.isfinite(logits).all(axis=1)
    z, truth = np.asarray(logits, dtype=np.float64)[usable], np.asarray(truth)[usable]
    if not len(z):
        return 1.0
    own = z[np.arange(len(z)), truth]
    # The slope of the loss in 1 / T at its ends: no sharpness at all, and all of it.
    if not (z.mean(axis=1) - own).mean() < 0 or not (own < z.max(axis=1)).any():
        return 1.0
    return fit_temperature(z, truth, smoothed=False)[0]


def held_out_temperature(estimator: Any, y: np.ndarray, views: int = 1) -> float | None:
    """The temperature of a fitted head from its own out-of-fold logits.

    Args:
        estimator: a fitted head; one with ``held_out_logits_`` (n·views, k), for each row of its training the
            logits of a fit that had not seen it (NaN where there was none), columns as in ``classes_``. Rows
            with a value that is not finite take no part: a fit that never saw a class says nothing of how sure
            one is that saw all. With ``held_out_rows_`` (m,) besides, the logits are (m, k), of these rows alone.
        y: (n,) labels of the items.
        views: so many rows of each item follow one another. The first one counts, as answers are asked for it.

    Returns:
        T, 1 where it would not lower the out-of-fold log-loss; None for a head without such logits, and for
        one with class weights, whose probabilities are meant to be other than the shares of the classes.
    """
    logits = getattr(estimator, "held_out_logits_", None)
    if logits is None or getattr(estimator, "class_weight", None) is not None:
        return None
    rows = getattr(estimator, "held_out_rows_", np.arange(len(logits)))
    first = rows % views == 0
    logits, y = logits[first], y[rows[first] // views]
    place = {str(name): i for i, name in enumerate(estimator.classes_)}
    truth = np.array([place[str(label)] for label in y])
    usable = np.isfinite(logits).all(axis=1)
    logits, truth = np.asarray(logits, dtype=np.float64)[usable], truth[usable]
    temperature = plain_temperature(logits, truth)
    if temperature == 1.0 or log_loss(logits / temperature, truth) >= log_loss(logits, truth):
        return 1.0
    return temperature


def with_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """What softmax(z) (n, k) becomes at a temperature: softmax(z / T). Undone by 1 / T."""
    z = np.log(np.maximum(probabilities, np.finfo(np.float64).tiny)) / temperature
    return softmax(z)
