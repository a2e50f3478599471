"""A perceptron written down answers as plain torch does, and what does not fit together is refused."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from featcache.core.errors import BundleError
from featcache.heads.predictors import MLPPredictor
from featcache.heads.serialize import PERCEPTRON, pack, unpack
from featcache.training.to_torch import head_module

CLASSES = ("a", "b", "c")


def perceptron(*hidden: int, d: int = 6, seed: int = 0) -> MLPPredictor:
    rng = np.random.default_rng(seed)
    widths = [d, *hidden, len(CLASSES)]
    pairs = list(pairwise(widths))
    return MLPPredictor(
        tuple(rng.normal(size=(b, a)).astype(np.float32) for a, b in pairs),
        tuple(rng.normal(size=b).astype(np.float32) for _, b in pairs),
        CLASSES,
    )


@pytest.mark.parametrize("hidden", [(5,), (7, 4), (3, 1, 8)])
def test_against_torch(hidden: tuple[int, ...]) -> None:
    predictor, X = perceptron(*hidden), np.random.default_rng(1).normal(size=(9, 6)).astype(np.float32)
    z = torch.from_numpy(X).double()
    for place, (weight, bias) in enumerate(zip(predictor.weights, predictor.biases, strict=True)):
        z = torch.nn.functional.linear(
            z.relu() if place else z, torch.from_numpy(weight).double(), torch.from_numpy(bias).double()
        )
    np.testing.assert_allclose(predictor.scores(X), z.numpy(), atol=1e-12)
    p = predictor.probabilities(X)
    assert p.dtype == np.float64
    np.testing.assert_allclose(p, z.softmax(1).numpy(), atol=1e-12)
    assert predictor.predict(X).tolist() == [CLASSES[i] for i in z.argmax(1)]


@pytest.mark.parametrize("hidden", [(5,), (7, 4)])
def test_as_a_module(hidden: tuple[int, ...]) -> None:
    predictor, X = perceptron(*hidden), np.random.default_rng(1).normal(size=(9, 6)).astype(np.float32)
    module = head_module(predictor)
    assert [type(part).__name__ for part in module.children()] == ["Linear", *["ReLU", "Linear"] * len(hidden)]
    with torch.no_grad():
        np.testing.assert_allclose(module(torch.from_numpy(X)).numpy(), predictor.scores(X), rtol=1e-5, atol=1e-5)


@given(st.floats(0.01, 100), st.integers(0, 99))
def test_a_temperature_divides_the_scores_and_changes_no_label(temperature: float, seed: int) -> None:
    predictor, X = perceptron(5, seed=seed), np.random.default_rng(seed).normal(size=(9, 6)).astype(np.float32)
    cooled = predictor.with_temperature(temperature)
    np.testing.assert_allclose(cooled.scores(X), predictor.scores(X) / temperature, rtol=1e-4, atol=1e-5)
    assert cooled.predict(X).tolist() == predictor.predict(X).tolist()
    assert predictor.with_temperature(1.0) is predictor


@pytest.mark.parametrize("hidden", [(5,), (7, 4)])
def test_it_comes_back_from_its_arrays(hidden: tuple[int, ...]) -> None:
    predictor = perceptron(*hidden)
    kind, arrays, values = pack(predictor)
    assert (kind, values) == (PERCEPTRON, {"link": "softmax", "depth": len(hidden) + 1})
    back = unpack(kind, arrays | {"trained_on": np.zeros(0)}, values, CLASSES, 6)
    assert isinstance(back, MLPPredictor)
    X = np.random.default_rng(1).normal(size=(9, 6)).astype(np.float32)
    assert back.probabilities(X).tobytes() == predictor.probabilities(X).tobytes()


@pytest.mark.parametrize(
    ("changed", "values"),
    [
        ({"weight.0": np.zeros((5, 7), np.float32)}, {}),
        ({"weight.0": np.zeros((4, 6), np.float32)}, {}),
        ({"weight.0": np.zeros(6, np.float32)}, {}),
        ({"weight.0": np.zeros((5, 6), np.float64)}, {}),
        ({"weight.0": np.full((5, 6), np.nan, np.float32)}, {}),
        ({"weight.1": np.zeros((2, 5), np.float32), "bias.1": np.zeros(2, np.float32)}, {}),
        ({"weight.1": np.zeros((3, 4), np.float32)}, {}),
        ({"weight.1": np.zeros((3, 5, 1), np.float32)}, {}),
        ({"bias.0": np.zeros((5, 1), np.float32)}, {}),
        ({"bias.1": np.zeros(3, np.float64)}, {}),
        ({"bias.1": np.full(3, np.inf, np.float32)}, {}),
        ({"weight.0": np.zeros((0, 6), np.float32), "bias.0": np.zeros(0, np.float32)}, {}),
        ({"weight.2": np.zeros((3, 3), np.float32), "bias.2": np.zeros(3, np.float32)}, {}),
        ({"weight": np.zeros((3, 6), np.float32)}, {}),
        ({}, {"depth": 1}),
        ({}, {"depth": 3}),
        ({}, {"depth": 2.0}),
        ({}, {"depth": True}),
        ({}, {"depth": 10**18}),
        ({}, {"link": "margin"}),
    ],
)
def test_what_does_not_fit_is_refused(changed: dict[str, np.ndarray], values: dict[str, Any]) -> None:
    kind, arrays, said = pack(perceptron(5))
    with pytest.raises(BundleError, match="do not fit"):
        unpack(kind, arrays | changed, said | values, CLASSES, 6)


def test_what_is_missing_is_named() -> None:
    kind, arrays, values = pack(perceptron(5))
    with pytest.raises(KeyError, match="depth"):
        unpack(kind, arrays, {"link": "softmax"}, CLASSES, 6)
    arrays["weight.7"] = arrays.pop("weight.1")
    with pytest.raises(KeyError, match=r"weight\.1"):
        unpack(kind, arrays, values, CLASSES, 6)
