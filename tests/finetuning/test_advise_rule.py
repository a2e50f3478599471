"""Which strategy is recommended, and what comparisons claim."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, norm

import featcache as fc
from featcache.core.progress import Silent
from featcache.finetuning.advise.learning_items import learning_items
from featcache.finetuning.advise.outcome import Compared, Outcome, compare, sign_test
from featcache.finetuning.advise.probes import probe
from featcache.finetuning.advise.rule import base_of, cheapest_first, confidence_for, recommend
from featcache.finetuning.advise.words import reasons
from featcache.training.dataset import FeatureDataset

from .advise_making import differing, outcome, synthetic

NAMES = ("softmax", "multilayer", "mlp", "tune b.1", "tune b.0", "finetune", "scratch", "knn")


def test_equal_strategies_leave_the_softmax_and_no_claim(tmp_path: Path) -> None:
    path = synthetic(tmp_path / "s.fcache", 30, early=2.5, last=2.5)
    outcomes = {}
    for name, layers, head in (
        ("softmax", "pooled", "softmax"),
        ("multilayer", "b.0:mean_std+b.1:mean_std+pooled", "ridge"),
        ("knn", "pooled", "centroid"),
    ):
        dataset = FeatureDataset.from_store(fc.open(path), layers)
        items = learning_items(dataset, np.arange(60), 0, Silent())
        outcomes[name] = probe(name, items.dataset, items.folds, head, 0, Silent())
    units = items.dataset.groups
    choice = recommend(list(outcomes), lambda a, b: compare(outcomes[a], outcomes[b], units))
    assert choice.name == "softmax"
    assert choice.over is None
    told = reasons(choice, list(outcomes), [], None, None, {})
    assert "none of the 2 others is better beyond chance" in told[0]


def answered() -> st.SearchStrategy[list[Outcome]]:
    """Outcomes of some strategies, the softmax among them, each on some of 40 items and more or less often right."""

    def made(kinds: list[str], seed: int, shares: list[float], parts: list[int]) -> list[Outcome]:
        rng = np.random.default_rng(seed)
        hard = rng.random(40)
        found = []
        for kind, share, part in zip(["softmax", *kinds], shares, parts, strict=False):
            rows = np.arange(40) if kind == "softmax" else np.flatnonzero(np.arange(40) % 3 <= part)
            found.append(outcome(kind, (0.8 * hard + 0.2 * rng.random(40) < share)[rows], rows))
        return found

    return st.builds(
        made,
        st.lists(st.sampled_from(NAMES[1:]), unique=True, max_size=5),
        st.integers(0, 999),
        st.lists(st.floats(0, 1), min_size=6, max_size=6),
        st.lists(st.integers(0, 2), min_size=6, max_size=6),
    )


@settings(deadline=None, max_examples=15)
@given(answered(), st.integers(1, 3))
def test_the_rule_claims_only_what_its_intervals_show(outcomes: list[Outcome], together: int) -> None:
    units = np.arange(40) // together
    by_name = {found.name: found for found in outcomes}
    names = list(by_name)
    made = []

    @cache
    def compared(a: str, b: str):
        found = compare(by_name[a], by_name[b], units, confidence=confidence_for(len(names)))
        made.append(found)
        return found

    choice = recommend(names, compared)
    if choice.name == "softmax":
        assert choice.over is None
        if not choice.contradictory:
            for name in names[1:]:
                assert compared(name, "softmax").better != name
    else:
        against = compared(choice.name, "softmax")
        assert against.low > 0
        assert against.p < 0.05
        assert choice.over == against
        cheaper = cheapest_first(names)[1 : cheapest_first(names).index(choice.name)]
        for name in cheaper:  # each is no better than the softmax beyond doubt, or worse than another
            rivals = [compared(other, name).better for other in names if other != name]
            assert compared(name, "softmax").better != name or set(rivals) & (set(names) - {name})
    told = reasons(choice, cheapest_first(names), [c for c in made if c is not None], None, None, {})
    assert ("better than" in told[0]) == (choice.over is not None)
    if choice.second is not None:
        assert choice.runner_up != choice.name
        assert any("may be chance" in text for text in told) == (choice.second.better is None)
    for found in choice.worse:
        assert found.better == found.a
        assert found.low > 0


def test_of_equally_good_ones_the_cheaper_is_taken() -> None:
    rng = np.random.default_rng(0)
    base, good = rng.random(150) < 0.6, rng.random(150) < 0.95
    better = good.copy()
    better[np.flatnonzero(~good)[:2]] = True
    given = {"softmax": base, "multilayer": base, "tune b.1": good, "finetune": better, "knn": base}
    by_name = {name: outcome(name, right) for name, right in given.items()}
    choice = recommend(list(given), lambda a, b: compare(by_name[a], by_name[b], np.arange(150)))
    assert choice.name == "tune b.1"
    assert choice.runner_up == "finetune"
    assert {found.b for found in choice.worse} == {"softmax", "multilayer", "knn"}


def test_neighbours_cost_less_to_use_than_a_network_of_their_own() -> None:
    rng = np.random.default_rng(0)
    base, good = rng.random(150) < 0.6, rng.random(150) < 0.95
    by_name = {"softmax": outcome("softmax", base), "tune b.1": outcome("tune b.1", good), "knn": outcome("knn", good)}
    choice = recommend(list(by_name), lambda a, b: compare(by_name[a], by_name[b], np.arange(150)))
    assert choice.name == "knn"
    assert choice.runner_up == "tune b.1"


def test_trials_on_different_items_may_contradict_each_other() -> None:
    # Each is better than the softmax on its own 60 items, and worse than the next one where the two overlap.
    rows = {"mlp": np.r_[0:60], "tune b.1": np.r_[30:90], "finetune": np.r_[60:90, 0:30]}
    right = {
        "softmax": np.zeros(90),
        "mlp": np.r_[np.ones(30), np.zeros(30)],
        "tune b.1": np.r_[np.ones(30), np.zeros(30)],
        "finetune": np.r_[np.ones(30), np.zeros(30)],
    }
    by_name = {
        name: outcome(name, right[name][np.argsort(at)], np.sort(at))
        for name, at in ({"softmax": np.arange(90)} | rows).items()
    }
    choice = recommend(list(by_name), lambda a, b: compare(by_name[a], by_name[b], np.arange(90)))
    assert choice.name == "softmax"
    assert choice.over is None
    assert choice.contradictory
    told = reasons(choice, list(by_name), [], None, None, {})
    assert "the comparisons contradict each other" in told[0]
    # Without the third one there is no circle.
    two = recommend(["softmax", "mlp", "tune b.1"], lambda a, b: compare(by_name[a], by_name[b], np.arange(90)))
    assert two.name == "tune b.1"
    assert not two.contradictory


def test_what_shares_no_item_is_not_worse() -> None:
    by_name = {
        "softmax": outcome("softmax", np.zeros(80)),
        "mlp": outcome("mlp", np.r_[np.ones(20), np.zeros(20)], np.arange(40)),
        "finetune": outcome("finetune", np.ones(40), np.arange(40, 80)),
    }
    choice = recommend(list(by_name), lambda a, b: compare(by_name[a], by_name[b], np.arange(80)))
    assert choice.name == "mlp"
    assert {found.b for found in choice.worse} == {"softmax"}
    assert choice.runner_up != "finetune"


def test_the_order_is_from_cheap_to_dear() -> None:
    assert cheapest_first(["scratch", "tune b.1", "finetune", "softmax", "tune b.0", "knn", "multilayer"]) == [
        "softmax", "multilayer", "knn", "tune b.1", "tune b.0", "finetune", "scratch",
    ]  # fmt: skip


@given(st.lists(st.sampled_from([-1, 0, 1]), max_size=40))
def test_the_sign_test_is_the_binomial_one(gains: list[int]) -> None:
    above, below = gains.count(1), gains.count(-1)
    expected = 1.0 if not above + below else binomtest(above, above + below).pvalue
    assert sign_test(np.array(gains, float)) == pytest.approx(expected)


def test_a_handful_of_units_shows_nothing() -> None:
    # The bootstrap alone would trust four units out of twenty.
    right = np.zeros(20)
    right[:4] = 1
    found = compare(outcome("knn", right), outcome("softmax", np.zeros(20)), np.arange(20))
    assert found is not None
    assert found.low > 0
    assert found.better is None


def test_only_items_that_both_answered_are_compared() -> None:
    a = outcome("knn", np.ones(10), np.arange(10))
    b = outcome("softmax", np.r_[np.zeros(5), np.ones(5)], np.arange(5, 15))
    found = compare(a, b, np.arange(20))
    assert found is not None
    assert (found.items, found.difference) == (5, 1.0)
    assert compare(a, outcome("mlp", np.ones(3), np.arange(12, 15)), np.arange(20)) is None


def test_what_would_convince_alone_does_not_among_many() -> None:
    # 12 against 2: p = 0.013, below 0.05 and above 0.05 / 5.
    p = binomtest(2, 14).pvalue
    assert 0.05 / 5 < p < 0.05
    better, base = differing("mlp", 60, 12, 2)
    alone = recommend(["softmax", "mlp"], _within(2, better, base))
    assert alone.name == "mlp"
    others = [outcome(name, base.right) for name in ("multilayer", "tune b.1", "finetune", "scratch")]
    names = ["softmax", "mlp", *(other.name for other in others)]
    among = recommend(names, _within(len(names), better, base, *others))
    assert among.name == "softmax"
    assert among.runner_up == "mlp"
    assert among.worse == ()


def _within(strategies: int, *outcomes: Outcome) -> Callable[[str, str], Compared | None]:
    by_name = {found.name: found for found in outcomes}
    return lambda a, b: compare(by_name[a], by_name[b], np.arange(60), confidence=confidence_for(strategies))


@given(st.integers(2, 20))
def test_the_doubts_of_all_comparisons_with_one_strategy_sum_to_a_twentieth(strategies: int) -> None:
    assert (strategies - 1) * (1 - confidence_for(strategies)) == pytest.approx(0.05)


def test_the_interval_is_as_wide_as_the_confidence_asks() -> None:
    better, base = differing("mlp", 400, 90, 40)
    # Of many items the bootstrap is the normal interval of a mean of gains -1, 0 and 1.
    deviation = np.sqrt((130 / 400 - (50 / 400) ** 2) / 400)
    for strategies in (2, 6, 12):
        confidence = confidence_for(strategies)
        found = compare(better, base, np.arange(400), confidence=confidence)
        assert found is not None
        assert found.confidence == confidence
        half = norm.ppf((1 + confidence) / 2) * deviation
        assert found.low == pytest.approx(0.125 - half, abs=0.1 * half)
        assert found.high == pytest.approx(0.125 + half, abs=0.1 * half)


@given(st.integers(2, 5), st.integers(0, 99))
@settings(deadline=None, max_examples=5)
def test_copies_are_no_further_evidence(copies: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = (rng.random(30) < 0.7).astype(float), (rng.random(30) < 0.4).astype(float)
    once = compare(outcome("mlp", a), outcome("softmax", b), np.arange(30))
    often = compare(
        outcome("mlp", np.repeat(a, copies)), outcome("softmax", np.repeat(b, copies)), np.repeat(np.arange(30), copies)
    )
    assert once is not None
    assert often is not None
    assert often.units == once.units == 30
    assert [often.low, often.high, often.p] == pytest.approx([once.low, once.high, once.p])


def test_of_two_heads_that_cost_the_same_the_lower_log_loss_is_the_base() -> None:
    even = {name: outcome(name, np.tile([1.0, 0.0], 45)) for name in ("softmax", "multilayer", "knn")}
    losses = {"softmax": 0.5, "multilayer": 0.49, "knn": 0.1}
    by_name = {name: replace(found, losses=np.full(90, losses[name])) for name, found in even.items()}

    def within(a: str, b: str) -> Compared | None:
        return compare(by_name[a], by_name[b], np.arange(90))

    assert base_of(by_name) == "multilayer"
    choice = recommend(list(by_name), within, base_of(by_name))
    assert (choice.name, choice.over) == ("multilayer", None)
    told = reasons(choice, cheapest_first(list(by_name)), [], None, None, by_name)
    assert "log-loss is the lower one (0.49, on the last layer alone 0.5; that may be chance)" in told[0]
    # Equal ones, and others than these two, leave the cheapest.
    assert base_of({**by_name, "multilayer": by_name["softmax"]}) == "softmax"
    assert base_of({name: by_name[name] for name in ("softmax", "knn")}) == "softmax"
    # What is better beyond doubt is taken whatever the losses say.
    by_name["softmax"] = replace(by_name["softmax"], right=np.ones(90))
    assert recommend(list(by_name), within, base_of(by_name)).name == "softmax"
