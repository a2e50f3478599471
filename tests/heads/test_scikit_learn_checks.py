"""The heads of our own pass scikit-learn's checks of estimators."""

from __future__ import annotations

from typing import Any

from sklearn.utils.estimator_checks import parametrize_with_checks

from featcache.heads.centroid import CentroidHead
from featcache.heads.knn import KnnHead
from featcache.heads.mlp import MLPHead
from featcache.heads.ridge import RidgeHead


def known(estimator: Any) -> dict[str, str]:
    """Checks that ask for what is not meant."""
    if isinstance(estimator, CentroidHead):
        why = "a row left out is left out with its whole weight; of rows that are repeated, copies would stay"
        return {"check_sample_weight_equivalence_on_dense_data": why}
    return {}


SMALL = MLPHead(hidden=(16,), epochs=60, lr=0.01, decays=(0.1,))


@parametrize_with_checks([RidgeHead(), KnnHead(), CentroidHead(), SMALL], expected_failed_checks=known)
def test_scikit_learns_checks(estimator: Any, check: Any) -> None:
    check(estimator)
