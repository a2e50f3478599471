"""The report of a training: scores with their intervals, on which items, and what the head can look at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from featcache.core import names
from featcache.metrics import classification
from featcache.metrics import multilabel as multilabel_metrics
from featcache.metrics.calibration import with_temperature
from featcache.training import multilabel
from featcache.training.bundle import Bundle
from featcache.training.dataset import FeatureDataset


def described(
    bundle: Bundle, dataset: FeatureDataset, rows: np.ndarray, scores: dict[str, Any], protocol: str
) -> dict[str, Any]:
    """What a report says of a head and of its scores.

    Args:
        bundle: the head.
        dataset: labelled vectors.
        rows: (m,) rows it was scored on.
        scores: as `scored` gives them.
        protocol: which rows these are, in words.
    """
    return {
        "head": bundle.head,
        "task": bundle.task,
        "classes": list(bundle.classes),
        "n": bundle.fitted_on,
        "without_vectors": dataset.without_vectors,
        "without_labels": dataset.without_labels,
        "unscored": multilabel.unscored(dataset, rows, bundle.classes),
        **scores,
        "score": {**scores["score"], "n": len(rows), "protocol": protocol},
        "chosen": bundle.chosen,
        "predicts": _predicts(bundle),
    }


def uncalibrated(bundle: Bundle, probabilities: np.ndarray | None) -> np.ndarray:
    """(m,) how sure of its answers the head would be without its temperature; NaN where it has none."""
    fitted = bundle.report["calibration"]
    if probabilities is None or fitted is None:
        return np.full(1 if probabilities is None else len(probabilities), np.nan)
    return np.asarray(with_temperature(probabilities, 1 / fitted["temperature"]).max(axis=1))


def scored(
    dataset: FeatureDataset,
    rows: np.ndarray,
    probabilities: np.ndarray | None,
    predicted: np.ndarray,
    classes: Sequence[str],
    seed: int,
) -> dict[str, Any]:
    """The ``score`` that counts and the others, as the report has them."""
    y, units = dataset.y[rows], dataset.units[rows]
    if dataset.labels is not None:
        assert probabilities is not None
        score, others = multilabel.reported(multilabel_metrics.score(y, probabilities, units=units, seed=seed))
        return {"score": score, **others}
    scores = classification.score(y, probabilities, predicted, classes, units=units, seed=seed)
    return {
        "score": _interval(scores.accuracy, "accuracy"),
        "balanced_accuracy": _interval(scores.balanced_accuracy),
        "macro_f1": _interval(scores.macro_f1),
        "log_loss": _interval(scores.log_loss),
    }


def views_told(views: Sequence[str]) -> str:
    """``3 views (seed 0)``: what other runs of `extract` added to the store tells itself by its seed."""
    of = names.seeds(views)
    return f"{len(views)} views" + (f" ({'seeds' if len(of) > 1 else 'seed'} {', '.join(map(str, of))})" if of else "")


def _predicts(bundle: Bundle) -> str:
    if bundle.recipe is None:
        return "vectors"
    return "images" if bundle.recipe.detection is None else "faces"


def _interval(value: Any, name: str = "value") -> dict[str, Any]:
    if value is None:
        return {name: None, "low": None, "high": None}
    return {name: value.value, "low": value.low, "high": value.high}
