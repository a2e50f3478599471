"""Whatever is given at whatever door: an answer, or an error of ours that names what was given; never a surprise.

`FEATCACHE_FUZZ_CALLS` says how many calls each door gets: the suite makes few, `scripts/bench/fuzz_doors.py` 200.
"""

from __future__ import annotations

import os
import signal
import warnings

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import featcache as fc
from tests.doors import Outcome, table
from tests.kinds.odd_values import names_for, odd

CALLS = int(os.environ.get("FEATCACHE_FUZZ_CALLS", "5"))
SEEDS = st.integers(0, 999)
PATIENCE = 120
"""Seconds; a call that takes longer hangs."""


DOORS = [door for door in table() if door.parameters and door.name != "featcache demo"]
"""`demo` takes nothing but a folder to write to, and draws thousands of images into each new one."""


def is_of_the_signature(error: TypeError) -> bool:
    """Whether a call does not fit a function's signature."""
    parts = ("unexpected keyword argument", "has no argument", "required positional", "positional argu")
    return any(part in str(error) for part in parts)


@pytest.mark.slow
@pytest.mark.parametrize("door", DOORS, ids=str)
def test_no_door_ends_in_a_surprise(door, world_for, monkeypatch):
    world = world_for(door)
    (world.folder / "a" / "b" / "c").mkdir(parents=True)
    monkeypatch.chdir(world.folder / "a" / "b" / "c")  # for names that are taken as relative paths
    names = st.lists(
        st.tuples(st.sampled_from([p.name for p in door.parameters]), st.sampled_from(names_for(door)), SEEDS),
        min_size=1, max_size=2, unique_by=lambda one: one[0],
    )  # fmt: skip

    @settings(max_examples=CALLS, deadline=None, derandomize=True, database=None, suppress_health_check=[*HealthCheck])
    @given(chosen=names)
    def call(chosen):
        parameters = {parameter.name: parameter for parameter in door.parameters}
        given_ = {name: odd(value, parameters[name], world, seed) for name, value, seed in chosen}

        def hangs(*_):
            raise AssertionError(f"{door} hangs on {chosen}")

        before = signal.signal(signal.SIGALRM, hangs)
        signal.alarm(PATIENCE)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                outcome = world.call(door, **given_)
        except fc.FeatcacheError as error:
            outcome = Outcome(code=error.exit_code, err=str(error))
        except TypeError as error:
            if not is_of_the_signature(error):
                raise
            return
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)
        assert "unexpected " not in outcome.err or "Traceback" in outcome.err, f"{chosen}: {outcome.err[-400:]}"
        assert outcome.code in (0, 1, 2), f"{chosen}: {outcome.code} {outcome.err[-400:]}"

    call()
