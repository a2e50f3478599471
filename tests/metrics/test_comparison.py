"""Which of two heads is better, with units as the evidence."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap

from featcache.core.errors import UsageError
from featcache.metrics.classification import paired, right_and_losses

BITS = st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 9)), min_size=1, max_size=40)


@settings(deadline=None)
@given(BITS)
def test_to_swap_the_heads_is_to_change_the_sign(rows: list[tuple[bool, bool, int]]) -> None:
    a, b, units = (np.array(column) for column in zip(*rows, strict=True))
    one, other = paired(a, b, units=units, resamples=100), paired(b, a, units=units, resamples=100)
    assert one.difference == -other.difference == pytest.approx(a.mean() - b.mean())
    assert (one.a, one.b) == (other.b, other.a) == (a.mean(), b.mean())
    assert one.better + other.better == pytest.approx(1)
    if math.isnan(one.low):
        assert math.isnan(other.high)
        assert len({a[units == u].mean() - b[units == u].mean() for u in units.tolist()}) == 1
    else:
        assert one.low <= one.difference <= one.high
        assert (one.low, one.high) == pytest.approx((-other.high, -other.low))


def test_less_loss_is_better() -> None:
    rng = np.random.default_rng(0)
    a = rng.exponential(size=200)
    b = a + rng.normal(0.3, 0.5, 200)
    found = paired(a, b, larger_is_better=False)
    assert found.difference < 0
    assert found.high < 0
    assert found.better > 0.99
    assert paired(a, b).better == pytest.approx(1 - found.better)


def test_the_interval_is_that_of_scipys_paired_bootstrap() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.random(300) < 0.8, rng.random(300) < 0.75
    found = paired(a, b, resamples=4000)
    wanted = bootstrap(
        (a.astype(float) - b,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=0.008)


def test_what_is_hard_for_both_cancels_out() -> None:
    rng = np.random.default_rng(3)
    hard = rng.exponential(5, 300)
    a, b = hard + rng.normal(0, 0.1, 300), hard + 0.1 + rng.normal(0, 0.1, 300)
    found = paired(a, b, larger_is_better=False)
    assert -0.15 < found.low < found.high < -0.05
    assert found.better == 1.0


def test_copies_are_no_further_evidence() -> None:
    rng = np.random.default_rng(4)
    a, b = rng.random(100) < 0.8, rng.random(100) < 0.7
    once = paired(a, b)
    nine = [np.repeat(x, 9) for x in (a, b)]
    honest, naive = paired(*nine, units=np.repeat(np.arange(100), 9)), paired(*nine)
    assert (honest.low, honest.high) == pytest.approx((once.low, once.high))
    assert naive.high - naive.low < (honest.high - honest.low) / 2


def test_equal_heads_have_no_interval_and_are_even() -> None:
    a = np.array([1, 0, 1, 1])
    found = paired(a, a)
    assert (found.difference, found.better) == (0.0, 0.5)
    assert found.to_dict() == {"a": 0.75, "b": 0.75, "difference": 0.0, "low": None, "high": None, "better": 0.5}


@pytest.mark.parametrize("units", [[0, 0, 0], [0, 1, 2]])
def test_where_all_resamples_are_equal_there_is_no_interval(units: list[int]) -> None:
    found = paired(np.ones(3), np.zeros(3), units=np.array(units))
    assert found.difference == 1.0
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    losses = paired(np.full(3, 0.3), np.full(3, 0.1), units=np.array(units), larger_is_better=False)
    assert math.isnan(losses.low)
    one = paired(np.array([1, 1, 0]), np.array([0, 1, 0]), units=np.zeros(3, int))
    assert math.isnan(one.low)


def test_nothing_to_compare_on_is_an_error() -> None:
    with pytest.raises(UsageError, match="no items"):
        paired(np.array([]), np.array([]))


def test_right_answers_and_losses_of_each_item() -> None:
    right, losses = right_and_losses(
        np.array(["a", "b", "zebra"]), np.array([[0.9, 0.1], [0.8, 0.2], [0.5, 0.5]]), np.array(["a", "a", "b"]), "ab"
    )
    assert right.tolist() == [True, False, False]
    assert losses is not None
    assert losses == pytest.approx([-math.log(0.9), -math.log(0.2), -math.log(np.finfo(float).eps)])
    assert right_and_losses(np.array(["a"]), None, np.array(["a"]), "ab")[1] is None
