"""Several labels per image: how they are read, checked and reported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from featcache.core.errors import UsageError
from featcache.core.html import HtmlTable
from featcache.core.labels import SEPARATOR

if TYPE_CHECKING:
    from featcache.metrics.multilabel import LabelScore, MultilabelScores
    from featcache.training.dataset import FeatureDataset

METRICS = ("mean_average_precision", "micro_f1", "macro_f1", "exact_match", "log_loss")
HINT = (
    f"Some labels contain {SEPARATOR!r} and are used as they are. If it separates several labels of one image, use "
    "`featcache train --task multilabel`; a sweep takes one label per image."
)


@dataclass(frozen=True, slots=True)
class MultilabelReport(HtmlTable):
    """A head's scores on images of a store; intervals are at 95 %.

    Attributes:
        n: images scored.
        mean_average_precision, low, high: with its interval; None where not known.
        micro_f1, macro_f1, exact_match, log_loss: see `featcache.metrics.multilabel.MultilabelScores`.
        overlap: how many of the images the head was trained on; None if the head does not know.
        protocol: which images these are.
        intervals: ``[low, high]`` of each metric.
        per_label: the scores of each label, those of the head first, see `featcache.metrics.multilabel.per_label`.
        unscored: labels of the head that none of the images has; the mean average precision leaves them out.
        unknown_labels, without_vectors, near_duplicates: as in `featcache.training.evaluate.EvaluateReport`.
    """

    n: int
    mean_average_precision: float | None
    low: float | None
    high: float | None
    micro_f1: float
    macro_f1: float
    exact_match: float
    log_loss: float
    overlap: int | None
    protocol: str
    intervals: dict[str, list[float] | None]
    per_label: list[LabelScore]
    unscored: list[str]
    unknown_labels: dict[str, int]
    without_vectors: int
    near_duplicates: dict[str, Any] | None

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values."""
        return asdict(self)


def evaluated(scores: MultilabelScores, **others: Any) -> MultilabelReport:
    """The report of `evaluate`, from scores and its other fields."""
    score, _ = reported(scores)
    found = {name: getattr(scores, name) for name in METRICS}
    return MultilabelReport(
        n=scores.n,
        **score,
        **{name: found[name].value for name in METRICS[1:]},
        intervals={name: value.bounds for name, value in found.items()},
        **others,
    )


def several_labels(dataset: FeatureDataset, known: Sequence[str] = ()) -> FeatureDataset:
    """The same images with their labels split at ``|``.

    Args:
        dataset: its ``y`` holds texts such as ``cat|indoors``; a lone ``|`` stands for none of the labels.
        known: labels that come first, in this order, whether they occur or not.

    Returns:
        The dataset with the k ``labels`` and ``y`` (n, k) bool.

    Raises:
        UsageError: a text names no label and is not a lone ``|``.
    """
    sets = [{part.strip() for part in str(text).split(SEPARATOR)} - {""} for text in dataset.y]
    empty = next((i for i, found in enumerate(sets) if not found and dataset.y[i].strip() != SEPARATOR), None)
    if empty is not None:
        raise UsageError(
            f"{dataset.items[empty].uri} has the label {str(dataset.y[empty])!r}, which names no "
            f"label. Separate labels by {SEPARATOR!r} (cat{SEPARATOR}indoors); {SEPARATOR!r} alone stands for none."
        )
    labels = [*known, *sorted(set().union(*sets) - set(known))]
    place = {label: i for i, label in enumerate(labels)}
    Y = np.zeros((len(sets), len(labels)), dtype=bool)
    for row, found in enumerate(sets):
        Y[row, [place[label] for label in found]] = True
    return replace(dataset, y=Y, labels=tuple(labels))


def check_labels(dataset: FeatureDataset) -> None:
    """Check that there are labels to tell apart.

    Raises:
        UsageError: there are fewer than two labels, or every image has all of them.
    """
    assert dataset.labels is not None
    if len(dataset.labels) < 2:
        named = [repr(label) for label in dataset.labels] + ([] if dataset.y.all() and dataset.labels else ["none"])
        raise UsageError(
            f"All {len(dataset.y)} labeled items have one label, {' or '.join(named)}; a head needs two or more. "
            f"Separate several by {SEPARATOR!r}."
        )
    if dataset.y.all():
        raise UsageError(f"All {len(dataset.y)} items have all of the {len(dataset.labels)} labels.")


def padded(probabilities: np.ndarray, labels: int) -> np.ndarray:
    """Probabilities (n, *labels*): 0 for the last ones, which the head does not know."""
    return np.pad(probabilities, ((0, 0), (0, labels - probabilities.shape[1])))


def unknown_labels(dataset: FeatureDataset, rows: np.ndarray, known: int) -> dict[str, int]:
    """Labels after the first *known* that some rows have, with the number of these rows."""
    assert dataset.labels is not None
    counts = dataset.y[rows, known:].sum(axis=0).tolist()
    return {label: n for label, n in zip(dataset.labels[known:], counts, strict=True) if n}


def unscored(dataset: FeatureDataset, rows: np.ndarray, classes: Sequence[str]) -> list[str]:
    """Those of a head's classes or labels that none of these rows has."""
    y = dataset.y[rows]
    if dataset.labels is None:
        return sorted(set(classes) - set(y.tolist()))
    having = dict(zip(dataset.labels, y.any(axis=0).tolist(), strict=True))
    return [label for label in classes if not having.get(label)]


def reported(scores: MultilabelScores) -> tuple[dict[str, Any], dict[str, Any]]:
    """The main score, as ``mean_average_precision``, ``low``, ``high``; and the others by name."""
    others = {name: getattr(scores, name).to_dict() for name in METRICS[1:]}
    return scores.mean_average_precision.to_dict("mean_average_precision"), others
