"""Images to answers, and heads to scores."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featcache import multilabel
from featcache.bundle import Bundle, Prediction
from featcache.embedding import ImageLike
from featcache.errors import MissingVectorsError, RecipeMismatchError, UnknownNameError
from featcache.evaluation import metrics
from featcache.evaluation import multilabel as multilabel_metrics
from featcache.fitting import answers
from featcache.labelled_vectors import LabelledVectors
from featcache.progress import Progress
from featcache.store import FeatureStore

__all__ = ["EvaluateReport", "Prediction", "evaluate", "predict"]


@dataclass(frozen=True, slots=True)
class EvaluateReport:
    """A head's scores on items of a store; intervals are at 95 %.

    Attributes:
        n: items scored.
        accuracy, low, high: share of right labels with its interval.
        balanced_accuracy, macro_f1, log_loss: see `featcache.evaluation.metrics.Scores`.
        overlap: how many of the items the head was trained on; None where the head does not know.
        protocol: which items these are.
        intervals: ``[low, high]`` of each metric.
        unknown_labels: labels that the head does not know, each with the number of its items scored; all of
            these count as wrong.
        without_vectors: labelled images of the source that have no vectors, so could not be scored.
    """

    n: int
    accuracy: float
    low: float
    high: float
    balanced_accuracy: float
    macro_f1: float
    log_loss: float | None
    overlap: int | None
    protocol: str
    intervals: dict[str, list[float] | None]
    unknown_labels: dict[str, int]
    without_vectors: int

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values."""
        return asdict(self)


def predict(
    head: str | Path | Bundle,
    images: ImageLike | Sequence[ImageLike],
    *,
    top: int | None = None,
    progress: Progress | bool | None = None,
) -> list[Prediction]:
    """`Bundle.predict` for a bundle or its path."""
    bundle = head if isinstance(head, Bundle) else Bundle.load(head)
    return bundle.predict(images, top=top, progress=progress)


def evaluate(
    head: str | Path | Bundle,
    store: str | Path | FeatureStore,
    *,
    split: str | None = None,
    source: str | None = None,
    space: str | None = None,
    labels: str | Path | None = None,
) -> EvaluateReport | multilabel.MultilabelReport:
    """Score a head on items of a store.

    A head for several labels an item has a report of its own, `featcache.multilabel.MultilabelReport`.

    Args:
        head: a bundle or its path.
        store: a store or its path.
        split: score on this split; by default ``test`` where the source has it, else the items that the
            head was not trained on.
        source: which source.
        space: which space; by default the one whose recipe the head needs.
        labels: a CSV file (``path,label``) whose labels take the place of the stored ones.

    Raises:
        RecipeMismatchError: the store's vectors were made by another recipe; the fields are named.
        MissingVectorsError: there is no item to score on.
        UnknownNameError: no such split, or the head's layers are not stored.
    """
    bundle = head if isinstance(head, Bundle) else Bundle.load(head)
    if bundle.recipe is None:
        raise RecipeMismatchError(
            "This head was trained on vectors of unknown origin, so none in a store are known to be of their kind. "
            "Use predict_vectors with vectors of the same kind."
        )
    opened = store if isinstance(store, FeatureStore) else FeatureStore.open(store)
    if space is None:
        matching = [s for s in opened.spaces if s.recipe == bundle.recipe]
        space = matching[0].fingerprint if matching else None
    bundle.require(opened.space(space).recipe)
    names = [use.name for use in bundle.layers]
    examples = LabelledVectors.from_store(opened, names, labels=labels, source=source, space=space)
    if bundle.task == "multilabel":
        examples = multilabel.several_labels(examples, bundle.classes)
    knows = bool(len(bundle.trained_on))
    seen = np.array([bool(bundle.overlap([item.sha256])) for item in examples.items])
    splits = {item.split for item in examples.items} - {None}
    if split is None and "test" in splits:
        split = "test"
    if split is not None:
        rows = np.array([i for i, item in enumerate(examples.items) if item.split == split], dtype=np.int64)
        protocol = f"the split {split!r}"
        if not len(rows):
            raise UnknownNameError.among("split", split, sorted(str(s) for s in splits))
    else:
        rows = np.flatnonzero(~seen)
        protocol = "the items that the head was not trained on" if knows else "all labelled items"
        if not len(rows):
            raise MissingVectorsError(
                f"The head was trained on all {len(seen)} labelled items of this source, so none is left to score on. "
                "Score it on another source, or train without --refit-all and --cv."
            )
    probabilities, predicted = answers(bundle, examples, rows)
    overlap = int(seen[rows].sum()) if knows else None
    if examples.labels is not None:
        assert probabilities is not None
        p = multilabel.padded(probabilities, len(examples.labels))
        found = multilabel_metrics.score(examples.y[rows], p, units=examples.units[rows])
        return multilabel.evaluated(found, overlap, protocol)
    scores = metrics.score(examples.y[rows], probabilities, predicted, bundle.classes, units=examples.units[rows])
    known = set(bundle.classes)
    unknown = Counter(label for label in examples.y[rows].tolist() if label not in known)
    named = {
        "accuracy": scores.accuracy,
        "balanced_accuracy": scores.balanced_accuracy,
        "macro_f1": scores.macro_f1,
        "log_loss": scores.log_loss,
    }
    return EvaluateReport(
        n=scores.n,
        accuracy=scores.accuracy.value,
        low=scores.accuracy.low,
        high=scores.accuracy.high,
        balanced_accuracy=scores.balanced_accuracy.value,
        macro_f1=scores.macro_f1.value,
        log_loss=None if scores.log_loss is None else scores.log_loss.value,
        overlap=overlap,
        protocol=protocol,
        intervals={name: None if v is None or math.isnan(v.low) else [v.low, v.high] for name, v in named.items()},
        unknown_labels=dict(sorted(unknown.items())),
        without_vectors=examples.without_vectors,
    )
