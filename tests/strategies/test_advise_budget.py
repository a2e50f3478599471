"""A budget of time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featcache.strategies.advise.budget import Budget

pytestmark = pytest.mark.usefixtures("one_thread")


@given(st.lists(st.tuples(st.floats(0, 50), st.floats(0, 50)), max_size=8), st.floats(1, 100))
def test_no_part_begins_whose_estimate_does_not_fit(parts: list[tuple[float, float]], seconds: float) -> None:
    now = 0.0
    budget = Budget(seconds, lambda: now)
    for number, (estimate, takes) in enumerate(parts):
        left = seconds - now

        def work(takes: float = takes) -> bool:
            nonlocal now
            now += takes
            return True

        done = budget.run(str(number), estimate, work)
        assert (done is True) == (estimate <= max(0.0, left))
        assert (budget.parts[-1].reason is None) == (done is True)
        assert budget.parts[-1].seconds == (pytest.approx(takes) if done else None)
    assert len(budget.parts) == len(parts)
