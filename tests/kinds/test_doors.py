"""The table of doors is whole: each parameter has a role, and each door can be called as the table says."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tests.doors import EXCEPTIONS, table

NAMES = [door.name for door in table()]


def test_the_table_holds_functions_methods_and_commands():
    assert {"fc.train", "fc.Bundle.predict", "fc.faces.verify", "featcache train", "featcache faces verify"} <= {*NAMES}


@pytest.mark.parametrize("door", table(), ids=str)
def test_every_parameter_has_a_role(door):
    without = [parameter.name for parameter in door.parameters if not parameter.role]
    assert not without, f"{door}: say in tests/doors.py what {', '.join(without)} is"


def test_no_exception_is_left_over():
    left = {
        f"{door}: {name}"
        for door, roles in EXCEPTIONS.items()
        for name in roles
        if name not in {p.name for found in table() if found.name == door for p in found.parameters}
    }
    assert not left


def test_every_door_is_tested_for_some_kind():
    path = Path(__file__).parents[2] / "scripts" / "kinds.py"
    spec = importlib.util.spec_from_file_location("kinds", path)
    kinds = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(kinds)
    kind_tests = [found for module in kinds.modules() if module.__name__ != __name__ for found in kinds.tests(module)]
    tested = {door.split(":")[0] for _, doors in kind_tests for door in doors}
    with_parameters = {door.name for door in table() if door.parameters}
    assert with_parameters - tested == {"featcache demo"}
    assert all(doc.__doc__ for doc in kinds.modules())


@pytest.mark.slow
@pytest.mark.parametrize("door", table(), ids=str)
def test_every_door_can_be_called(door, world_for):
    """Whatever a test over the table finds wrong is then the value's doing."""
    outcome = world_for(door).call(door)
    assert outcome.code == 0, outcome.err
