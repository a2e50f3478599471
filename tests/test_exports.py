"""The public names: few, sorted, there, and not shadowed by the modules behind them."""

from __future__ import annotations

import importlib.metadata
import pkgutil

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


def test_no_function_is_replaced_by_a_module_of_its_name():
    # Importing featcache.x sets the attribute x of the package, over a lazy name that is spelt the same.
    modules = {module.name for module in pkgutil.iter_modules(featcache.__path__)}
    for name in modules & set(featcache.__all__):
        assert getattr(featcache, name) is importlib.import_module(f"featcache.{name}")


def test_the_version_is_the_installed_one():
    assert featcache.__version__ == importlib.metadata.version("featcache")
