"""`predict`: images to labels; `evaluate`: a head's scores on images of a store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from featcache.core.arguments import checked
from featcache.core.html import HtmlTable
from featcache.core.progress import Progress, choose
from featcache.metrics import classification
from featcache.metrics import multilabel as multilabel_metrics
from featcache.metrics.calibration import expected_calibration_error
from featcache.metrics.classification import ClassScore, confusion_matrix, per_class, units_of_each
from featcache.store import FeatureStore
from featcache.training import leakage, multilabel
from featcache.training.bundle import Bundle, Prediction
from featcache.training.fit import answers
from featcache.training.label_notes import note_incomplete
from featcache.training.scored_rows import choose_test_rows
from featcache.training.selection import Selection, SelectionOptions

if TYPE_CHECKING:
    from featcache.backbones import Backbone
    from featcache.extraction.embed import ImageLike

__all__ = ["EvaluateReport", "Prediction", "evaluate", "predict"]


@dataclass(frozen=True, slots=True)
class EvaluateReport(HtmlTable):
    """A head's scores on images of a store; intervals are at 95 %.

    Attributes:
        n: images scored.
        accuracy, low, high: with its interval.
        balanced_accuracy, macro_f1, log_loss: see `featcache.metrics.classification.Scores`.
        overlap: how many of the images the head was trained on; None if the head does not know.
        protocol: which images these are.
        intervals: ``[low, high]`` of each metric.
        unknown_labels: labels that the head does not know, with the number of images; all of these count as wrong.
        without_vectors: labeled images of the source that have no vectors and could not be scored.
        ece: expected calibration error, see `featcache.metrics.calibration`; None without probabilities.
        per_class: the scores of each class, see `featcache.metrics.classification.ClassScore`.
        near_duplicates: of the scored images: ``pairs`` and, of these, ``across``, where the head was trained on one
            of the two; ``threshold``, ``examples``, ``note``. None if the head does not know what it was trained on.
        labels: k labels, those of the head and all others that occur.
        confusion: (k, k) int64, counts by true label (row) and predicted label (column).
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
    ece: float | None
    per_class: list[ClassScore]
    near_duplicates: dict[str, Any] | None
    labels: list[str]
    confusion: np.ndarray = field(compare=False, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values but `labels` and `confusion`, which grow with the square of the classes."""
        values = asdict(self)
        del values["labels"], values["confusion"]
        return values


def predict(
    head: str | Path | Bundle,
    images: ImageLike | Sequence[ImageLike],
    *,
    top: int | None = None,
    store: str | Path | FeatureStore | None = None,
    progress: Progress | bool | None = None,
) -> list[Prediction]:
    """`Bundle.predict` for a bundle or its path."""
    bundle = head if isinstance(head, Bundle) else Bundle.load(head)
    return bundle.predict(images, top=top, store=store, progress=progress)


@checked
def evaluate(
    head: str | Path | Bundle,
    store: str | Path | FeatureStore,
    *,
    backbone: Backbone | None = None,
    progress: Progress | bool | None = None,
    **selection: Unpack[SelectionOptions],
) -> EvaluateReport | multilabel.MultilabelReport:
    """Score a head on images of a store.

    Args:
        head: a bundle or its path.
        store: a store or its path.
        backbone: needed only for a network that was trained, in part or in full, and whose architecture is a module
            in Python.
        progress: as for `featcache.extract`, during the search for near-duplicates.
        **selection: ``source``, ``labels`` and ``space`` of `Selection` (by default the space with the head's
            recipe); and ``split``, the split to score: by default ``test``, if the source has it, else those of the
            store's hold-out that the head was not trained on; or all, if it was trained on none of the source.

    Returns:
        An `EvaluateReport`; for a head with several labels per image a
        `featcache.training.multilabel.MultilabelReport`.

    Raises:
        RecipeMismatchError: the store's vectors have another recipe; the message names the fields.
        MissingVectorsError: no image is left to score.
        UnknownNameError: no such split, or the head's layers are not stored.
        UsageError: the head knows none of the classes of these images.

    Example:
        >>> report = fc.evaluate("pets.fch", "pets.fcache")
        >>> report.n, report.accuracy
        (7, 1.0)
    """
    bundle = head if isinstance(head, Bundle) else Bundle.load(head)
    if backbone is not None:
        bundle = bundle.on(backbone)
    opened = FeatureStore.open(store)
    on = choose_test_rows(bundle, opened, Selection(**selection), backbone=backbone)
    dataset, rows, knows = on.dataset, on.rows, bool(len(bundle.trained_on))
    with choose(progress) as bar:
        note_incomplete(opened, dataset, bar)
        dataset.tell_labels(bar)
    probabilities, predicted = answers(bundle, dataset, rows)
    y, groups = dataset.y[rows], dataset.groups[rows]
    overlap, near = None, None
    if knows:
        overlap = int(on.seen[rows].sum())
        with choose(progress) as bar:
            train_rows = np.setdiff1d(np.flatnonzero(on.seen), rows)
            near = leakage.guard(dataset, [train_rows, rows], scored=rows, progress=bar).report(dataset)
    if dataset.labels is not None:
        assert probabilities is not None
        padded = multilabel.padded(probabilities, len(dataset.labels))
        return multilabel.evaluated(
            multilabel_metrics.score(y, padded, units=groups),
            per_label=multilabel_metrics.per_label(y, padded, dataset.labels, units=groups),
            overlap=overlap,
            protocol=on.protocol,
            unscored=multilabel.unscored(dataset, rows, bundle.classes),
            unknown_labels=multilabel.unknown_labels(dataset, rows, len(bundle.classes)),
            without_vectors=dataset.without_vectors,
            near_duplicates=near,
        )
    scores = classification.score(y, probabilities, predicted, bundle.classes, units=groups)
    names = sorted({*bundle.classes, *y.tolist(), *predicted.tolist()})
    confusion = confusion_matrix(y, predicted, names)
    known = set(bundle.classes)
    unknown = Counter(label for label in y.tolist() if label not in known)
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
        protocol=on.protocol,
        intervals={name: None if interval is None else interval.bounds for name, interval in named.items()},
        unknown_labels=dict(sorted(unknown.items())),
        without_vectors=dataset.without_vectors,
        ece=None if probabilities is None else expected_calibration_error(probabilities, predicted == y),
        per_class=per_class(confusion, names, units_of_each(y, groups, names)),
        near_duplicates=near,
        labels=names,
        confusion=confusion,
    )
