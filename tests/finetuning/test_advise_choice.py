"""Which strategy is recommended, and what comparisons claim."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, norm

from featcache.finetuning.advise.choose import (
    ALL_BLOCKS,
    Choice,
    Compared,
    Outcome,
    cheapest_first,
    compare,
    recommend,
)  # fmt: skip
from featcache.finetuning.advise.measure import depth_report
from featcache.finetuning.advise.report import reasons
from featcache.metrics.classification import sign_test

from .advise_making import differing, outcome
from .outcome_tables import DEPTHS, NAMES, RECORDED, TABLES, Table, drawn_layers, drawn_table, given_table


def numbers(found: Compared) -> Any:
    return pytest.approx([found.difference, found.low, found.high, found.p], rel=1e-3, abs=1e-9)


def check(choice: Choice, recorded: list[Any]) -> None:
    """The same choice for the same reasons."""
    name, over, runner_up, second, worse, contradictory = recorded
    assert choice.name == NAMES[name]
    assert (choice.over is None) == (over is None)
    if choice.over is not None:
        assert [choice.over.a, choice.over.b] == [NAMES[place] for place in over[:2]]
        assert over[2:] == numbers(choice.over)
    assert (choice.second is None) == (second is None)
    if choice.second is not None:
        assert choice.second.a == NAMES[runner_up]
        assert second == numbers(choice.second)
    assert [[found.a, found.b] for found in choice.worse] == [[NAMES[a], NAMES[b]] for a, b in worse]
    assert choice.contradictory == bool(contradictory)


def outcomes_of(table: Table) -> dict[str, Outcome]:
    return {name: Outcome(name, *answered, 1.0, 1.0) for name, answered in table.items()}


def check_claims(choice: Choice, outcomes: Mapping[str, Outcome]) -> None:
    """The words claim only what the intervals show."""
    told = reasons(choice, outcomes, None, None, None)
    assert ("better than" in told[0] and "points" in told[0]) == (choice.over is not None)
    if choice.second is not None:
        assert any("may be chance" in text for text in told[1:]) == (choice.second.better is None)
    for found in choice.worse:
        assert found.better == found.a
        assert found.low > 0
        assert found.p < 0.05
    # All comparisons with one strategy hold together at 95 %.
    for found in choice.comparisons:
        assert max(1, len(outcomes) - 1) * (1 - found.confidence) == pytest.approx(0.05)


def test_the_choice_on_drawn_tables_is_the_recorded_one() -> None:
    drawn = [(number, *drawn_table(number)) for number in range(TABLES)]
    # Tables of one size after another: the bootstrap's draws for it are kept.
    for number, units, table in sorted(drawn, key=lambda one: (len(np.unique(one[1])), len(one[1]))):
        outcomes = outcomes_of(table)
        choice = recommend(outcomes, units)
        check(choice, RECORDED["drawn"][number])
        check_claims(choice, outcomes)


@pytest.mark.parametrize("recorded", RECORDED["given"], ids=lambda recorded: recorded["what"])
def test_the_choice_on_given_tables_is_the_recorded_one(recorded: dict[str, Any]) -> None:
    """The benchmark's problems; equal, contradicting and cut-off trials; what would convince alone among many."""
    units, table = given_table(recorded)
    check(recommend(outcomes_of(table), units), recorded["choice"])


def test_the_recorded_tables_hold_what_they_should() -> None:
    chosen = [recorded[0] for recorded in RECORDED["drawn"]]
    assert min(chosen.count(name) for name in range(len(NAMES))) >= 10
    assert sum(recorded[5] for recorded in RECORDED["drawn"]) >= 20  # contradict
    assert sum(recorded[1] is None for recorded in RECORDED["drawn"]) >= 100  # nothing is better


@pytest.mark.parametrize("number", range(DEPTHS))
def test_the_depth_of_drawn_layers_is_the_recorded_one(number: int) -> None:
    right = drawn_layers(number)
    names, n = list("abcdef"[: len(right)]), right.shape[1]
    depths = [(place + 1) / len(names) for place in range(len(names))]
    probes = [outcome(name, answers) for name, answers in zip(names, right, strict=True)]
    found, late = depth_report(names, depths, probes, np.arange(n), 0)
    best, earliest, unknown, gain = RECORDED["depths"][number]
    assert (found["best"], found["similarity_at_least"]) == (names[best], depths[earliest])
    assert (found["similarity"] is None) == (unknown is not None)
    if unknown is not None:
        a, b, most = unknown
        assert found["similarity_unknown"].endswith(f"items {a} may be better than {b} by up to {most} points")
    assert (late is None) == (gain is None)
    if late is not None:
        assert gain == numbers(late)


def test_the_order_is_from_cheap_to_expensive() -> None:
    assert cheapest_first(NAMES[::-1]) == ["softmax", ALL_BLOCKS, "mlp", "knn", *NAMES[5:3:-1], *NAMES[6:]]


@given(st.lists(st.sampled_from([-1, 0, 1]), max_size=40))
def test_the_sign_test_is_the_binomial_one(gains: list[int]) -> None:
    above, below = gains.count(1), gains.count(-1)
    expected = 1.0 if not above + below else binomtest(above, above + below).pvalue
    assert sign_test(np.array(gains, float)) == pytest.approx(expected)


def test_only_items_that_both_answered_are_compared() -> None:
    a = outcome("knn", np.ones(10), np.arange(10))
    b = outcome("softmax", np.r_[np.zeros(5), np.ones(5)], np.arange(5, 15))
    found = compare(a, b, np.arange(20))
    assert found is not None
    assert (found.items, found.difference) == (5, 1.0)
    assert compare(a, outcome("mlp", np.ones(3), np.arange(12, 15)), np.arange(20)) is None
    # All better by the same is not all equal.
    assert found.low == found.high == 1


def test_the_interval_is_as_wide_as_the_confidence_asks() -> None:
    better, base = differing("mlp", 400, 90, 40)
    # Of many items the bootstrap is the normal interval of a mean of gains -1, 0 and 1.
    deviation = np.sqrt((130 / 400 - (50 / 400) ** 2) / 400)
    for confidence in (0.95, 0.99, 0.9955):
        found = compare(better, base, np.arange(400), confidence=confidence)
        assert found is not None
        half = norm.ppf((1 + confidence) / 2) * deviation
        assert [found.low, found.high] == pytest.approx([0.125 - half, 0.125 + half], abs=0.1 * half)


def test_copies_are_no_further_evidence() -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.random(30) < 0.7).astype(float), (rng.random(30) < 0.4).astype(float)
    once = compare(outcome("mlp", a), outcome("softmax", b), np.arange(30))
    copies = [outcome(name, np.repeat(right, 3)) for name, right in (("mlp", a), ("softmax", b))]
    often = compare(copies[0], copies[1], np.repeat(np.arange(30), 3))
    assert once is not None
    assert often is not None
    assert often.units == once.units == 30
    assert [often.low, often.high, often.p] == pytest.approx([once.low, once.high, once.p])


def smallest(differ: int) -> int:
    """The smallest majority among so many units that a two-sided sign test finds at 5 %, one by one."""
    differ = max(differ, 1)
    while True:
        for majority in range(differ % 2, differ + 1, 2):
            if binomtest((differ + majority) // 2, differ).pvalue < 0.05:
                return majority
        differ += 1


def told_of(units: int, above: int, below: int) -> tuple[Compared, str]:
    """Two strategies compared, and what is said of the differences that could be found."""
    pair = {found.name: found for found in differing("mlp", units, above, below)}
    (found,) = recommend(pair, np.arange(units)).comparisons
    return found, reasons(recommend(pair, np.arange(units)), pair, None, None, None)[1]


@settings(deadline=None, max_examples=20)
@given(st.integers(6, 60), st.integers(0, 30), st.integers(0, 30))
def test_what_could_be_told_from_chance_counts_both_tests(units: int, above: int, below: int) -> None:
    above, below = min(above, units), min(below, units - min(above, units))
    found, _ = told_of(units, above, below)
    assert found.detectable == pytest.approx(max(smallest(above + below) / units, (found.high - found.low) / 2))
    if abs(found.difference) < smallest(above + below) / units - 1e-9:
        assert found.better is None


def test_of_few_that_differ_the_sign_test_asks_for_more_than_the_interval() -> None:
    # 4 of 40 better and none worse: the interval is 10 points ± 9, but 4 in one direction are chance.
    found, told = told_of(40, 4, 0)
    assert found.low > 0
    assert found.better is None
    assert found.detectable == pytest.approx(6 / 40)
    assert told.startswith("Little is known from 40 independent items; more")
    assert "on 40 items only differences of about 15.0 points or more can be told from chance." in told
    found, told = told_of(5, 5, 0)
    assert (found.p, found.detectable) == (pytest.approx(2 / 2**5), None)
    assert "on 5 items no difference at all could be told from chance" in told
    assert told_of(200, 0, 0)[1] == "On 200 items all strategies gave equally good answers."


def test_a_trial_cut_short_is_not_the_strategy() -> None:
    rights = {"softmax": np.zeros(90), "mlp": np.r_[np.zeros(30), np.ones(60)], "finetune": np.zeros(90)}
    by_name = {name: outcome(name, right) for name, right in (rights | {NAMES[4]: np.zeros(90)}).items()}
    by_name["finetune"] = replace(by_name["finetune"], shortened=3, note="a trial of 3 epochs at most, of 12")
    told = reasons(recommend(by_name, np.arange(90)), by_name, None, None, None)
    worse = "less accurate than the MLP on frozen features: -66.7 points"
    assert any(text.startswith(f"Full fine-tuning: its trial of 3 epochs was {worse}") for text in told)
    assert any(text.startswith(f"Partial fine-tuning from b.1 is {worse}") for text in told)
    assert "Full fine-tuning: a trial of 3 epochs at most, of 12." in told


def test_what_is_said_of_contradictions_and_of_lower_losses() -> None:
    said = {}
    for recorded in RECORDED["given"][9:]:  # the first are the benchmark's
        outcomes = outcomes_of(given_table(recorded)[1])
        units = np.arange(recorded["n"])
        said[recorded["what"]] = reasons(recommend(outcomes, units), outcomes, None, None, None)[0]
    assert "the comparisons contradict each other" in said["contradiction"]
    assert "its log-loss is lower (0.49, on the last layer alone 0.5; that may be chance)" in said["lower loss"]
    assert said["softmax and knn alone"].endswith(
        "it costs least to use, and none of the 1 others is better beyond chance."
    )
    assert "nothing else was measured" in said["one strategy"]


def test_what_is_said_of_depth_and_of_more_images() -> None:
    hard = np.random.default_rng(0).random(500)

    def told(*rights: np.ndarray) -> list[str]:
        names = list("abcdef"[: len(rights)])
        probes = [outcome(name, right) for name, right in zip(names, rights, strict=True)]
        depths = [(place + 1) / len(names) for place in range(len(names))]
        depth, late = depth_report(names, depths, probes, np.arange(len(rights[0])), 0)
        alone = {"softmax": probes[0]}
        return reasons(recommend(alone, np.arange(500)), alone, late, depth, late)[1:]

    more, last, late = told(*(hard < share for share in (0.3, 0.5, 0.7, 0.9)))
    assert more.startswith("Twice the training images helped, so more may help again: +")
    assert last == "The last layer of the frozen network is better than each block before it beyond chance."
    assert late.startswith("Its last layer beats its middle, as on images like its training data: +")
    few = told(*np.ones((3, 30)))[1]
    assert few.startswith("The frozen network improves up to 33 % of its depth at least; beyond, by its 97.5 % ")
    more, same = told(*np.ones((3, 600)))
    assert more.startswith("Whether more training images would help is not known")
    assert same == "After 33 % of its depth the frozen network improves by 2 points at most."
    unlike = told(hard < 0.4, hard < 0.9, hard < 0.9, hard < 0.5)[-1]
    assert unlike.startswith("Its middle beats its last layer, as on images unlike its training data: +")
