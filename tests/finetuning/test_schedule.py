"""The learning rate of each step and stage against its formula, and settings that are refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featcache.core.errors import UsageError
from featcache.finetuning.schedule import TrainingConfig


def test_rates_by_hand() -> None:
    schedule = TrainingConfig(rate=0.8, warmup=0.25)
    expected = [0.4, 0.8, 0.8, 0.4 * (1 + math.sqrt(3) / 2), 0.6, 0.4, 0.2, 0.4 * (1 - math.sqrt(3) / 2)]
    assert [schedule.rate_at(step, 8) for step in range(8)] == pytest.approx(expected, rel=1e-14)


def test_after_the_last_step_the_rate_would_be_0() -> None:
    assert TrainingConfig().rate_at(200, 200) == pytest.approx(0, abs=1e-18)


def test_without_warm_up_it_begins_at_the_top() -> None:
    assert TrainingConfig(rate=0.3, warmup=0).rate_at(0, 10) == 0.3


@given(st.integers(1, 400), st.floats(0, 0.99), st.floats(1e-6, 10))
def test_it_rises_evenly_and_then_only_falls(steps: int, warmup: float, rate: float) -> None:
    schedule = TrainingConfig(rate=rate, warmup=warmup)
    rates = np.array([schedule.rate_at(step, steps) for step in range(steps)])
    rising = round(warmup * steps)
    np.testing.assert_allclose(rates[:rising], rate * np.arange(1, rising + 1) / max(rising, 1), rtol=1e-12)
    assert (np.diff(rates[rising:]) < 0).all()
    assert (rates > 0).all()
    assert rates.max() == pytest.approx(rate)


def test_rates_of_stages() -> None:
    schedule = TrainingConfig(layer_decay=0.5)
    assert [schedule.share_of_stage(stage, 4) for stage in range(4)] == [0.125, 0.25, 0.5, 1]
    assert {TrainingConfig(layer_decay=1).share_of_stage(stage, 9) for stage in range(9)} == {1}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("rate", 0.0),
        ("rate", math.nan),
        ("rate", math.inf),
        ("weight_decay", -0.1),
        ("warmup", 1.0),
        ("layer_decay", 0.0),
        ("layer_decay", 1.1),
        ("patience", 0),
        ("batch_size", 0),
        ("label_smoothing", 1.0),
        ("seed", -1),
    ],
)
def test_what_is_out_of_range_is_refused(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"{name} is {value!r} and must be "):
        TrainingConfig(**{name: value})


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(UsageError, match=r"epochs is 0 .*; warmup is -1 .*; seed is -2"):
        TrainingConfig(epochs=0, warmup=-1, seed=-2)
