"""The report of a training: scores with intervals, the protocol, and what the head predicts from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from featcache.core import names
from featcache.metrics import classification
from featcache.metrics import multilabel as multilabel_metrics
from featcache.metrics.calibration import with_temperature
from featcache.metrics.intervals import UNKNOWN
from featcache.training import multilabel
from featcache.training.label_notes import left_out

if TYPE_CHECKING:
    from featcache.training.bundle import Bundle
    from featcache.training.dataset import FeatureDataset


def report_fields(
    bundle: Bundle, dataset: FeatureDataset, rows: np.ndarray, scores: dict[str, Any], protocol: str
) -> dict[str, Any]:
    """The fields of a report.

    Args:
        bundle: the head.
        dataset: labeled vectors.
        rows: (m,) rows that were scored.
        scores: from `score_fields`.
        protocol: which rows these are, in words.
    """
    return {
        "head": bundle.head,
        "task": bundle.task,
        "classes": list(bundle.classes),
        "n": bundle.fitted_on,
        "without_vectors": dataset.without_vectors,
        "without_labels": dataset.without_labels,
        "labels": dataset.label_counts,
        "unscored": multilabel.unscored(dataset, rows, bundle.classes),
        **scores,
        "score": {
            **scores["score"],
            "n": len(rows),
            "protocol": "; ".join(filter(None, (protocol, left_out(dataset)))),
        },
        "chosen": bundle.chosen,
        "predicts": _predicts(bundle),
    }


def uncalibrated(bundle: Bundle, probabilities: np.ndarray | None) -> np.ndarray:
    """The largest probability of each row (m,) without temperature scaling; NaN for a head without temperature."""
    fitted = bundle.report["calibration"]
    if probabilities is None or fitted is None:
        return np.full(1 if probabilities is None else len(probabilities), np.nan)
    return np.asarray(with_temperature(probabilities, 1 / fitted["temperature"]).max(axis=1))


def score_fields(
    dataset: FeatureDataset,
    rows: np.ndarray,
    probabilities: np.ndarray | None,
    predicted: np.ndarray,
    classes: Sequence[str],
    seed: int,
) -> dict[str, Any]:
    """The main ``score`` and the others, as fields of the report."""
    y, groups = dataset.y[rows], dataset.groups[rows]
    if not len(rows):
        score, others = unknown_scores(several=dataset.labels is not None)
        return {"score": score, **others}
    if dataset.labels is not None:
        assert probabilities is not None
        score, others = multilabel.reported(multilabel_metrics.score(y, probabilities, units=groups, seed=seed))
        return {"score": score, **others}
    scores = classification.score(y, probabilities, predicted, classes, units=groups, seed=seed)
    return {
        "score": scores.accuracy.to_dict("accuracy"),
        "balanced_accuracy": scores.balanced_accuracy.to_dict(),
        "macro_f1": scores.macro_f1.to_dict(),
        "log_loss": (scores.log_loss or UNKNOWN).to_dict(),
    }


def unknown_scores(*, several: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """The main score and the others, as None throughout, of a head that nothing was left to score on."""
    if several:
        return UNKNOWN.to_dict("mean_average_precision"), {name: UNKNOWN.to_dict() for name in multilabel.METRICS[1:]}
    names = ("balanced_accuracy", "macro_f1", "log_loss")
    return UNKNOWN.to_dict("accuracy"), {name: UNKNOWN.to_dict() for name in names}


def describe_views(views: Sequence[str]) -> str:
    """``3 views (seed 0)``: the seed shows which run of `extract` added them."""
    of = names.seeds(views)
    return f"{len(views)} views" + (f" ({'seeds' if len(of) > 1 else 'seed'} {', '.join(map(str, of))})" if of else "")


def _predicts(bundle: Bundle) -> str:
    if bundle.recipe is None:
        return "vectors"
    return "images" if bundle.recipe.detection is None else "faces"
