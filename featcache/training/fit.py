"""One head fitted on some rows, and what it says of others."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from featcache.core.errors import BundleError
from featcache.core.progress import Progress, Silent
from featcache.heads import head_name, make_head
from featcache.heads.predictors import LinearPredictor, MLPPredictor
from featcache.heads.serialise import export_predictor
from featcache.heads.softmax import loss_curve
from featcache.heads.streaming import VectorStream, check_memory
from featcache.metrics.calibration import held_out_temperature
from featcache.training.bundle import Bundle
from featcache.training.dataset import FeatureDataset, LayerUse, scale_layers

_ROWS_AT_ONCE = 8192
_NUMBERS_AT_ONCE = 2**26
"""Of whole activation maps fewer rows: 8192 of them may take many gigabytes."""
_STREAMING = "Take --head torch or --head ridge, which read the vectors piece by piece, or fewer layers."


def fit(
    dataset: FeatureDataset,
    rows: np.ndarray,
    head: Any,
    seed: int,
    *,
    available_memory: int | None = None,
    progress: Progress | None = None,
) -> Bundle:
    """Fit a head on some rows, in all views of them; a row's views belong to its unit.

    Args:
        dataset: labelled vectors.
        rows: (m,) row numbers to fit on.
        head: a name or a scikit-learn classifier.
        seed: of our own heads.
        available_memory: bytes that the head may take; by default what the machine has. Of a head that reads
            piece by piece only what it holds counts, not the vectors.
        progress: is told of the fit as a phase, step by step where the head counts its own.

    Returns:
        A bundle; the logits of a head that has out-of-fold ones are divided by the temperature that fits
        these best, which the report has as ``calibration``.

    Raises:
        UsageError: the head needs more memory than that.
    """
    rows, views = np.sort(rows), len(dataset.views)
    estimator = make_head(head, seed, "classify" if dataset.labels is None else "multilabel")
    streams = hasattr(estimator, "fit_stream")
    check_memory(
        estimator,
        head_name(head),
        len(rows) * views,
        sum(dataset.widths),
        len(dataset.labels or np.unique(dataset.y[rows])),
        streaming="Take fewer layers." if streams or dataset.labels is not None else _STREAMING,
        available=available_memory,
    )
    _report(estimator, head_name(head), Silent() if progress is None else progress)
    uses = layer_uses(dataset, rows)
    if streams:
        estimator.fit_stream(_stream(dataset, rows, uses))
    else:
        X = scale_layers(dataset.read_views(dataset.learned(rows)), uses)
        units = np.repeat(dataset.units[rows], views)
        groups = {"groups": units} if type(estimator).__module__.startswith("featcache.") else {}
        estimator.fit(X, np.repeat(dataset.y[rows], views, axis=0), **groups)
    if hasattr(estimator, "on_progress"):
        del estimator.on_progress  # what was to be told is over
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
    contents = sorted({dataset.items[row].sha256 for row in rows}) if dataset.knows_images else []
    return Bundle(
        head=head_name(head),
        classes=classes,
        layers=uses,
        recipe=dataset.recipe,
        predictor=predictor,
        trained_on=np.frombuffer(b"".join(contents), dtype=np.uint8).reshape(-1, 32),
        fitted_on=len(rows),
        chosen=dict(getattr(estimator, "chosen_", {})),
        report={
            name: getattr(estimator, f"{name}_")
            for name in ("chosen_by", "converged", "grid_note")
            if hasattr(estimator, f"{name}_")
        }
        | {"views": list(dataset.views)}
        | {"calibration": None if temperature is None else {"temperature": temperature}}
        | loss_curve(estimator),
        estimator=None if predictor is not None else estimator,
    )


def _report(estimator: Any, name: str, shown: Progress) -> None:
    """Begin the phase of the fit; a head with ``on_progress`` says itself how many steps it has."""
    if not hasattr(estimator, "on_progress"):
        shown.start(f"train {name}", None, "items")
        return
    told = 0

    def tell(done: int, of: int) -> None:
        nonlocal told
        if not done:
            told = 0
            shown.start(f"train {name}", of, "steps")
        shown.advance(done - told)
        told = done

    estimator.on_progress = tell


def answers(bundle: Bundle, dataset: FeatureDataset, rows: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
    """A head's probabilities (m, k), or None where it has none, and its labels (m,) for some rows.

    With several labels an item the latter are (m, k) bool.
    """
    probabilities, predicted = [], []
    at_once = max(1, min(_ROWS_AT_ONCE, _NUMBERS_AT_ONCE // bundle.width))
    for start in range(0, len(rows), at_once):
        X = dataset.read(rows[start : start + at_once])
        p = bundle.predict_proba_vectors(X)
        probabilities.append(p)
        if bundle.task == "multilabel" or p is None:
            predicted.append(bundle.predict_vectors(X))
        else:
            predicted.append(np.array(bundle.classes)[p.argmax(1)])
    known = [p for p in probabilities if p is not None]
    return (np.concatenate(known) if known else None), np.concatenate(predicted)


def layer_uses(dataset: FeatureDataset, rows: np.ndarray, *, about_mean: bool = False) -> tuple[LayerUse, ...]:
    """The layers with their scales: the root mean square over *rows* in all their views where there are several.

    Args:
        dataset: labelled vectors.
        rows: (m,) row numbers.
        about_mean: take it of what the vectors differ from their mean, for a head that takes the mean away first.
    """
    scales = np.ones(len(dataset.layers))
    if len(dataset.layers) > 1:
        squares, edges = np.zeros(len(dataset.layers)), np.cumsum([0, *dataset.widths])
        total, places = np.zeros(edges[-1]), dataset.learned(rows)
        for start in range(0, len(places), _ROWS_AT_ONCE):
            X = dataset.read_views(places[start : start + _ROWS_AT_ONCE])
            squares += [float(np.square(X[:, a:b], dtype=np.float64).sum()) for a, b in pairwise(edges)]
            total += X.sum(axis=0, dtype=np.float64)
        if about_mean:
            squares -= [float(np.square(total[a:b]).sum()) / len(places) for a, b in pairwise(edges)]
        roots = np.sqrt(np.maximum(squares, 0) / (len(places) * np.array(dataset.widths)))
        scales = np.where(roots > 0, roots, 1.0)
    return tuple(
        LayerUse(name, shape, float(scale))
        for name, shape, scale in zip(dataset.layers, dataset.shapes, scales, strict=True)
    )


def _stream(dataset: FeatureDataset, rows: np.ndarray, uses: tuple[LayerUse, ...]) -> VectorStream:
    """Some rows as a head reads them; nothing but their labels and units is kept in memory."""
    classes, numbers = np.unique(dataset.y[rows], return_inverse=True)
    places, views = dataset.learned(rows), len(dataset.views)
    return VectorStream(
        read=lambda at: scale_layers(dataset.read_views(places[at]), uses),
        numbers=np.repeat(numbers, views),
        groups=np.repeat(dataset.units[rows], views),
        classes=classes,
        width=sum(use.width for use in uses),
    )
