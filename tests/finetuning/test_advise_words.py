"""The advice in sentences, which say no more than was measured."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from featcache.finetuning.advise.outcome import Compared, compare
from featcache.finetuning.advise.rule import recommend
from featcache.finetuning.advise.words import reasons

from .advise_making import differing, outcome


def compared(units: int, above: int, below: int, copies: int = 1) -> Compared:
    a, b = differing("mlp", units, above, below)
    a, b = outcome("mlp", np.repeat(a.right, copies)), outcome("softmax", np.repeat(b.right, copies))
    found = compare(a, b, np.repeat(np.arange(units), copies))
    assert found is not None
    return found


def smallest(differ: int) -> int:
    """The smallest majority among so many units that a two-sided sign test finds at 5 %, one by one."""
    differ = max(differ, 1)
    while True:
        for majority in range(differ % 2, differ + 1, 2):
            if binomtest((differ + majority) // 2, differ).pvalue < 0.05:
                return majority
        differ += 1


def told_of(found: Compared) -> str:
    return reasons(recommend(["softmax"], lambda a, b: None), ["softmax", "mlp"], [found], None, None, {})[1]


@settings(deadline=None, max_examples=20)
@given(st.integers(6, 60), st.integers(0, 30), st.integers(0, 30), st.integers(1, 3))
def test_what_could_be_told_from_chance_counts_both_tests(units: int, above: int, below: int, copies: int) -> None:
    above = min(above, units)
    below = min(below, units - above)
    found = compared(units, above, below, copies)
    half = (found.high - found.low) / 2
    assert found.detectable == pytest.approx(max(smallest(above + below) / units, half))
    if abs(found.difference) >= found.detectable:
        assert found.p < 0.05
    if abs(found.difference) < smallest(above + below) / units - 1e-9:
        assert found.better is None


def test_of_few_that_differ_the_sign_test_asks_for_more_than_the_interval() -> None:
    # 4 of 40 better and none worse: the interval is 10 points ± 9, but 4 in one direction are chance.
    found = compared(40, 4, 0)
    assert found.low > 0
    assert found.better is None
    assert (found.high - found.low) / 2 < 0.1
    assert found.detectable == pytest.approx(6 / 40)
    assert "on 40 items a difference has to be about 15.0 points or more to be told from chance" in told_of(found)


def test_five_items_show_no_difference_at_all() -> None:
    found = compared(5, 5, 0)
    assert found.p == pytest.approx(2 / 2**5)
    assert found.detectable is None
    assert "on 5 items no difference at all could be told from chance" in told_of(found)
    # All better by the same is not all equal.
    assert found.low == found.high == 1
    assert "on 200 items all strategies gave equally good answers" in told_of(compared(200, 0, 0)).lower()


def test_a_trial_cut_short_is_not_the_strategy() -> None:
    rights = {"softmax": np.zeros(90), "mlp": np.r_[np.zeros(30), np.ones(60)], "finetune": np.zeros(90)}
    rights |= {"tune b.1": np.zeros(90)}
    by_name = {name: outcome(name, right) for name, right in rights.items()}
    choice = recommend(list(rights), lambda a, b: compare(by_name[a], by_name[b], np.arange(90)))
    assert choice.name == "mlp"
    by_name["finetune"] = replace(by_name["finetune"], shortened=3)
    told = reasons(choice, list(rights), [], None, None, by_name)
    better = "less accurate than hidden layers on the frozen network's vectors: -66.7 points"
    assert any(text.startswith(f"Fine-tuning the whole network: its trial of 3 epochs was {better}") for text in told)
    assert any(text.startswith(f"Tuning the network from b.1 on is {better}") for text in told)
    assert not any(text.startswith("Fine-tuning the whole network is") for text in told)
