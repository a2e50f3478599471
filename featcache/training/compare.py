"""`compare`: two heads on the same images of a store."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from featcache.core.arguments import checked
from featcache.core.errors import MissingVectorsError, UsageError
from featcache.core.html import HtmlTable
from featcache.metrics.classification import Difference, paired, right_and_losses
from featcache.store import FeatureStore
from featcache.training.bundle import Bundle
from featcache.training.fit import answers
from featcache.training.scored_rows import choose_test_rows, dataset_for
from featcache.training.selection import Selection, SelectionOptions


@dataclass(frozen=True, slots=True)
class CompareReport(HtmlTable):
    """Head A against head B.

    Attributes:
        n: images that both were scored on.
        accuracy: of A and B, and the difference with its 95 % interval.
        log_loss: likewise, lower is better; None if a head has no probabilities.
        overlap: how many of the images a head was trained on; None if a head does not know what it was trained on.
        protocol: which images these are.
    """

    n: int
    accuracy: Difference
    log_loss: Difference | None
    overlap: int | None
    protocol: str

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values."""
        return {
            "n": self.n,
            "accuracy": self.accuracy.to_dict(),
            "log_loss": None if self.log_loss is None else self.log_loss.to_dict(),
            "overlap": self.overlap,
            "protocol": self.protocol,
        }


@checked
def compare(
    head_a: str | Path | Bundle,
    head_b: str | Path | Bundle,
    store: str | Path | FeatureStore,
    *,
    seed: int = 0,
    **selection: Unpack[SelectionOptions],
) -> CompareReport:
    """How much better head A is than head B on the same images, with intervals.

    The heads may read different layers, and different spaces of the store.

    Args:
        head_a: a bundle or its path.
        head_b: a bundle or its path.
        store: a store or its path.
        seed: of the bootstrap, see `featcache.metrics.classification`.
        **selection: ``source``, ``labels`` and ``space`` of `Selection` (by default for each head the space with its
            recipe); and ``split``, the split to score: by default ``test``, if the source has it, else those of the
            store's hold-out that neither head was trained on; or all, if they were trained on none of the source.

    Raises:
        RecipeMismatchError: the store has no vectors of a head's recipe; the message names the fields.
        MissingVectorsError: no image is left to score.
        UnknownNameError: no such split, or a head's layers are not stored.
        UsageError: a head predicts several labels per image, or knows none of the classes of the images.

    Example:
        >>> fc.train("pets.fcache", "knn").save("knn.fch")
        >>> fc.compare("pets.fch", "knn.fch", "pets.fcache").accuracy.difference
        0.0
    """
    a, b = (head if isinstance(head, Bundle) else Bundle.load(head) for head in (head_a, head_b))
    if "multilabel" in (a.task, b.task):
        raise UsageError("Heads with several labels per image cannot be compared in pairs. Evaluate each by itself.")
    opened, select = FeatureStore.open(store), Selection(**selection)
    on = choose_test_rows(a, opened, select, others=[b])
    theirs = dataset_for(b, opened, select)
    place = {(item.source, item.uri): row for row, item in enumerate(theirs.items)}
    keys = {row: (on.dataset.items[row].source, on.dataset.items[row].uri) for row in on.rows.tolist()}
    rows_a = np.array([row for row, key in keys.items() if key in place], dtype=np.int64)
    if not len(rows_a):
        raise MissingVectorsError("No item has the vectors of both heads. Extract the same images for both.")
    rows_b = np.array([place[keys[row]] for row in rows_a.tolist()], dtype=np.int64)
    y, groups = on.dataset.y[rows_a], on.dataset.groups[rows_a]
    right_a, losses_a = right_and_losses(y, *answers(a, on.dataset, rows_a), a.classes)
    right_b, losses_b = right_and_losses(y, *answers(b, theirs, rows_b), b.classes)
    log_loss = None
    if losses_a is not None and losses_b is not None:
        log_loss = paired(losses_a, losses_b, units=groups, larger_is_better=False, seed=seed)
    contents = [on.dataset.items[row].sha256 for row in rows_a]
    return CompareReport(
        n=len(rows_a),
        accuracy=paired(right_a, right_b, units=groups, seed=seed),
        log_loss=log_loss,
        overlap=sum(bool(a.overlap([c]) or b.overlap([c])) for c in contents)
        if len(a.trained_on) and len(b.trained_on)
        else None,
        protocol=on.protocol,
    )
