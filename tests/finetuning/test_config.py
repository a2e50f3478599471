"""The learning rate of each stage, and settings that are refused."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import pytest

from featcache.core.errors import UsageError
from featcache.finetuning.config import NEW, PRETRAINED, SCRATCH, Schedule, TrainingConfig


def test_learning_rates_of_stages() -> None:
    config = Schedule(layer_decay=0.5)
    assert [config.share_of_stage(stage, 4) for stage in range(4)] == [0.125, 0.25, 0.5, 1]
    assert {Schedule(layer_decay=1).share_of_stage(stage, 9) for stage in range(9)} == {1}


@pytest.mark.parametrize("stage", [-1, 4, 2**70])
def test_a_stage_that_is_not_there_is_refused(stage: int) -> None:
    with pytest.raises(UsageError, match="stage is a number from 0"):
        Schedule().share_of_stage(stage, 4)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("lr", 0.0),
        ("lr", math.nan),
        ("lr", math.inf),
        ("weight_decay", -0.1),
        ("warmup_fraction", 1.0),
        ("layer_decay", 0.0),
        ("layer_decay", 1.1),
        ("patience", 0),
        ("batch_size", 0),
        ("label_smoothing", 1.0),
        ("dropout", 1.0),
        ("hidden", ()),
        ("hidden", (8, 0)),
        ("precision", "float16"),
        ("seed", -1),
    ],
)
def test_what_is_out_of_range_is_refused(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=re.escape(f"{name} is {value!r} and must be ")):
        TrainingConfig(**{name: value})


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(UsageError, match=r"epochs is 0 .*; warmup_fraction is -1 .*; seed is -2"):
        TrainingConfig(epochs=0, warmup_fraction=-1, seed=-2)


@pytest.mark.parametrize("own", [PRETRAINED, NEW, SCRATCH])
def test_what_is_not_given_is_the_settings_of_the_init(own: Schedule) -> None:
    assert own.over(None) == own.over(TrainingConfig()) == own
    few = own.over(TrainingConfig(epochs=20, dropout=0.0))
    assert few == replace(own, epochs=20, dropout=0.0)
    whole = Schedule(lr=0.5)
    assert own.over(whole) == whole  # of a schedule all is given
    assert set(TrainingConfig().to_dict().values()) == {None}
    assert None not in few.to_dict().values()
