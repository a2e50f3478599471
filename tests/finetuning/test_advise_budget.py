"""A budget of time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from featcache.core.progress import Silent
from featcache.finetuning.advise.budget import Budget, Deadline
from featcache.finetuning.advise.probes import seconds_for

from .advise_making import outcome


@given(st.lists(st.tuples(st.floats(0, 50), st.floats(0, 50)), max_size=8), st.floats(1, 100))
def test_no_part_begins_whose_estimate_does_not_fit(parts: list[tuple[float, float]], seconds: float) -> None:
    now = 0.0
    budget = Budget(seconds, lambda: now)
    for number, (estimate, takes) in enumerate(parts):
        left = 0.98 * seconds - now

        def work(takes: float = takes) -> bool:
            nonlocal now
            now += takes
            return True

        done = budget.run(str(number), estimate, work)
        assert (done is True) == (estimate <= max(0.0, left))
        assert (budget.parts[-1].reason is None) == (done is True)
        assert budget.parts[-1].seconds == (pytest.approx(takes) if done else None)
    assert len(budget.parts) == len(parts)


def test_work_that_takes_longer_than_was_thought_ends_at_its_next_step() -> None:
    now = 0.0
    budget = Budget(10, lambda: now)
    steps = []

    class Seen(Silent):
        ends = 0

        def finish(self) -> None:
            self.ends += 1

    seen = Seen()
    deadline = Deadline(budget, seen)

    def work() -> bool:
        nonlocal now
        deadline.start("work", 5, "steps")
        for step in range(5):
            now += 4
            deadline.advance()
            steps.append(step)
        return True

    assert budget.run("long", 5, work) is None
    assert steps == [0, 1]
    assert seen.ends == 1
    assert budget.parts[-1].seconds == 12
    assert "ended as the budget was spent" in str(budget.parts[-1].reason)
    # So does a part that finds no room in memory.
    budget = Budget(10, lambda: now)
    for error in (MemoryError("no room"), torch.OutOfMemoryError("CUDA out of memory")):

        def fails(error: Exception = error) -> None:
            raise error

        assert budget.run("large", 1, fails) is None
        assert budget.parts[-1].reason == str(error)


def test_probes_of_one_view_take_a_part_of_the_time_of_all_views() -> None:
    many, few = (replace(outcome("softmax", np.ones(n)), seconds=10.0) for n in (4000, 50))
    one = seconds_for(many, 64, [64, 128, 32])
    # Twice as wide takes twice as long, narrower no less; 12 s are the 10 s with a margin.
    assert one == pytest.approx(12 * (1 + 2 + 1))
    assert seconds_for(many, 64, [64, 128, 32], 4) == pytest.approx(one / 4)
    # Of few rows a fit takes no less time than of 400: 200 rows in 4 views are as good as 50.
    assert seconds_for(few, 64, [64, 128, 32], 4) == pytest.approx(one)
    assert seconds_for(few, 64, [64], 16) == pytest.approx(12 * 400 / (16 * 50))
