"""What probes by depth say together."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import beta, binomtest, norm

from featcache.finetuning.advise.depth import MARGIN, Depth, by_depth, ceiling, probed_blocks
from featcache.finetuning.advise.outcome import compare
from featcache.finetuning.advise.rule import recommend
from featcache.finetuning.advise.words import reasons

from .advise_making import outcome


def test_depth_is_where_nothing_later_is_better() -> None:
    rng = np.random.default_rng(0)
    rights = [rng.random(400) < share for share in (0.4, 0.9, 0.9, 0.9)]
    found = by_depth("abcd", [0.25, 0.5, 0.75, 1.0], [outcome(n, r) for n, r in zip("abcd", rights, strict=True)],
                     np.arange(400), 0)  # fmt: skip
    assert found.at_least == 0.5
    assert found.late_gain is not None
    assert found.late_gain.b == "b"
    assert probed_blocks([str(i) for i in range(3)]) == (["0", "1", "2"], [0.25, 0.5, 0.75])
    many, depths = probed_blocks([str(i) for i in range(40)])
    assert len(many) == 12
    assert (many[0], many[-1], depths[-1]) == ("0", "39", 40 / 41)


def test_what_would_convince_of_one_layer_does_not_of_twelve() -> None:
    # 12 against 2: p = 0.013, below 0.05 and above 0.05 / 11.
    assert 0.05 / 11 < binomtest(2, 14).pvalue < 0.05
    best, first = np.ones(60), np.ones(60)
    first[:12] = 0
    best[12:14] = 0
    two = by_depth("ab", [0.5, 1.0], [outcome("a", first), outcome("b", best)], np.arange(60), 0)
    assert two.similarity == two.at_least == 1.0
    names = "abcdefghijkl"
    rights = [first] * 11 + [best]
    depths = (np.arange(12) + 1) / 12
    all_of_them = by_depth(names, depths, [outcome(n, r) for n, r in zip(names, rights, strict=True)], np.arange(60), 0)
    assert all_of_them.at_least == pytest.approx(1 / 12)


def layered(*rights: np.ndarray) -> Depth:
    """Probes of evenly spaced layers a, b, c, … with these answers, all items independent."""
    names = "abcdef"[: len(rights)]
    depths = [(place + 1) / len(rights) for place in range(len(rights))]
    outcomes = [outcome(name, right) for name, right in zip(names, rights, strict=True)]
    return by_depth(names, depths, outcomes, np.arange(len(rights[0])), 0)


def told_by(depth: Depth) -> str:
    choice = recommend(["softmax"], lambda a, b: None)
    return reasons(choice, ["softmax"], [], None, depth, {})[1]


def test_few_images_do_not_make_layers_equal() -> None:
    # All right everywhere: 30 items exclude nothing, 600 exclude more than 2 points.
    few, many = layered(*np.ones((3, 30))), layered(*np.ones((3, 600)))
    assert few.at_least == many.at_least == pytest.approx(1 / 3)
    assert few.similarity is None
    assert few.to_dict(np.arange(30), 0)["similarity"] is None
    # What Clopper and Pearson leave possible after none of 30, by two comparisons.
    most = beta.ppf(1 - 0.05 / 4, 1, 30)
    assert few.unknown is not None
    assert few.unknown.endswith(f"may be better than a by up to {100 * most:.1f} points")
    assert "is not known, only that it is between 33 % and 100 % of its depth" in told_by(few)
    assert many.similarity == pytest.approx(1 / 3)
    assert many.unknown is None
    assert "After 33 % of its depth the frozen network helps no more" in told_by(many)


def test_a_gain_that_may_be_more_than_the_margin_is_not_nothing() -> None:
    # The later layer wins 20 and loses 10 of 1000: p = 0.1, and its interval goes beyond 2 points.
    first, last = np.ones(1000), np.ones(1000)
    first[:20] = 0
    last[20:30] = 0
    found = layered(first, last)
    assert found.at_least == 0.5
    assert found.similarity is None
    # The normal interval of the difference, which ends at 2.07 points.
    end = 0.01 + norm.ppf(0.975) * np.sqrt((0.03 - 0.01**2) / 1000)
    assert end > MARGIN
    assert ceiling(compare(outcome("b", last), outcome("a", first), np.arange(1000))) == pytest.approx(end, abs=1e-3)
    # With four times the images the same shares are a gain, of one point: the last layer is better.
    assert layered(np.repeat(first, 4), np.repeat(last, 4)).similarity == 1.0


def test_a_later_layer_that_looks_worse_may_still_be_better() -> None:
    # The middle is the most accurate and beats the first, but what the last one does is not known well.
    rng = np.random.default_rng(0)
    first, middle, last = rng.random(400) < 0.5, rng.random(400) < 0.82, rng.random(400) < 0.81
    assert middle.sum() > last.sum()
    found = layered(first, middle, last)
    assert found.best == 1
    assert found.at_least == pytest.approx(2 / 3)
    assert found.similarity is None
    assert found.unknown is not None
    assert "c may be better than b by up to" in found.unknown


def test_late_layers_that_help_are_the_whole_depth() -> None:
    rng = np.random.default_rng(0)
    hard = rng.random(500)
    found = layered(*(hard < share for share in (0.3, 0.5, 0.7, 0.9)))
    assert found.similarity == 1.0
    assert told_by(found).startswith("The last layer of the frozen network is better than each block before it")
