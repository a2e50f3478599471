"""What probes by depth say together."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from featcache.strategies.advise.depth import by_depth, probed_blocks

from .advise_making import outcome

pytestmark = pytest.mark.usefixtures("one_thread")


def test_depth_is_where_nothing_later_is_better() -> None:
    rng = np.random.default_rng(0)
    rights = [rng.random(400) < share for share in (0.4, 0.9, 0.9, 0.9)]
    found = by_depth("abcd", [0.25, 0.5, 0.75, 1.0], [outcome(n, r) for n, r in zip("abcd", rights, strict=True)],
                     np.arange(400), 0)  # fmt: skip
    assert found.similarity == 0.5
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
    assert two.similarity == 1.0
    names = "abcdefghijkl"
    rights = [first] * 11 + [best]
    depths = (np.arange(12) + 1) / 12
    all_of_them = by_depth(names, depths, [outcome(n, r) for n, r in zip(names, rights, strict=True)], np.arange(60), 0)
    assert all_of_them.similarity == pytest.approx(1 / 12)
