"""A projection with a cosine behind it, against float64."""

from __future__ import annotations

import numpy as np
import pytest

from featcache.core.errors import UsageError
from featcache.heads.matching import MatchingPredictor


def predictor(projects: bool = True) -> MatchingPredictor:
    rng = np.random.default_rng(0)
    mean, projection = rng.normal(size=6).astype(np.float32), rng.normal(size=(3, 6)).astype(np.float32)
    return MatchingPredictor(mean, projection if projects else None, None, ("a", "b"))


@pytest.mark.parametrize("projects", [True, False])
def test_against_float64(projects: bool) -> None:
    made, rng = predictor(projects), np.random.default_rng(1)
    a, b = rng.normal(size=(2, 9, 6)).astype(np.float32)
    E = [x.astype(np.float64) - made.mean for x in (a, b)]
    if made.projection is not None:
        E = [x @ made.projection.T.astype(np.float64) for x in E]
    E = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in E]
    np.testing.assert_allclose(made.embed(a), E[0], atol=1e-6)
    np.testing.assert_allclose(made.scores(a, b), (E[0] * E[1]).sum(1), atol=1e-6)
    assert made.embed(a).dtype == np.float32
    assert made.embed(a).shape == (9, made.width)


def test_a_vector_at_the_mean_stays_zero_and_is_like_nothing() -> None:
    made = predictor()
    at_mean = made.mean[None]
    assert not made.embed(at_mean).any()
    assert made.scores(at_mean, at_mean).tolist() == [0.0]


def test_an_image_is_like_itself() -> None:
    X = np.random.default_rng(2).normal(size=(50, 6)).astype(np.float32)
    scores = predictor().scores(X, X)
    assert (scores <= 1).all()
    np.testing.assert_allclose(scores, 1, atol=1e-6)


def test_many_rows_are_embedded_as_few() -> None:
    X = np.random.default_rng(3).normal(size=(8195, 6)).astype(np.float32)
    np.testing.assert_allclose(predictor().embed(X)[-4:], predictor().embed(X[-4:]), atol=1e-6)


@pytest.mark.parametrize("shape", [(4, 5), (6,), (2, 3, 2)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match=r"takes vectors \(n, 6\)"):
        predictor().embed(np.zeros(shape))


def test_rows_must_match() -> None:
    with pytest.raises(UsageError, match="3 do not go with 2"):
        predictor().scores(np.ones((3, 6)), np.ones((2, 6)))
