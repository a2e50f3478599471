"""Calibration of scores: against lines that are known, scikit-learn, and the rates that unseen pairs then have."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression

from featcache.core.errors import UsageError
from featcache.metrics.far_threshold import threshold_at
from featcache.metrics.likelihood_ratio import Calibration, fit_calibration
from featcache.metrics.verification import cllr, minimal_cllr


def gaussian(
    positives: int, negatives: int, d: float, seed: int, scale: float = 1.0, shift: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    z = np.concatenate([rng.normal(d, 1, positives), rng.normal(0, 1, negatives)])
    return scale * z + shift, np.arange(positives + negatives) < positives


@pytest.mark.parametrize(("positives", "negatives"), [(4000, 4000), (2000, 40_000), (20_000, 1000)])
@pytest.mark.parametrize("d", [1.0, 2.5])
def test_the_line_is_that_of_two_gaussians_however_many_there_are_of_each(
    positives: int, negatives: int, d: float
) -> None:
    """ln N(x; d, 1) / N(x; 0, 1) = d · x - d² / 2; with scores 0.1 · x + 0.3 the slope is d / 0.1."""
    fits = [fit_calibration(*gaussian(positives, negatives, d, seed, 0.1, 0.3), 0.01) for seed in range(8)]
    slope = np.mean([fit.slope for fit in fits])
    assert slope == pytest.approx(10 * d, rel=0.04)
    assert np.mean([fit.offset for fit in fits]) == pytest.approx(-d * d / 2 - 3 * d, rel=0.04)


def test_the_line_is_scikit_learns_with_balanced_weights() -> None:
    scores, same = gaussian(300, 2000, 1.5, 0)
    model = LogisticRegression(C=1e6, class_weight="balanced", tol=1e-10, max_iter=1000).fit(scores[:, None], same)
    fit = fit_calibration(scores, same, 0.01)
    assert fit.slope == pytest.approx(model.coef_[0, 0], rel=2e-3)
    assert fit.offset == pytest.approx(model.intercept_[0], rel=2e-3)


def test_the_cost_of_the_line_is_near_the_least_possible() -> None:
    fit = fit_calibration(*gaussian(3000, 3000, 2.0, 1), 0.01)
    scores, same = gaussian(3000, 3000, 2.0, 2)
    assert cllr(fit.llr(scores), same) - minimal_cllr(scores, same) < 0.01


@settings(deadline=None, max_examples=25)
@given(st.floats(0.01, 100), st.floats(-5, 5))
def test_the_units_of_the_scores_do_not_matter(scale: float, shift: float) -> None:
    scores, same = gaussian(60, 90, 1.0, 3)
    plain, other = fit_calibration(scores, same, 0.1), fit_calibration(scores * scale + shift, same, 0.1)
    np.testing.assert_allclose(other.llr(scores * scale + shift), plain.llr(scores), atol=1e-5)
    assert other.threshold == pytest.approx(plain.threshold * scale + shift, abs=1e-9)


def test_scores_that_separate_the_kinds_get_a_finite_line() -> None:
    for n in (30, 3000):
        scores = np.concatenate([np.full(n, 0.9), np.full(n, 0.1)])
        fit = fit_calibration(scores, np.arange(2 * n) < n, 0.1)
        assert 2 < fit.llr(np.array([0.9]))[0] < 15
        assert fit.llr(np.array([0.5]))[0] == pytest.approx(0, abs=1e-6)


def test_probabilities_are_bayes_rule() -> None:
    fit = Calibration(slope=4.0, offset=-1.0, threshold=0.3, far=0.01)
    scores = np.array([-1.0, 0.25, 2.0], dtype=np.float32)
    np.testing.assert_allclose(fit.llr(scores), [-5, 0, 7])
    np.testing.assert_allclose(fit.probability(scores), 1 / (1 + np.exp([5.0, 0.0, -7.0])))
    odds = np.exp(fit.llr(scores)) * 0.01 / 0.99
    np.testing.assert_allclose(fit.probability(scores, prior=0.01), odds / (1 + odds))
    # Extremes are 0 and 1 and no warning.
    np.testing.assert_array_equal(fit.probability(np.array([-1e6, 1e6])), [0, 1])
    for prior in (0, 1, -0.1, math.nan):
        with pytest.raises(UsageError, match="prior"):
            fit.probability(scores, prior=prior)


def test_decisions_are_made_at_the_threshold_in_float64() -> None:
    fit = Calibration(slope=1.0, offset=0.0, threshold=0.1, far=0.01)
    scores = np.array([0.1, np.nextafter(0.1, 0), math.nan])
    np.testing.assert_array_equal(fit.decide(scores), [True, False, False])
    # 0.1 as a float32 is more than 0.1, and its lower neighbor less.
    close = np.array([0.1, np.nextafter(np.float32(0.1), np.float32(0))], dtype=np.float32)
    np.testing.assert_array_equal(fit.decide(close), [True, False])


@pytest.mark.parametrize("n", [30, 299, 3000])
def test_unseen_pairs_are_accepted_at_the_rate_that_was_asked_for(n: int) -> None:
    """Mean over 1,000 draws of n pairs that share no person."""
    far = 3 / n if n < 100 else 0.02
    rng = np.random.default_rng(n)
    realised = [norm.sf(threshold_at(rng.normal(size=n), far)) for _ in range(1000)]
    error = np.std(realised) / math.sqrt(1000)
    assert np.mean(realised) < far + 3 * error
    assert np.mean(realised) == pytest.approx(far, rel=0.12)


def test_people_who_make_many_pairs_do_not_make_the_rate_too_high() -> None:
    """Each person raises the scores of all pairs he is on; 400 draws of 25 people with 3 images each."""
    far, rng = 0.02, np.random.default_rng(0)
    owner = np.repeat(np.arange(25), 3)
    first, second = np.triu_indices(len(owner), 1)
    apart = owner[first] != owner[second]
    people = np.stack([owner[first], owner[second]], axis=1)[apart]
    plain, aware = [], []
    for _ in range(400):
        lift = 0.6 * rng.normal(size=25)
        scores = lift[people].sum(axis=1) + rng.normal(size=len(people))
        for found, who in ((plain, None), (aware, people)):
            found.append(norm.sf(threshold_at(scores, far, people=who) / math.sqrt(1 + 2 * 0.36)) / far)
    assert np.mean(plain) > 1.15
    assert np.mean(aware) == pytest.approx(1, abs=0.1)


def test_people_on_one_pair_each_change_nothing_but_a_rounding() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=500)
    names = np.array([[f"a{i}", f"b{i}"] for i in range(500)])
    ranks = np.sort(scores)[::-1]
    at = threshold_at(scores, 0.02, people=names)
    assert ranks[11] < at < ranks[8]


def test_ranks_leave_out_all_pairs_of_either_person() -> None:
    """Against the definition, in loops."""
    from featcache.metrics.far_threshold import _ranks_left_out

    rng = np.random.default_rng(1)
    people = np.array([(a, b) for a in range(7) for b in range(7) if a != b])
    people = people[rng.permutation(len(people))]
    scores = rng.permutation(len(people)).astype(float)
    expected = []
    for score, pair in zip(scores, people, strict=True):
        others = scores[[not set(pair) & set(other) for other in people]]
        expected.append((np.sum(others > score) + 1) / (len(others) + 1))
    found = _ranks_left_out(scores, people)
    np.testing.assert_allclose(found, np.array(expected)[np.argsort(-scores)])


@given(st.lists(st.integers(0, 5), min_size=30, max_size=60), st.sampled_from([0.1, 0.2, 0.5]))
def test_equal_scores_never_push_the_rate_above_the_target(scores: list[int], far: float) -> None:
    negatives = np.array(scores, dtype=float)
    threshold = threshold_at(negatives, far)
    assert np.count_nonzero(negatives >= threshold) <= far * (len(negatives) + 1) + 1e-9
    # And it is no higher than it must be: the next score below would let too many in.
    below = negatives[negatives < threshold]
    if len(below):
        assert np.count_nonzero(negatives >= below.max()) + 1 > far * (len(negatives) + 1) - 1


def test_too_few_pairs_for_a_rate_are_refused_with_the_number_needed() -> None:
    scores, same = gaussian(50, 299, 2.0, 0)
    with pytest.raises(UsageError, match=r"at least 300 pairs .*there are 299.*at least 0\.0101"):
        fit_calibration(scores, same, 0.01)
    fit_calibration(scores, same, 0.0101)
    assert fit_calibration(*gaussian(50, 300, 2.0, 0), 0.01).far == 0.01


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s, y: (-s, y, 0.1), "score lower"),
        (lambda s, y: (s * 0, y, 0.1), "same score"),
        (lambda s, y: (s, y, 0.0), "between 0 and 1"),
        (lambda s, y: (s, y, 1.0), "between 0 and 1"),
        (lambda s, y: (s, y | True, 0.1), "different people"),
        (lambda s, y: (s, y & False, 0.1), "one person"),
        (lambda s, y: (np.where(s > 1, np.inf, s), y, 0.1), "not finite"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(change, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        fit_calibration(*change(*gaussian(100, 100, 2.0, 0)))


def test_people_that_contradict_the_pairs_are_refused() -> None:
    scores, same = gaussian(100, 100, 2.0, 0)
    with pytest.raises(UsageError, match="two different labels"):
        fit_calibration(scores, same, 0.1, people=np.array([["a", "a"]] * 200))
    with pytest.raises(UsageError, match="two different labels"):
        fit_calibration(scores, same, 0.1, people=np.array(["a", "b"] * 100))


@pytest.mark.parametrize("values", [(-1, 0, 0, 0.1), (math.nan, 0, 0, 0.1), (1, 0, math.inf, 0.1), (1, 0, 0, 2)])
def test_a_calibration_holds_only_sensible_numbers(values: tuple[float, ...]) -> None:
    with pytest.raises(UsageError):
        Calibration(*values)
