"""Verification on folds against the protocol in plain loops."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from featcache.core.errors import UsageError
from featcache.faces.calibrate import verify_on_folds
from featcache.faces.sample_pairs import draw_pairs
from featcache.metrics.verification import cosine_scores, roc


def problem(n: int = 200, folds: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    same = rng.random(n) < 0.5
    return rng.normal(size=n).round(1) + 1.5 * same, same, np.arange(n) % folds


def test_each_fold_is_decided_by_the_best_threshold_of_the_others() -> None:
    scores, same, fold = problem()
    report = verify_on_folds(scores, same, fold)
    for k in range(5):
        inside, others = fold == k, fold != k
        right = [np.mean((scores[others] >= t) == same[others]) for t in [*scores[others], np.inf]]
        threshold = report.thresholds[k]
        assert np.mean((scores[others] >= threshold) == same[others]) == pytest.approx(max(right))
        assert report.fold_accuracies[k] == pytest.approx(np.mean((scores[inside] >= threshold) == same[inside]))
    assert report.accuracy == pytest.approx(np.mean(report.fold_accuracies))
    assert report.standard_error == pytest.approx(np.std(report.fold_accuracies, ddof=1) / math.sqrt(5))
    curve = roc(scores, same)
    assert (report.auc, report.eer) == (curve.auc(), curve.eer())
    assert list(report.tar_at_far) == [0.1]


def test_what_a_fold_holds_does_not_choose_its_threshold() -> None:
    scores, same, fold = problem()
    turned = np.where(fold == 2, -scores, scores)
    a, b = verify_on_folds(scores, same, fold), verify_on_folds(turned, same, fold)
    assert a.thresholds[2] == b.thresholds[2]
    assert b.fold_accuracies[2] < a.fold_accuracies[2]


def test_failed_pairs_are_errors_of_their_fold_and_choose_no_threshold() -> None:
    scores, same, fold = problem()
    failed = np.zeros(len(same), dtype=bool)
    failed[[0, 5, 7]] = True
    scores[failed] = np.nan
    report = verify_on_folds(scores, same, fold, failed)
    clean = verify_on_folds(scores[~failed], same[~failed], fold[~failed])
    assert (report.pairs, report.failed) == (200, 3)
    assert report.thresholds == clean.thresholds
    # Folds of 40 pairs: 0 and 5 lie in the first, 7 in the third.
    assert report.fold_accuracies[0] == pytest.approx(clean.fold_accuracies[0] * 38 / 40)
    assert report.fold_accuracies[2] == pytest.approx(clean.fold_accuracies[2] * 39 / 40)
    assert report.fold_accuracies[1] == clean.fold_accuracies[1]
    # Even scores that would be right do not make a failed pair right.
    scores[failed] = np.where(same[failed], 100, -100)
    assert verify_on_folds(scores, same, fold, failed) == report


def test_a_report_is_plain_json() -> None:
    scores, same, fold = problem(n=800)
    # Equal scores of all pairs of two: nothing at all can be accepted at a FAR of 0.1.
    for values in (scores, np.where(same, 0.0, 1.0)):
        fields = verify_on_folds(values, same, fold).to_dict()
        assert json.loads(json.dumps(fields, allow_nan=False)) == fields
    assert {"pairs", "failed", "accuracy", "standard_error", "auc", "eer", "tar_at_far"} <= set(fields)
    assert [point["threshold"] for point in fields["tar_at_far"]] == [None, None]
    assert [point["far"] for point in fields["tar_at_far"]] == [0.1, 0.01]


def test_folds_that_do_not_fit_are_refused() -> None:
    scores, same, fold = problem()
    with pytest.raises(UsageError, match="two folds or more"):
        verify_on_folds(scores, same, fold * 0)
    with pytest.raises(UsageError, match="two folds or more"):
        verify_on_folds(scores, same, fold[1:])
    with pytest.raises(UsageError, match="None of the 160 pairs shows one person"):
        verify_on_folds(scores, same & (fold == 1), fold)
    with pytest.raises(UsageError, match="which of 200 pairs failed"):
        verify_on_folds(scores, same, fold, np.zeros(3, dtype=bool))


def test_vectors_of_people_that_differ_are_told_apart_on_drawn_folds() -> None:
    """From vectors to a report: identities are Gaussian directions, and other people's images are chance."""
    rng = np.random.default_rng(0)
    labels = [f"p{i}" for i in range(100) for _ in range(8)]
    centres = np.repeat(rng.normal(size=(100, 32)), 8, axis=0)
    pairs = draw_pairs(labels, folds=10, each=100)
    for noise, least, most in ((0.3, 0.99, 1.0), (1.0, 0.85, 0.97), (1e3, 0.46, 0.54)):
        vectors = (centres + noise * rng.normal(size=centres.shape)).astype(np.float32)
        report = verify_on_folds(cosine_scores(vectors, pairs.images), pairs.same, pairs.fold)
        assert least <= report.accuracy <= most
        assert abs(1 - report.eer - report.accuracy) < 0.03
