"""Scores are scikit-learn's; intervals hold the value and know what is independent."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from featcache.core.errors import UsageError
from featcache.metrics.classification import score
from featcache.metrics.intervals import Interval, wilson


def problem(n: int, k: int, seed: int, skill: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """True labels, probabilities that know something of them, predicted labels, and the classes."""
    rng = np.random.default_rng(seed)
    classes = [f"class {i}" for i in range(k)]
    truth = rng.integers(0, k, n)
    z = rng.normal(size=(n, k))
    z[np.arange(n), truth] += skill
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    return np.array(classes)[truth], p, np.array(classes)[p.argmax(1)], classes


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 60), st.integers(2, 6), st.integers(0, 10_000), st.floats(-2, 4))
def test_values_are_those_of_scikit_learn(n: int, k: int, seed: int, skill: float) -> None:
    y, p, said, classes = problem(n, k, seed, skill)
    got = score(y, p, said, classes, resamples=50)
    assert got.n == n
    assert got.accuracy.value == pytest.approx(reference.accuracy_score(y, said), abs=1e-12)
    # scikit-learn warns of classes that are predicted and never occur; the mean over those that do is meant.
    recalls = reference.recall_score(y, said, average=None, labels=sorted(set(y)), zero_division=0)
    assert got.balanced_accuracy.value == pytest.approx(recalls.mean(), abs=1e-12)
    if set(said) <= set(y) and len(set(y)) > 1:
        assert got.balanced_accuracy.value == pytest.approx(reference.balanced_accuracy_score(y, said), abs=1e-12)
    assert got.macro_f1.value == pytest.approx(
        reference.f1_score(y, said, average="macro", zero_division=0), abs=1e-12
    )  # fmt: skip
    assert got.log_loss is not None
    assert got.log_loss.value == pytest.approx(reference.log_loss(y, p, labels=classes), rel=1e-9)
    assert got.accuracy.low <= got.accuracy.value <= got.accuracy.high
    if n == 1:
        assert math.isnan(got.log_loss.low)
    else:
        assert got.log_loss.low <= got.log_loss.value <= got.log_loss.high
    for interval in (got.balanced_accuracy, got.macro_f1):
        if got.accuracy.value in (0.0, 1.0):
            assert math.isnan(interval.low)
            assert math.isnan(interval.high)
        else:
            assert interval.low <= interval.value <= interval.high


def test_intervals_shrink_with_more_items() -> None:
    widths = []
    for n in (50, 500, 5000):
        got = score(*problem(n, 3, 1))
        assert got.log_loss is not None
        widths.append([i.high - i.low for i in (got.accuracy, got.balanced_accuracy, got.macro_f1, got.log_loss)])
    assert (np.diff(widths, axis=0) < 0).all()
    np.testing.assert_allclose(np.array(widths[0]) / np.array(widths[2]), 10, rtol=0.35)


def test_the_interval_of_the_accuracy_is_near_the_normal_one() -> None:
    got = score(*problem(2000, 3, 2), resamples=4000).accuracy
    half = 1.96 * np.sqrt(got.value * (1 - got.value) / 2000)
    assert (got.high - got.low) / 2 == pytest.approx(half, rel=0.08)


def test_copies_are_no_further_evidence() -> None:
    y, p, said, classes = problem(100, 3, 3)
    once = score(y, p, said, classes)
    again = [np.repeat(a, 9, axis=0) for a in (y, p, said)]
    naive = score(*again, classes)
    honest = score(*again, classes, units=np.repeat(np.arange(100) * 7, 9))
    assert honest.accuracy.value == pytest.approx(once.accuracy.value)
    for name in ("accuracy", "balanced_accuracy", "macro_f1", "log_loss"):
        one, other, many = (getattr(s, name) for s in (once, honest, naive))
        assert (other.low, other.high) == pytest.approx((one.low, one.high))
        assert other.high - other.low > 2 * (many.high - many.low)


@pytest.mark.parametrize("right", [True, False])
def test_where_all_are_equal_the_interval_is_wilsons_over_units(right: bool) -> None:
    y = np.array(["a", "b"] * 20)
    said = y if right else np.array(["b", "a"] * 20)
    got = score(y, None, said, ["a", "b"], units=np.arange(40) // 4)
    # Wilson (1927): z² / (n + z²) is the bound that is not 0 or 1.
    bound = 1.959964**2 / (10 + 1.959964**2)
    assert got.accuracy.value == float(right)
    assert (got.accuracy.low, got.accuracy.high) == pytest.approx((1 - bound, 1) if right else (0, bound), abs=1e-6)
    assert got.log_loss is None


@pytest.mark.parametrize("units", [[0] * 10, [0] * 5 + [1] * 5])
def test_units_that_are_all_alike_say_nothing_of_others(units: list[int]) -> None:
    """One group of images, or two of which four in five are right: no score is known to the last digit."""
    y = np.array(["a", "a", "b", "b", "b"] * 2)
    said = np.array(["a", "a", "b", "b", "a"] * 2)
    p = np.where(said[:, None] == ["a", "b"], 0.7, 0.3)
    got = score(y, p, said, ["a", "b"], units=np.array(units))
    assert got.accuracy == Interval(0.8, *wilson(0.8, len(set(units))))
    assert got.log_loss is not None
    for other in (got.balanced_accuracy, got.macro_f1, got.log_loss):
        assert math.isnan(other.low)
        assert math.isnan(other.high)
        assert math.isfinite(other.value)


def test_wilsons_interval_is_that_of_the_textbook() -> None:
    assert wilson(0.5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert wilson(0.81, 263) == pytest.approx((0.7584, 0.8527), abs=1e-3)


@pytest.mark.parametrize("n", range(1, 60))
def test_wilsons_interval_holds_the_share(n: int) -> None:
    for right in range(n + 1):
        low, high = wilson(right / n, n)
        assert 0 <= low <= right / n <= high <= 1


def test_an_unknown_true_class_counts_as_wrong_with_probability_zero() -> None:
    y = np.array(["a", "b", "zebra", "a"])
    p = np.array([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5], [0.6, 0.4]])
    got = score(y, p, np.array(["a", "b", "a", "a"]), ["a", "b"])
    assert got.accuracy.value == 0.75
    assert got.balanced_accuracy.value == pytest.approx(2 / 3)
    assert got.macro_f1.value == pytest.approx((0.8 + 1 + 0) / 3)
    assert got.log_loss is not None
    lost = -np.log([0.9, 0.8, np.finfo(np.float64).eps, 0.6]).mean()
    assert got.log_loss.value == pytest.approx(lost)


def test_the_columns_are_those_of_the_classes_as_given() -> None:
    y, p, said, classes = problem(40, 3, 5)
    assert score(y, p[:, ::-1], said, classes[::-1]) == score(y, p, said, classes)


def test_the_bootstrap_follows_its_seed() -> None:
    drawn = [score(*problem(60, 3, 6), seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1]
    assert drawn[0].log_loss != drawn[2].log_loss


def test_no_resampling_gives_wilsons_interval_alone() -> None:
    got = score(*problem(20, 2, 8), resamples=0)
    assert got.accuracy == Interval(got.accuracy.value, *wilson(got.accuracy.value, 20))
    assert got.macro_f1.to_dict("f1") == {"f1": got.macro_f1.value, "low": None, "high": None}


def test_memory_does_not_grow_with_resamples_times_items_or_classes_squared() -> None:
    # All counts at once would take 80 MB twice, all confusion matrices 320 MB.
    y, p, said, classes = problem(10_000, 200, 9)
    tracemalloc.start()
    score(y, p, said, classes)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 110e6


def test_nothing_to_score_is_an_error() -> None:
    with pytest.raises(UsageError, match="no items"):
        score(np.array([], dtype=str), None, np.array([], dtype=str), ["a", "b"])
