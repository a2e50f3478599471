"""Metrics of pairs against closed forms for two Gaussians, scikit-learn, and the definitions in plain loops."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import norm
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import roc_auc_score, roc_curve
from sklearn.metrics.pairwise import paired_cosine_distances

from featcache.core.errors import UsageError
from featcache.metrics.intervals import wilson
from featcache.metrics.plots import draw_roc
from featcache.metrics.verification import best_threshold, cllr, cosine_scores, minimal_cllr, roc

Drawn = tuple[list[int], list[int]]
# Few values, so that there are many ties.
SCORES = st.tuples(
    st.lists(st.integers(-4, 4), min_size=1, max_size=25), st.lists(st.integers(-4, 4), min_size=1, max_size=25)
)


def pairs_of(drawn: Drawn) -> tuple[np.ndarray, np.ndarray]:
    positive, negative = drawn
    return np.array(positive + negative, dtype=float), np.arange(len(positive) + len(negative)) < len(positive)


def gaussian(n: int, d: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """2n scores of unit variance whose means are *d* apart; quantiles, and so without noise, if seed is 0."""
    quantiles = np.tile(norm.ppf((np.arange(n) + 0.5) / n), (2, 1))
    z = np.random.default_rng(seed).normal(size=(2, n)) if seed else quantiles
    return np.concatenate([z[0] + d, z[1]]), np.arange(2 * n) < n


@pytest.mark.parametrize("d", [0.5, 1.0, 2.0, 3.5])
def test_two_gaussians_have_their_closed_forms(d: float) -> None:
    curve = roc(*gaussian(20_000, d))
    assert curve.auc() == pytest.approx(norm.cdf(d / math.sqrt(2)), abs=1e-4)
    assert curve.eer() == pytest.approx(norm.cdf(-d / 2), abs=1e-4)
    for far, point in curve.tar_at_far().items():
        assert point.tar.value == pytest.approx(norm.sf(norm.isf(far) - d), abs=4e-3)
        assert point.threshold == pytest.approx(norm.isf(far), abs=0.02)
    scores, same = gaussian(20_000, d)
    assert best_threshold(scores, same) == pytest.approx(d / 2, abs=0.02)
    # The likelihood ratio of Gaussians with one variance is a line in the score.
    cost = cllr(d * scores - d * d / 2, same)
    assert minimal_cllr(scores, same) == pytest.approx(cost, abs=2e-3)
    assert minimal_cllr(scores, same) <= cost


def test_no_difference_is_chance_and_no_overlap_is_perfect() -> None:
    scores, same = gaussian(1000, 0.0)
    assert roc(scores, same).auc() == pytest.approx(0.5)
    assert roc(scores, same).eer() == pytest.approx(0.5)
    assert minimal_cllr(scores, same) == pytest.approx(1)
    scores, same = gaussian(1000, 20.0)
    assert (roc(scores, same).auc(), roc(scores, same).eer(), minimal_cllr(scores, same)) == (1, 0, 0)
    assert (roc(-scores, same).auc(), roc(-scores, same).eer()) == (0, 1)


@given(SCORES)
def test_the_curve_is_scikit_learns_at_every_distinct_score(drawn: Drawn) -> None:
    scores, same = pairs_of(drawn)
    curve = roc(scores, same)
    far, tar, thresholds = roc_curve(same, scores, drop_intermediate=False)
    np.testing.assert_allclose(curve.far, far)
    np.testing.assert_allclose(curve.tar, tar)
    np.testing.assert_array_equal(curve.thresholds, thresholds)
    assert curve.auc() == pytest.approx(roc_auc_score(same, scores))
    wins = np.sign(scores[same][:, None] - scores[~same]).mean() / 2 + 0.5
    assert curve.auc() == pytest.approx(wins)


@given(SCORES, st.randoms(use_true_random=False))
def test_only_the_order_of_the_scores_matters(drawn: Drawn, rng: object) -> None:
    scores, same = pairs_of(drawn)
    order = np.random.default_rng(rng.randrange(1000)).permutation(len(scores))  # type: ignore[attr-defined]
    a, b = roc(scores, same), roc(np.exp(scores[order] / 3), same[order])
    np.testing.assert_array_equal(a.far, b.far)
    np.testing.assert_array_equal(a.tar, b.tar)
    assert a.eer() == b.eer()
    assert minimal_cllr(scores, same) == pytest.approx(minimal_cllr(np.exp(scores[order] / 3), same[order]), abs=1e-12)
    # Turned round, accepts become rejects: the area is what is left, the error rate too.
    c = roc(-scores, same)
    assert c.auc() == pytest.approx(1 - a.auc())
    assert c.eer() == pytest.approx(1 - a.eer())


@given(SCORES)
def test_the_equal_error_rate_lies_on_the_curve(drawn: Drawn) -> None:
    curve = roc(*pairs_of(drawn))
    error = curve.eer()
    segments = itertools.pairwise(zip(curve.far, curve.tar, strict=True))
    gaps = [
        min(np.hypot(x0 + w * (x1 - x0) - error, y0 + w * (y1 - y0) - (1 - error)) for w in np.linspace(0, 1, 201))
        for (x0, y0), (x1, y1) in segments
    ]
    assert min(gaps) < 0.01


@given(SCORES, st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0]))
def test_the_point_at_a_rate_is_the_best_that_keeps_it(drawn: Drawn, far: float) -> None:
    scores, same = pairs_of(drawn)
    point = roc(scores, same).at_far(far)
    best = 0.0
    for threshold in [*scores, np.inf]:
        if np.mean(scores[~same] >= threshold) <= far:
            best = max(best, np.mean(scores[same] >= threshold))
    assert point.tar.value == pytest.approx(best)
    assert np.mean(scores[same] >= point.threshold) == pytest.approx(point.tar.value)
    assert np.mean(scores[~same] >= point.threshold) == pytest.approx(point.far.value)
    assert point.tar.low <= point.tar.value <= point.tar.high
    assert (point.tar.low, point.tar.high) == wilson(point.tar.value, int(same.sum()))


def test_a_rate_is_told_only_where_three_false_accepts_are_due() -> None:
    for negatives, expected in ((29, []), (30, [0.1]), (300, [0.1, 0.01]), (3000, [0.1, 0.01, 0.001])):
        scores = np.arange(negatives + 5.0)
        same = scores >= negatives
        assert list(roc(scores, same).tar_at_far()) == expected


def test_rates_that_are_whole_counts_are_not_missed_by_rounding() -> None:
    for negatives in range(10, 400, 10):
        scores = np.arange(negatives + 1.0)
        same = scores == 0
        point = roc(scores, same).at_far(0.1)
        assert round(point.far.value * negatives) == negatives // 10


@given(SCORES, st.integers(0, 5), st.integers(0, 5))
def test_failed_pairs_miss_everywhere_and_never_lower_the_false_accepts(drawn: Drawn, misses: int, others: int) -> None:
    scores, same = pairs_of(drawn)
    n = len(scores)
    every = np.concatenate([scores, np.full(misses + others, np.nan)])
    kind = np.concatenate([same, np.arange(misses + others) < misses])
    curve, plain = roc(every, kind, np.arange(len(every)) >= n), roc(scores, same)
    np.testing.assert_array_equal(curve.far, plain.far)
    np.testing.assert_allclose(curve.tar, plain.tar * same.sum() / (same.sum() + misses))
    # To fail is to score below all others.
    low, counts = np.where(np.isnan(every), -9.0, every), kind | ~np.isnan(every)
    assert curve.auc() == pytest.approx(roc(low[counts], kind[counts]).auc(), abs=1e-12)


@given(SCORES)
def test_no_other_threshold_decides_more_pairs_rightly(drawn: Drawn) -> None:
    scores, same = pairs_of(drawn)
    chosen = best_threshold(scores, same)
    right = np.mean((scores >= chosen) == same)
    for other in [*scores, *(scores + 1e-9), -np.inf]:
        assert right >= np.mean((scores >= other) == same) - 1e-12


def test_the_threshold_lies_halfway_between_scores_and_parts_neighbours() -> None:
    assert best_threshold(np.array([0.2, 0.4, 0.9]), np.array([False, False, True])) == pytest.approx(0.65)
    below, above = 0.5, np.nextafter(0.5, 1)
    assert best_threshold(np.array([below, above]), np.array([False, True])) == above
    assert best_threshold(np.array([1e308, 1.7e308]), np.array([False, True])) == pytest.approx(1.35e308)


@settings(deadline=None)
@given(SCORES)
def test_the_minimal_cost_is_that_of_scikit_learns_isotonic_regression(drawn: Drawn) -> None:
    scores, same = pairs_of(drawn)
    weight = np.where(same, 0.5 / same.sum(), 0.5 / (~same).sum())
    share = IsotonicRegression().fit_transform(scores, same.astype(float), sample_weight=weight)
    cost = sum(-w * math.log2(p if y else 1 - p) for w, p, y in zip(weight, share, same, strict=True))
    assert minimal_cllr(scores, same) == pytest.approx(cost, abs=1e-9)


@settings(max_examples=30)
@given(st.tuples(*[st.lists(st.integers(0, 3), min_size=1, max_size=4)] * 2))
def test_no_rising_function_costs_less(drawn: Drawn) -> None:
    """All rising functions on a grid of likelihood ratios, one after the other."""
    scores, same = pairs_of(drawn)
    least = minimal_cllr(scores, same)
    for steps in itertools.combinations_with_replacement(np.linspace(-4, 4, 9), 4):
        assert least <= cllr(np.array(steps)[scores.astype(int)], same) + 1e-12


def test_the_cost_of_likelihood_ratios_in_plain_numbers() -> None:
    same = np.array([True, False])
    assert cllr(np.zeros(2), same) == pytest.approx(1)
    # (log2(1 + 1/3) + log2(1 + 1/7)) / 2
    assert cllr(np.log([3.0, 1 / 7]), same) == pytest.approx((math.log2(4 / 3) + math.log2(8 / 7)) / 2)
    # Sure and wrong: no overflow, as many bits as it was sure of.
    assert cllr(np.array([-2000.0, -5.0]), same) == pytest.approx(1000 / math.log(2), rel=1e-2)


def test_cosines_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(50, 2049)).astype(np.float32)
    pairs = rng.integers(0, 50, size=(2500, 2))
    expected = 1 - paired_cosine_distances(*vectors.astype(np.float64)[pairs.T])
    np.testing.assert_allclose(cosine_scores(vectors, pairs), expected, atol=1e-6)
    np.testing.assert_allclose(cosine_scores(vectors, np.stack([np.arange(50)] * 2, 1)), 1, atol=1e-6)
    assert cosine_scores(vectors[:2], np.empty((0, 2))).shape == (0,)


def test_the_cosine_with_nothing_is_0_and_with_a_nan_is_nan() -> None:
    vectors = np.array([[0, 0], [3, 4], [np.nan, 1], [-6, -8], [100, 0]], dtype=np.float16)
    found = cosine_scores(vectors, np.array([[0, 1], [1, 2], [1, 3], [0, 0], [1, 4]]))
    np.testing.assert_allclose(found, [0, np.nan, -1, 0, 0.6], atol=1e-7)


@pytest.mark.parametrize(
    ("scores", "same", "failed", "message"),
    [
        ([0.1, np.nan], [True, False], None, "1 of 2 scores are not finite"),
        ([0.1, 0.2], [True, True], None, "different people"),
        ([0.1, 0.2], [True, False], [True, False], "one person"),
        ([0.1, 0.2], [True, False], [True], "1 truth values"),
        ([0.1, 0.2], [1, 0], None, r"\(n,\) bool"),
        ([0.1], [True, False], None, r"\(1,\) and \(2,\)"),
    ],
)
def test_what_is_wrong_with_pairs_is_said(scores: list, same: list, failed: list | None, message: str) -> None:
    given_failed = None if failed is None else np.array(failed)
    with pytest.raises(UsageError, match=message):
        roc(np.array(scores), np.array(same), given_failed)


def test_the_curve_is_drawn(tmp_path) -> None:
    scores, same = gaussian(500, 2.0, seed=1)
    curve = roc(scores, same)
    draw_roc(curve, tmp_path / "plain.png")
    draw_roc(curve, tmp_path / "marked.png", curve.at_far(0.01))
    plain, marked = (np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB")) for name in ("plain", "marked"))
    assert plain.shape == marked.shape == (550, 660, 3)
    # The mark is red, and nothing else is; the curve is blue.
    red = [(x[..., 0] > 180) & (x[..., 1:].max(-1) < 80) for x in (plain, marked)]
    blue = (plain[..., 2] > 150) & (plain[..., 0] < 80)
    assert not red[0].any()
    assert red[1].sum() > 30
    assert blue.sum() > 300
    # The curve of one pair of each kind, and a point where nothing is accepted.
    least = roc(np.array([1.0, 1.0]), np.array([True, False]))
    draw_roc(least, tmp_path / "least.png", least.at_far(0.0))
    with pytest.raises(UsageError, match=r"call it .*roc\.png"):
        draw_roc(curve, tmp_path / "roc.svg")
    draw_roc(curve, tmp_path / "new" / "roc.png")
    assert (tmp_path / "new" / "roc.png").is_file()


def test_vectors_of_any_length_that_a_number_has_have_cosines() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(2, 8)).astype(np.float32)
    pairs = np.array([[0, 0], [0, 1]])
    expected = cosine_scores(vectors, pairs)
    assert expected[0] == pytest.approx(1, abs=1e-12)
    for length in (1e-30, 1e-25, 1e25, 1e37):
        scaled = (vectors.astype(np.float64) * length).astype(np.float32)
        np.testing.assert_allclose(cosine_scores(scaled, pairs), expected, atol=1e-6)
