"""The head `softmax` against scikit-learn on the same arrays, in alternating rounds.

    python scripts/bench/heads.py PROBLEM [--store STORE] [--rounds 3]

PROBLEM is one of

    gaussian 45 values of C × 5 folds + refit, 5,000 × 512, 10 Gaussian classes, on which scikit-learn converges fast
    small    45 values of C × 5 folds + refit, 5,000 × 512, 10 classes, against LogisticRegressionCV(tol=1e-6)
    large    the same for 10,000 × 768, 100 classes, against LogisticRegressionCV(tol=1e-4)
    store    the same for the vectors of a store, and the held-out log-loss against a float64 reference
    one      one fit at one C, 20,000 × 1280, 50 classes, against scikit-learn's solvers at the same gap

Ratios are of processor seconds, with one thread of linear algebra for scikit-learn: as if it used both cores without
any loss, which its small products do not, and of use on a machine that is not idle. Seconds on the clock are
recorded too. Where one round of scikit-learn takes more than five minutes it has one round. Objectives are in float64.
A cell is written when its problem is done; a run that was stopped begins that problem anew.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import logsumexp
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.metrics import log_loss
from threadpoolctl import threadpool_limits

import featcache as fc
from featcache.heads import SoftmaxPathClassifier
from featcache.metrics import splits

sys.path.insert(0, str(Path(__file__).parent))
import recording

CS = np.geomspace(1e-6, 1e5, 45)
PATIENCE = 300.0
STORE_MAX_ITER = 1000
"""Real vectors take scikit-learn more than 10,000 iterations at large C; so it stops early, to its advantage."""


def draw(n: int, d: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Vectors as a network's last layer gives them: not negative, of some dozen directions, classes that overlap."""
    rng = np.random.default_rng(0)
    rank = d // 10
    directions = rng.normal(size=(rank, d)) * np.geomspace(1, 0.1, rank)[:, None]
    y = rng.integers(0, k, n)
    latent = 0.35 * rng.normal(size=(k, rank))[y] + rng.normal(size=(n, rank))
    return np.maximum(latent @ directions + 2 * rng.normal(size=(n, d)), 0).astype(np.float32), y


def draw_gaussian(n: int, d: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian classes that overlap, centered, with variances that fall by a factor of a thousand, in random axes."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, k, n)
    scale = np.geomspace(1, 0.03, d)
    X = (rng.standard_normal((k, d))[y] * 0.25 + rng.standard_normal((n, d))) * scale
    axes = np.linalg.qr(rng.standard_normal((d, d)))[0]
    return np.ascontiguousarray(X @ axes, np.float32), y


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    took, _, found = timed_twice(work)
    return took, found


def timed_twice(work: Callable[[], Any]) -> tuple[float, float, Any]:
    """Seconds on the clock, seconds of all processors, and what was found."""
    began, of_processors = time.perf_counter(), time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.simplefilter("ignore", FutureWarning)
        found = work()
    return time.perf_counter() - began, time.process_time() - of_processors, found


def with_one_thread(estimator: Any, X: np.ndarray, y: np.ndarray) -> Any:
    with threadpool_limits(1, user_api="blas"):
        return estimator.fit(X, y)


def objective(X: np.ndarray, y: np.ndarray, C: float, coef: np.ndarray, intercept: np.ndarray) -> float:
    z = X.astype(np.float64) @ coef.T.astype(np.float64) + intercept
    if z.shape[1] == 1:
        z = np.hstack([np.zeros_like(z), z])
    losses = logsumexp(z, axis=1) - z[np.arange(len(y)), y]
    return 0.5 * float(np.square(coef, dtype=np.float64).sum()) + C * float(losses.sum())


def path(name: str, X: np.ndarray, y: np.ndarray, tol: float, max_iter: int, rounds: int) -> dict[str, Any]:
    """The whole path with its cross-validation, side by side."""
    folds = splits.folds(y, np.arange(len(y)), 5, 0)
    seconds: dict[str, list[float]] = {"featcache": [], "featcache_early_stop": [], "scikit_learn": []}
    cpu_seconds: dict[str, list[float]] = {column: [] for column in seconds}
    theirs: Any = None
    for _ in range(rounds):
        for early, column in ((False, "featcache"), (True, "featcache_early_stop")):
            took, busy, mine = timed_twice(
                lambda early=early: SoftmaxPathClassifier(CS, cv=folds, early_stopping=early).fit(X, y)
            )
            seconds[column].append(took)
            cpu_seconds[column].append(busy)
            if not early:
                whole = mine
        if theirs is None or seconds["scikit_learn"][0] < PATIENCE:
            took, busy, theirs = timed_twice(
                lambda: with_one_thread(
                    LogisticRegressionCV(
                        Cs=CS, cv=folds, tol=tol, max_iter=max_iter, scoring="neg_log_loss", use_legacy_attributes=False
                    ),
                    X,
                    y,
                )
            )
            seconds["scikit_learn"].append(took)
            cpu_seconds["scikit_learn"].append(busy)
    medians = {column: float(np.median(taken)) for column, taken in cpu_seconds.items()}
    iterations, chosen = np.asarray(theirs.n_iter_), int(np.flatnonzero(CS == whole.C_)[0])
    cell: dict[str, Any] = {
        "problem": name,
        "n": len(X),
        "d": X.shape[1],
        "k": int(y.max()) + 1,
        "tol_scikit_learn": tol,
        "max_iter_scikit_learn": max_iter,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "ratio": medians["scikit_learn"] / medians["featcache"],
        "ratio_early_stop": medians["scikit_learn"] / medians["featcache_early_stop"],
        "C": whole.C_,
        "C_scikit_learn": float(np.ravel(theirs.C_)[0]),
        "gap": float(whole.gap_),
        "largest_gap_on_the_path": float(np.nanmax(whole.gaps_)),
        "passes": whole.n_iter_,
        "not_converged_scikit_learn": int((iterations >= max_iter).sum()),
        "fits_scikit_learn": int(iterations.size),
        "held_out_log_loss": -float(np.average(whole.scores_[:, chosen], weights=[len(test) for _, test in folds])),
    }
    # The objective at some values of C, on all rows, from scikit-learn at the same tolerance.
    better = []
    for place in (10, 20, 30, 40):
        C = float(CS[place])
        _, plain = timed(lambda C=C: with_one_thread(LogisticRegression(C=C, tol=tol, max_iter=max_iter), X, y))
        mine = SoftmaxPathClassifier([C]).fit(X, y)
        f, g = (objective(X, y, C, m.coef_, m.intercept_) for m in (mine, plain))
        better.append({"C": C, "featcache": f, "scikit_learn": g, "excess_scikit_learn": (g - f) / f})
    cell["objectives"] = better
    return cell


def reference(X: np.ndarray, y: np.ndarray, C: float) -> float:
    """Held-out log-loss at one C by Newton's method in float64 on each fold, to a gradient of 1e-10."""
    total = 0.0
    for train_rows, test in splits.folds(y, np.arange(len(y)), 5, 0):
        mean = X[train_rows].astype(np.float64).mean(axis=0)
        centred = X[train_rows] - mean
        axes = np.linalg.svd(centred, full_matrices=False)[2] if len(train_rows) < X.shape[1] else np.eye(X.shape[1])
        model = LogisticRegression(C=C, solver="newton-cholesky", tol=1e-10, max_iter=1000).fit(
            centred @ axes.T, y[train_rows]
        )
        total += log_loss(y[test], model.predict_proba((X[test] - mean) @ axes.T)) * len(test)
    return total / len(y)


def one(rounds: int) -> dict[str, Any]:
    """One fit at one C: ours, and scikit-learn's solvers at ever smaller tolerances until they are as near."""
    X, y = draw(20_000, 1280, 50)
    C = 0.01
    ours = []
    for _ in range(rounds):
        _, busy, mine = timed_twice(lambda: SoftmaxPathClassifier([C]).fit(X, y))
        ours.append(busy)
    least = objective(X, y, C, mine.coef_, mine.intercept_)
    tried = []
    for solver in ("lbfgs", "newton-cg"):
        for tol in (1e-4, 1e-6, 1e-8):
            _, took, plain = timed_twice(
                lambda solver=solver, tol=tol: with_one_thread(
                    LogisticRegression(C=C, solver=solver, tol=tol, max_iter=2000), X, y
                )
            )
            gap = (objective(X, y, C, plain.coef_, plain.intercept_) - least) / least
            tried.append({"solver": solver, "tol": tol, "cpu_seconds": took, "excess": gap})
            print(tried[-1], file=sys.stderr)
            if gap <= 1e-8 or took > PATIENCE:
                break
    return {
        "problem": "one",
        "n": 20_000,
        "d": 1280,
        "k": 50,
        "C": C,
        "cpu_seconds": ours,
        "gap": mine.gap_,
        "tried": tried,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problem", choices=("gaussian", "small", "large", "store", "one"))
    parser.add_argument("--store", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if options.problem == "one":
        cell = one(options.rounds)
    elif options.problem == "store":
        X, labels, _ = fc.open(options.store).arrays(layers="pooled")
        y = np.unique(labels, return_inverse=True)[1]
        cell = path(options.store.stem, X, y, 1e-6, STORE_MAX_ITER, options.rounds)
        found = reference(X, y, cell["C"])
        cell["held_out_log_loss_reference"] = found
    elif options.problem == "gaussian":
        cell = path("gaussian", *draw_gaussian(5000, 512, 10), 1e-6, 10_000, options.rounds)
    elif options.problem == "small":
        cell = path("small", *draw(5000, 512, 10), 1e-6, 10_000, options.rounds)
    else:
        cell = path("large", *draw(10_000, 768, 100), 1e-4, 100, options.rounds)
    recording.append("heads", cell)


if __name__ == "__main__":
    main()
