"""From a fitted estimator to what a bundle keeps: its predictor, packed as named arrays and back, and its loss curve.

A head is saved as one of four predictors. A `LinearPredictor`, an `MLPPredictor` and a `KnnPredictor` predict labels:
they have ``classes``, ``link``, ``probabilities(X)`` and ``predict(X)``. A `MatchingPredictor` compares two images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, TypeAlias

import numpy as np

from featcache.core.errors import BundleError
from featcache.heads.matching import MatchingPredictor
from featcache.heads.predictors import (
    LINKS,
    KnnPredictor,
    LinearPredictor,
    MLPPredictor,
    check_linear,
    linear_predictor,
)
from featcache.metrics.likelihood_ratio import Calibration

Classifier: TypeAlias = LinearPredictor | MLPPredictor | KnnPredictor
Predictor: TypeAlias = Classifier | MatchingPredictor

# Kinds as they are on disk.
LINEAR = "linear head on vectors"
PERCEPTRON = "multilayer perceptron on vectors"
NEIGHBOURS = "neighbours by vectors"
MATCHING = "projection for matching"


def export_predictor(fitted: Any) -> Predictor:
    """The predictor of a fitted estimator.

    Raises:
        BundleError: the estimator has none; the message names what is supported.
    """
    if _is_own(fitted):
        return fitted.predictor()  # type: ignore[no-any-return]  # one of our own heads: checked above
    return linear_predictor(fitted)


def check_exportable(estimator: Any) -> None:
    """Check by its class alone that an estimator, fitted or not, has a predictor once it is fitted.

    Raises:
        BundleError: it has none; the message names what is supported.
    """
    if not _is_own(estimator):
        check_linear(estimator)


def _is_own(estimator: Any) -> bool:
    return type(estimator).__module__.startswith("featcache.heads.") and hasattr(estimator, "predictor")


def loss_curve(fitted: Any) -> dict[str, list[list[float | None]]]:
    """The held-out log-loss over C of a head that chose C by cross-validation, for its report.

    Args:
        fitted: an estimator; one of this package has a curve if it has ``scores_`` over ``Cs_`` or ``Cs``: either (c,)
            mean log-losses, or (folds, c) negative log-losses averaged with ``held_out_weights_`` (folds,); NaN where
            a C was skipped.

    Returns:
        ``{"loss_over_C": [[C, log-loss or None], …]}`` from small to large C, or ``{}``.
    """
    if getattr(fitted, "scoring", "neg_log_loss") != "neg_log_loss":
        return {}
    Cs = getattr(fitted, "Cs_", getattr(fitted, "Cs", None))
    scores = getattr(fitted, "scores_", None)
    if Cs is None or scores is None or not len(scores) or not type(fitted).__module__.startswith("featcache.heads."):
        return {}
    if np.ndim(scores) == 2:
        # By the same weights as the choice of C.
        losses = -np.average(scores, axis=0, weights=getattr(fitted, "held_out_weights_", None))
        order = np.argsort(Cs)
    else:
        losses, order = np.asarray(scores), np.arange(len(scores))  # these are sorted already
    points = zip(np.sort(np.asarray(Cs, dtype=np.float64)).tolist(), losses[order].tolist(), strict=True)
    return {"loss_over_C": [[C, None if loss != loss else loss] for C, loss in points]}


def pack(predictor: Predictor) -> tuple[str, dict[str, np.ndarray], dict[str, Any]]:
    """Kind, arrays and plain values."""
    if isinstance(predictor, LinearPredictor):
        arrays = {"weight": predictor.weight.astype(np.float32), "bias": predictor.bias.astype(np.float32)}
        return LINEAR, arrays, {"link": predictor.link}
    if isinstance(predictor, MLPPredictor):
        arrays = {f"weight.{i}": weight.astype(np.float32) for i, weight in enumerate(predictor.weights)}
        arrays |= {f"bias.{i}": bias.astype(np.float32) for i, bias in enumerate(predictor.biases)}
        return PERCEPTRON, arrays, {"link": predictor.link, "depth": len(predictor.weights)}
    if isinstance(predictor, MatchingPredictor):
        arrays = {"mean": predictor.mean.astype(np.float32)}
        if predictor.projection is not None:
            arrays["projection"] = predictor.projection.astype(np.float32)
        return (
            MATCHING,
            arrays,
            {
                "link": predictor.link,
                "dimensions": None if predictor.projection is None else len(predictor.projection),
                "calibration": None if predictor.calibration is None else asdict(predictor.calibration),
            },
        )
    arrays = {"vectors": predictor.vectors.astype(np.float32), "numbers": predictor.class_ids.astype(np.int64)}
    return NEIGHBOURS, arrays, {"link": predictor.link, "neighbours": predictor.k}


def unpack(
    kind: str, arrays: Mapping[str, np.ndarray], values: Mapping[str, Any], classes: tuple[str, ...], width: int
) -> Predictor:
    """The predictor that was packed.

    Args:
        kind, arrays, values: as `pack` gave them; others are ignored.
        classes: labels.
        width: d, the length of a vector.

    Raises:
        KeyError: an array or a value is missing.
        BundleError: they do not fit together, or hold values that are not finite.
    """
    if kind == LINEAR:
        weight, bias, link = arrays["weight"], arrays["bias"], values["link"]
        _check(
            link in LINKS,
            weight.shape == (len(classes), width) and weight.dtype == np.float32,
            bias.shape == (len(classes),) and bias.dtype == np.float32,
            np.isfinite(weight).all() and np.isfinite(bias).all(),
        )
        return LinearPredictor(weight, bias, classes, link)
    if kind == PERCEPTRON:
        return _perceptron(arrays, values, classes, width)
    if kind == MATCHING:
        return _matching(arrays, values, classes, width)
    _check(kind == NEIGHBOURS)
    vectors, class_ids, k = arrays["vectors"], arrays["numbers"], values["neighbours"]
    _check(
        vectors.ndim == 2 and vectors.shape[1] == width and vectors.dtype == np.float32,
        class_ids.shape == vectors.shape[:1] and class_ids.dtype == np.int64,
    )
    _check(
        values["link"] == "votes",
        type(k) is int and 1 <= k <= len(vectors),
        np.isfinite(vectors).all() and _of_length_one(vectors),
        len(class_ids) > 0 and class_ids.min() >= 0 and class_ids.max() < len(classes),
    )
    return KnnPredictor(vectors, class_ids, k, classes)


def _perceptron(
    arrays: Mapping[str, np.ndarray], values: Mapping[str, Any], classes: tuple[str, ...], width: int
) -> MLPPredictor:
    depth, layered = values["depth"], [name for name in arrays if name.startswith(("weight", "bias"))]
    # Two arrays a layer and no others, so that a lost layer is not taken for none.
    _check(values["link"] == "softmax", type(depth) is int and depth >= 2)
    _check(len(layered) == 2 * depth)
    weights, biases = (tuple(arrays[f"{part}.{i}"] for i in range(depth)) for part in ("weight", "bias"))
    for place, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        _check(weight.ndim == 2 and weight.shape[0] >= 1 and weight.dtype == np.float32)
        _check(
            weight.shape[1] == (len(weights[place - 1]) if place else width),
            bias.shape == weight.shape[:1] and bias.dtype == np.float32,
            np.isfinite(weight).all() and np.isfinite(bias).all(),
        )
    _check(len(weights[-1]) == len(classes))
    return MLPPredictor(weights, biases, classes)


def _matching(
    arrays: Mapping[str, np.ndarray], values: Mapping[str, Any], classes: tuple[str, ...], width: int
) -> MatchingPredictor:
    mean, dimensions, calibration = arrays["mean"], values["dimensions"], values["calibration"]
    _check(values["link"] == "match", mean.shape == (width,) and mean.dtype == np.float32, np.isfinite(mean).all())
    # The number says whether there is a projection, so that a lost one is not taken for none.
    projection = None if dimensions is None else arrays["projection"]
    if projection is not None:
        _check(
            type(dimensions) is int and dimensions >= 1,
            projection.shape == (dimensions, width) and projection.dtype == np.float32,
            np.isfinite(projection).all(),
        )
    if calibration is not None:
        _check(isinstance(calibration, dict) and calibration.keys() == {f.name for f in fields(Calibration)})
        _check(all(type(value) in (int, float) and math.isfinite(value) for value in calibration.values()))
        _check(calibration["slope"] >= 0, 0 < calibration["far"] < 1)
        calibration = Calibration(**{name: float(value) for name, value in calibration.items()})
    return MatchingPredictor(mean, projection, calibration, classes)


def _of_length_one(vectors: np.ndarray) -> bool:
    """Whether each vector has the length 1, or is 0."""
    squares = np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64)
    return bool(((np.abs(squares - 1) < 1e-3) | (squares == 0)).all())


def _check(*holds: Any) -> None:
    if not all(holds):
        raise BundleError("The arrays do not fit their description.")
