"""The limits of the structure: few rooms, short modules, no import circles, few parameters."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "structure.py"
LIMITS = {"rooms": 12, "lines of a module": 430, "functions with 7 parameters": 25, "parameters": 12}
"""Typer commands apart for parameters: each option is one."""


@pytest.fixture(scope="module")
def structure():
    spec = importlib.util.spec_from_file_location("structure", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_rooms_are_few(structure):
    assert len(structure.rooms()) <= LIMITS["rooms"], structure.rooms()


def test_no_module_is_long(structure):
    lines, name = structure.longest_module()
    assert lines <= LIMITS["lines of a module"], name


def test_there_are_no_import_circles(structure):
    assert structure.circles(structure.imports()) == []


def test_functions_take_few_parameters(structure):
    many = structure.many_parameters(least=7)
    assert len(many) <= LIMITS["functions with 7 parameters"], many
    assert many == [] or many[0][0] <= LIMITS["parameters"], many[0]


PACKAGE = {
    "__init__.py": "",
    "__main__.py": "import house.lone",
    "py.typed": "",
    "lone.py": '"""Docstring\nof two lines."""\nimport os\n\nX = (  # comment\n    1,\n)\n',
    "a/__init__.py": "",
    "a/one.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from house.a.two import Y\n",
    "a/two.py": "def f():\n    from house.a import one\n",
    "a/many.py": "class A:\n    def m(self, a, b, /, c, d, *, e, f, g): pass\n    def few(self, a, b, c): pass\n",
    "tar.py": "def is_tar(n) -> bool: return n.endswith('.tar')\ndef f(n): return is_tar(n) or n == '.tar'\n",
}


@pytest.fixture
def house(tmp_path):
    for name, text in PACKAGE.items():
        path = tmp_path / "house" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "house"


def test_what_is_counted_is_there(structure, house):
    assert structure.rooms(house) == ["a", "lone.py", "tar.py"]
    assert structure.longest_module(house) == (7, "house.lone")
    assert structure.code_lines((house / "lone.py").read_text()) == 3
    assert structure.circles(structure.imports(house)) == [["house.a.one", "house.a.two"]]
    assert structure.many_parameters(root=house) == [(7, "house.a.many:m")]
    assert structure.tar_tests(house) == ["house.tar:f", "house.tar:f"]
