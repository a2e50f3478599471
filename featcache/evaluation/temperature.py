"""Scores into probabilities by one number: softmax(scores / T) (Guo et al. 2017, temperature scaling)."""

from __future__ import annotations

import numpy as np

_AT_ONCE = 1_000_000
_FLATTEST, _STEEPEST = 1e-3, 1e6
"""Bounds of the slope 1/T for scores of spread 1."""


def softmax(scores: np.ndarray) -> np.ndarray:
    """(n, k) scores into probabilities, float64, rows that sum to 1."""
    z = np.asarray(scores, dtype=np.float64)
    z = np.exp(z - z.max(axis=1, keepdims=True))
    return np.asarray(z / z.sum(axis=1, keepdims=True))


def log_loss(scores: np.ndarray, numbers: np.ndarray) -> float:
    """Mean of -ln softmax(scores)[number], for (n, k) scores and (n,) class numbers."""
    z = scores - scores.max(axis=1, keepdims=True)
    return float((np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(z)), numbers]).mean())


def fit_temperature(
    scores: np.ndarray,
    numbers: np.ndarray,
    weights: np.ndarray | None = None,
    start: float | None = None,
    smoothed: bool = True,
) -> tuple[float, float]:
    """The temperature of the least log-loss.

    The loss is convex in 1/T. So that it has a minimum where every row is right by its scores, each is
    taken to be right but for a small part, as by Platt (1999, section 2.2): as if there were one row more
    that is right and one whose class is the likeliest of the wrong ones.

    Args:
        scores: (n, k) of rows that the scores were not fitted on.
        numbers: (n,) the true class of each row, a column of *scores*.
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
        z[np.arange(len(z)), numbers[at : at + size]] = -np.inf
        others[at : at + size] = z.max(axis=1)

    def moments(slope: float) -> tuple[float, float, float]:
        """Mean log-loss, and the first two derivatives of the smoothed one."""
        loss = first = second = 0.0
        for at in range(0, n, size):
            z = (scores[at : at + size] - mean[at : at + size]) / spread
            own = z[np.arange(len(z)), numbers[at : at + size]]
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
