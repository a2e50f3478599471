"""The public names: few, sorted, there, and not shadowed by the modules behind them."""

from __future__ import annotations

import importlib.metadata
import pkgutil
import re
from pathlib import Path

import pytest

import featcache


def test_the_list_is_sorted_and_has_no_doubles():
    assert featcache.__all__ == sorted(set(featcache.__all__))


@pytest.mark.parametrize("name", featcache.__all__)
def test_every_public_name_is_there(name):
    assert getattr(featcache, name) is not None
    assert name in dir(featcache)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'extrakt'"):
        featcache.extrakt  # noqa: B018 - reading it is the test


PACKAGES = ["featcache", *(m.name for m in pkgutil.walk_packages(featcache.__path__, "featcache.") if m.ispkg)]


@pytest.mark.parametrize("package", PACKAGES)
def test_no_function_is_replaced_by_a_module_of_its_name(package):
    # Importing a.x sets the attribute x of the package a, over a name that is spelt the same.
    imported = importlib.import_module(package)
    modules = {module.name for module in pkgutil.iter_modules(imported.__path__)}
    for name in modules & set(getattr(imported, "__all__", ())):
        assert getattr(imported, name) is importlib.import_module(f"{package}.{name}")


ROOT = Path(featcache.__file__).parent.parent
TEXTS = [*sorted((ROOT / "featcache").rglob("*.py")), *(ROOT / name for name in ("README.md", "CONTRIBUTING.md"))]
DOTTED = re.compile(r"(?<![\w./@-])featcache(?:\.[A-Za-z_]\w*)+(?::[A-Za-z_][\w.]*)?")


@pytest.mark.parametrize("path", [path for path in TEXTS if path.exists()], ids=lambda path: path.stem)
def test_every_dotted_name_leads_somewhere(path):
    """In code, strings and prose alike: what moves leaves no name behind."""
    for dotted in set(DOTTED.findall(path.read_text(encoding="utf-8"))):
        if dotted.endswith((".html", ".png")):
            continue
        assert pkgutil.resolve_name(dotted) is not None


def test_the_version_is_the_installed_one():
    assert featcache.__version__ == importlib.metadata.version("featcache")
