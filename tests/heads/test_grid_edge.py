"""Vectors whose scale lies beyond the default grid of `softmax` are told of, and no others."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from featcache.core.errors import GridEdgeWarning
from featcache.heads import SoftmaxPathClassifier
from tests.heads.test_heads import gaussians


@pytest.mark.parametrize(
    ("factor", "what"),
    [
        (1e-6, "No C of the 45 from 1e-06 to 100000 changes the held-out loss.*Give other Cs"),
        (1e-3, r"C = 100000 is the last of the 45 tried.*Give larger Cs"),
        (1e3, r"C = 1e-06 is the first of the 45 tried.*Give smaller Cs"),
    ],
)
def test_a_scale_beyond_the_grid_is_told_of(factor: float, what: str) -> None:
    X, y = gaussians(90, spread=0.5)
    with pytest.warns(GridEdgeWarning, match=what):
        head = SoftmaxPathClassifier().fit(X * np.float32(factor), y)
    assert head.grid_note_ is not None
    # Values of one's own are taken as they are, also those that would have been better.
    own = SoftmaxPathClassifier(Cs=np.geomspace(1e-6, 1e2, 17) / factor**2).fit(X * np.float32(factor), y)
    assert own.grid_note_ is None
    assert -own.scores_[:, own.Cs_ == own.C_].mean() < -head.scores_[:, head.Cs_ == head.C_].mean()


@pytest.mark.parametrize("spread", [0.2, 2.0])
@pytest.mark.parametrize("told", [True, False])
def test_at_a_usual_scale_nothing_is(spread: float, told: bool) -> None:
    """Neither where the classes are far apart, nor where the labels are drawn by lot."""
    X, y = gaussians(90, spread=spread)
    if not told:
        y = np.random.default_rng(0).permutation(y)
    with warnings.catch_warnings():
        warnings.simplefilter("error", GridEdgeWarning)
        assert SoftmaxPathClassifier().fit(X, y).grid_note_ is None


def test_vectors_that_are_all_equal_are_not_too_small() -> None:
    assert SoftmaxPathClassifier().fit(np.full((30, 3), 7.0), np.arange(30) % 2).grid_note_ is None
