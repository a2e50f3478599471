"""A head that takes long says so before it is fitted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

import featcache as fc
from featcache.core.progress import Silent
from featcache.heads import HEADS, resolve_head
from featcache.heads.duration import told_if_long


def told(head: str, n: int, d: int, k: int, fits: int = 1) -> str | None:
    return told_if_long(resolve_head(head).make(), head, n, d, k, fits)


def test_softmax_with_many_classes_names_the_quicker_head() -> None:
    text = told("softmax", 6000, 1280, 1000)
    assert text == (
        "The head softmax takes about 19:12 of processor time for 6,000 vectors of 1,280 numbers and 1,000 classes; "
        "the head ridge about 0:08."
    )
    assert "about 1:55:14 of" in str(told("softmax", 6000, 1280, 1000, fits=6))
    assert "classes in 6 fits; the head ridge about 0:51." in str(told("softmax", 6000, 1280, 1000, fits=6))


@pytest.mark.parametrize(("n", "d", "k"), [(117, 1280, 6), (480, 1280, 6), (5000, 1280, 10), (50_000, 64, 2)])
def test_what_takes_seconds_is_not_told(n: int, d: int, k: int) -> None:
    assert [told(head, n, d, k) for head in HEADS] == [None] * len(HEADS)


def test_no_quicker_head_is_named_where_there_is_none() -> None:
    text = told("ridge", 50_000, 20_000, 3)
    assert text is not None
    assert text.endswith("3 classes.")


class Slow(LogisticRegression):  # type: ignore[misc]
    """It says that it takes minutes."""

    def seconds_needed(self, n: int, d: int, k: int) -> float:
        return 600.0


class Heard(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def start(self, what: str, total: int | None, unit: str) -> None:
        self.said.append(what)

    def note(self, text: str) -> None:
        self.said.append(text)


@pytest.mark.parametrize(("given", "fits"), [({}, ""), ({"cv": 3}, " in 4 fits"), ({"refit_all": True}, " in 2 fits")])
def test_train_tells_it_before_the_first_fit(tmp_path: Path, given: dict[str, Any], fits: str) -> None:
    rng, y = np.random.default_rng(0), np.arange(40) % 2
    np.savez(tmp_path / "x.npz", features=rng.normal(size=(40, 5)).astype(np.float32), labels=y)
    heard = Heard()
    fc.train(tmp_path / "x.npz", Slow(), progress=heard, **given)
    (text,) = (one for one in heard.said if one.startswith("The head Slow takes about "))
    assert f"2 classes{fits}; the head ridge about 0:00." in text
    assert heard.said.index(text) < heard.said.index("cross-validate" if "cv" in given else "train Slow")
