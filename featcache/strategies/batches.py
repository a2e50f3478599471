"""How the items of an epoch are put into batches: the same order whenever the epoch is run."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


def batch_count(items: int, batch_size: int) -> int:
    """Batches that hold *items*: none of a single item where there are two or more, else each at most *batch_size*."""
    return max(1, min(-(-items // batch_size), items // 2))


def shuffled(items: int, batch_size: int, seed: int, epoch: int) -> Iterator[np.ndarray]:
    """The places 0 … items - 1 in random order, in batches whose sizes differ by one at most.

    Batch normalisation needs two items in each batch, so the last one is not what happens to be left.
    """
    order = np.random.default_rng([seed, epoch]).permutation(items)
    yield from np.array_split(order, batch_count(items, batch_size))
