"""Views have one order, and a choice means what it says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featcache.core.errors import UnknownNameError, UsageError
from featcache.core.names import VIEW_0, choose, in_order, seeds, view_name

POLICY = "ab" * 32
NAMES = st.builds(view_name, st.sampled_from([POLICY, "c" * 64]), st.integers(0, 300), st.integers(1, 300))


def test_numbers_are_ordered_as_numbers() -> None:
    shuffled = [view_name(POLICY, seed, index) for seed in (10, 0, 2) for index in (11, 1, 2)]
    expected = [VIEW_0, *(view_name(POLICY, seed, index) for seed in (0, 2, 10) for index in (1, 2, 11))]
    assert in_order([*shuffled, VIEW_0]) == expected
    assert view_name(POLICY, 3, 4) == "abababababababab-3-4"


@given(st.lists(NAMES | st.text(min_size=1, max_size=8)), st.randoms())
def test_the_order_does_not_depend_on_the_order_given(names: list[str], random) -> None:  # type: ignore[no-untyped-def]
    shuffled = random.sample(names, len(names))
    assert in_order(names) == in_order(shuffled)
    assert in_order(names) == sorted(in_order(names), key=in_order(names).index)
    assert in_order([*names, VIEW_0])[0] == VIEW_0


def test_seeds() -> None:
    assert seeds([VIEW_0, view_name(POLICY, 10, 1), view_name("c" * 64, 2, 1), view_name(POLICY, 10, 2)]) == [2, 10]
    assert seeds([VIEW_0, "of-another-kind", "unnumbered"]) == []


def test_choices() -> None:
    one, two = view_name(POLICY, 0, 1), view_name(POLICY, 0, 2)
    stored = [two, VIEW_0, one]
    assert choose(None, stored) == choose(False, stored) == [VIEW_0]
    assert choose(True, stored) == [VIEW_0, one, two]
    assert choose([two, VIEW_0, two], stored) == [VIEW_0, two]
    assert choose([one], stored) == [one]
    with pytest.raises(UnknownNameError, match="stored view"):
        choose([view_name(POLICY, 0, 3)], stored)
    with pytest.raises(UsageError, match="No view"):
        choose([], stored)
