"""The items that advice is taken from, and their folds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featcache.errors import UsageError
from featcache.labelled_vectors import LabelledVectors
from featcache.store import Item
from featcache.strategies.advise import advise
from featcache.strategies.advise.learning_items import learning_items, shared

from ..store.making import keys
from .advise_making import store_of

pytestmark = pytest.mark.usefixtures("one_thread")


@given(st.integers(0, 99), st.floats(0.05, 1))
def test_a_draw_keeps_units_whole_and_every_class(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    y, units = rng.integers(0, 3, 30), rng.integers(0, 12, 30)
    taken = shared(y, units, share, np.random.default_rng(seed))
    assert set(y[taken]) == set(y)
    assert not set(units[taken]) & set(np.delete(units, taken))


def test_a_class_of_one_item_is_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = store_of(tmp_path / "s.fcache", ["a"] * 8 + ["b"] * 2, {"pooled": rng.normal(size=(10, 4))})
    with pytest.raises(UsageError, match="'b' has one independent image alone among the 7"):
        advise(path, progress=False)
    path = store_of(tmp_path / "t.fcache", ["a"] * 8, {"pooled": rng.normal(size=(8, 4))})
    with pytest.raises(UsageError, match="one class"):
        advise(path, progress=False)


def grouped(y: np.ndarray, units: np.ndarray) -> LabelledVectors:
    """Labelled vectors with these units, which are all that folds are drawn from."""
    X = np.zeros((len(y), 2), np.float32)
    items = [
        Item("s", f"{i:03}.jpg", key, str(label), None, None)
        for i, (key, label) in enumerate(zip(keys(len(y)), y, strict=True))
    ]
    return LabelledVectors(items, y, units, ["pooled"], [(2,)], None, lambda at: X[at])


@given(st.integers(2, 4), st.integers(0, 99))
def test_what_belongs_together_lies_in_one_fold(together: int, seed: int) -> None:
    units = np.repeat(np.arange(24), together)
    found = learning_items(grouped(np.array(["a", "b"])[units % 2], units), np.arange(len(units)), seed)
    assert len(found.folds) == 5
    assert sorted(np.concatenate([test for _, test in found.folds])) == list(range(len(units)))
    for learn, test in found.folds:
        assert not set(units[learn]) & set(units[test])
        assert len(learn) + len(test) == len(units)
