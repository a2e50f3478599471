"""Labeled vectors are read once where they fit in memory."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from featcache.metrics import splits
from featcache.store import Item
from featcache.training.dataset import FeatureDataset

N, D = 6, 4


def dataset(views: int, reads: list[int]) -> tuple[FeatureDataset, np.ndarray]:
    """N images in some views, the first two with one content; every read is noted. And all vectors (N·views, D)."""
    X = np.random.default_rng(0).normal(size=(N * views, D)).astype(np.float32)

    def read(rows: np.ndarray) -> np.ndarray:
        reads.append(len(rows))
        return X[rows]

    items = [Item("x", f"{i}.jpg", bytes([9 - max(i, 1)]) * 32, "ab"[i % 2], None, None) for i in range(N)]
    made = FeatureDataset(
        items=items,
        y=np.array([item.label for item in items]),
        groups=splits.units(items),
        layers=["pooled"],
        shapes=[(D,)],
        recipe=None,
        read=lambda rows: read(rows * views),
        views=tuple(map(str, range(views))),
        view_reader=None if views == 1 else read,
    )
    return made, X


@pytest.mark.parametrize("views", [1, 3])
def test_vectors_are_read_once_at_the_first_use(views: int) -> None:
    reads: list[int] = []
    given, X = dataset(views, reads)
    held = given.in_memory()
    assert reads == []
    rows = np.array([4, 0, 4])
    np.testing.assert_array_equal(held.read(rows), X[rows * views])
    np.testing.assert_array_equal(held.read_views(held.view_rows(rows)), X.reshape(N, views, D)[rows].reshape(-1, D))
    linked = held.linked(np.array([[2, 3]]))
    np.testing.assert_array_equal(linked.read(np.arange(N)), X[::views])
    assert reads == [N * views]


def test_vectors_that_do_not_fit_are_read_each_time() -> None:
    reads: list[int] = []
    given, _ = dataset(1, reads)
    large = replace(given, shapes=[(1 << 40,)])
    assert large.in_memory() is large


def test_contents_are_sorted_and_each_is_there_once() -> None:
    given, _ = dataset(1, [])
    assert [row.tobytes()[0] for row in given.contents([5, 0, 1, 2])] == [4, 7, 8]
    assert replace(given, knows_images=False).contents(range(N)).shape == (0, 32)
