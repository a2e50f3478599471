"""One head fitted on some rows, and its predictions for others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from featcache.core.errors import BundleError
from featcache.core.progress import Progress, Silent
from featcache.heads.predictors import LinearPredictor, MLPPredictor
from featcache.heads.serialize import export_predictor, loss_curve
from featcache.heads.streaming import VectorStream, check_memory
from featcache.metrics.calibration import held_out_temperature
from featcache.training.bundle import Bundle
from featcache.training.layer_scales import choose_layers
from featcache.training.layer_use import LayerUse, scale_layers

if TYPE_CHECKING:
    from featcache.heads import Head
    from featcache.training.dataset import FeatureDataset

_BATCH = 8192
_BATCH_NUMBERS = 2**26
"""Whole activation maps go in smaller batches: 8192 of them may take many gigabytes."""
_STREAMING = "Use --head torch or --head ridge, which read the vectors in blocks, or fewer layers."


def fit(
    dataset: FeatureDataset,
    rows: np.ndarray,
    head: Head,
    *,
    available_memory: int | None = None,
    progress: Progress | None = None,
) -> Bundle:
    """Fit a head on some rows, in all their views; the views of a row stay in one group.

    Args:
        dataset: labeled vectors.
        rows: (m,) row numbers to fit on.
        head: from `featcache.heads.resolve_head`.
        available_memory: bytes that the head may take; by default what is free. For a head that reads in blocks, only
            what it holds counts, not the vectors.
        progress: gets the fit as a phase, with its steps if the head counts them.

    Returns:
        A bundle. A head with out-of-fold logits gets the temperature that fits them best, reported as
        ``calibration``.

    Raises:
        UsageError: the head needs more memory than is available.
    """
    rows, views = np.sort(rows), len(dataset.views)
    estimator = head.make()
    streams = hasattr(estimator, "fit_stream")
    check_memory(
        estimator,
        head.name,
        len(rows) * views,
        sum(dataset.widths),
        len(dataset.labels or np.unique(dataset.y[rows])),
        streaming="Use fewer layers." if streams or dataset.labels is not None else _STREAMING,
        available=available_memory,
    )
    _start_phase(estimator, head.name, Silent() if progress is None else progress)
    weighs_layers = "widths" in estimator.get_params()
    layers = choose_layers(dataset, rows, alone=not dataset.layers_named and not weighs_layers, seed=head.seed)
    uses = layers.uses
    if weighs_layers:
        estimator.set_params(widths=tuple(use.width for use in uses))
    if streams:
        estimator.fit_stream(_stream(dataset, rows, uses))
    else:
        X = scale_layers(read_layers(dataset.read_views, dataset.view_rows(rows), uses), uses)
        groups = np.repeat(dataset.groups[rows], views)
        takes_groups = type(estimator).__module__.startswith("featcache.")
        estimator.fit(X, np.repeat(dataset.y[rows], views, axis=0), **({"groups": groups} if takes_groups else {}))
    if hasattr(estimator, "on_progress"):
        del estimator.on_progress
    try:
        predictor = export_predictor(estimator)
    except BundleError:
        predictor = None
    classes = dataset.labels or tuple(str(c) for c in estimator.classes_)
    temperature = None
    if isinstance(predictor, LinearPredictor | MLPPredictor):
        if dataset.labels is not None:
            predictor = replace(predictor, classes=classes)
        elif predictor.link == "softmax":
            temperature = held_out_temperature(estimator, dataset.y[rows], views)
            predictor = predictor.with_temperature(temperature or 1.0)
    return Bundle(
        head=head.name,
        classes=classes,
        layers=uses,
        recipe=dataset.recipe,
        predictor=predictor,
        trained_on=dataset.contents(rows),
        fitted_on=len(rows),
        chosen=dict(getattr(estimator, "chosen_", {})),
        report={
            name: getattr(estimator, f"{name}_")
            for name in ("chosen_by", "converged", "grid_note")
            if hasattr(estimator, f"{name}_")
        }
        | {"views": list(dataset.views), "layer_weighting": layers.report()}
        | {"members": estimator.members_report() if hasattr(estimator, "members_report") else None}
        | {"calibration": None if temperature is None else {"temperature": temperature}}
        | loss_curve(estimator),
        estimator=None if predictor is not None else estimator,
    )


def _start_phase(estimator: Any, name: str, progress: Progress) -> None:
    """Start the phase of the fit; a head with ``on_progress`` reports its own steps."""
    if not hasattr(estimator, "on_progress"):
        progress.start(f"train {name}", None, "items")
        return
    reported = 0

    def report(done: int, total: int) -> None:
        nonlocal reported
        if not done:
            reported = 0
            progress.start(f"train {name}", total, "steps")
        progress.advance(done - reported)
        reported = done

    estimator.on_progress = report


def answers(bundle: Bundle, dataset: FeatureDataset, rows: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
    """A head's predictions for some rows.

    Returns:
        Probabilities (m, k), or None for a head without them; and labels (m,), or (m, k) bool with several labels per
        image.
    """
    if not len(rows):
        return np.zeros((0, len(bundle.classes))), dataset.y[rows]
    probabilities, predicted = [], []
    size = max(1, min(_BATCH, _BATCH_NUMBERS // bundle.width))
    for start in range(0, len(rows), size):
        X = read_layers(dataset.read, rows[start : start + size], bundle.layers)
        p = bundle.predict_proba_vectors(X)
        probabilities.append(p)
        if bundle.task == "multilabel" or p is None:
            predicted.append(bundle.predict_vectors(X))
        else:
            predicted.append(np.array(bundle.classes)[p.argmax(1)])
    known = [p for p in probabilities if p is not None]
    return (np.concatenate(known) if known else None), np.concatenate(predicted)


def read_layers(read: Callable[[np.ndarray], np.ndarray], rows: np.ndarray, uses: Sequence[LayerUse]) -> np.ndarray:
    """Vectors of a dataset (m, d), or their last columns where only the last layer is used."""
    X, width = read(rows), sum(use.width for use in uses)
    return X if X.shape[1] == width else X[:, -width:]


def _stream(dataset: FeatureDataset, rows: np.ndarray, uses: tuple[LayerUse, ...]) -> VectorStream:
    """Some rows for a head that reads in blocks."""
    classes, class_ids = np.unique(dataset.y[rows], return_inverse=True)
    view_rows, views = dataset.view_rows(rows), len(dataset.views)
    return VectorStream(
        read=lambda at: scale_layers(read_layers(dataset.read_views, view_rows[at], uses), uses),
        class_ids=np.repeat(class_ids, views),
        groups=np.repeat(dataset.groups[rows], views),
        classes=classes,
        width=sum(use.width for use in uses),
    )
