"""Whether probabilities mean what they say, and one number that mends most of it.

The **expected calibration error** (Naeini et al. 2015; Guo et al. 2017, equation 3) is the mean gap
between how sure a head is and how often it is right. Bins hold equally many items (Nguyen and O'Connor
2015), since most of a good head's probabilities are near 1. **Temperature scaling** (Guo et al. 2017,
section 4.2) divides the logits by one number T, chosen by the least log-loss on items the head was not
fitted on. No label changes by it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from featcache.evaluation.temperature import fit_temperature, log_loss, softmax

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
        truth: (n,) class numbers.

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


def tempered(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """What softmax(z) (n, k) becomes at a temperature: softmax(z / T). Undone by 1 / T."""
    z = np.log(np.maximum(probabilities, np.finfo(np.float64).tiny)) / temperature
    return softmax(z)
