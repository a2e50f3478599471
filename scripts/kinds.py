"""Print which kinds of fault are tested, by which test, at which doors: what the parametrised tests in tests/kinds say.

Usage: python scripts/kinds.py [--names]

The number before a test is that of its doors, which ``--names`` names; without one the test names its doors itself.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
DOORS = {"door", "output", "parameter", "verb", "command", "words", "table"}
"""What tests call an argument that stands for a way in."""


def modules() -> list[ModuleType]:
    """Those of tests/kinds that hold tests; the docstring of each names its kind."""
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    return [importlib.import_module(f"tests.kinds.{path.stem}") for path in sorted(ROOT.glob("tests/kinds/test_*.py"))]


def tests(module: ModuleType) -> Iterator[tuple[str, list[str]]]:
    """Each test of a module with the doors that it is parametrised over; none where it names its door itself."""
    for name, function in vars(module).items():
        if name.startswith("test_") and callable(function):
            yield name, [door for mark in getattr(function, "pytestmark", ()) for door in doors_of(mark)]


def doors_of(mark: Any) -> list[str]:
    """The doors among the values of one mark."""
    if mark.name != "parametrize":
        return []
    names = mark.args[0].split(",") if isinstance(mark.args[0], str) else list(mark.args[0])
    at = [place for place, name in enumerate(names) if name.strip() in DOORS]
    ids = mark.kwargs.get("ids")
    if at and ids is not None and not callable(ids):
        return list(dict.fromkeys(ids))
    rows = [getattr(row, "values", row) if not isinstance(row, dict) else row for row in mark.args[1]]
    rows = [row if len(names) > 1 else (row[0] if isinstance(row, tuple) else row,) for row in rows]
    return list(dict.fromkeys(":".join(_called(row[place]) for place in at) for row in rows)) if at else []


def _called(value: Any) -> str:
    return value if isinstance(value, str) else str(getattr(value, "name", getattr(value, "__name__", value)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", action="store_true", help="name each door")
    names = parser.parse_args().names
    for module in modules():
        print(f"\n{(module.__doc__ or '').splitlines()[0]}  ({module.__name__.rsplit('.', 1)[1]}.py)")
        for test, doors in tests(module):
            print(f"  {len(doors) or '':>4}  {test}" + (f": {', '.join(doors)}" if names and doors else ""))
