"""The best of several is taken for better only beyond what the best of so many is by chance."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from featcache.finetuning.linear_probe import CHANCE
from featcache.metrics.best_of_many import p_of_best

EPOCHS = 12


def walks(n: int, rng: np.random.Generator) -> np.ndarray:
    """(n, 12) gains of items that add up epoch by epoch, with heavy tails, and are as often losses."""
    gains = np.cumsum(rng.standard_t(4, size=(n, EPOCHS)), axis=1)
    return gains * rng.choice([-1.0, 1.0], size=(n, 1))


@pytest.mark.parametrize("seed", range(4))
def test_it_is_the_share_of_all_signs_that_reach_as_much(seed: int) -> None:
    """By going through all 2 ** 11 signs of 11 units of one to three items."""
    rng = np.random.default_rng(seed)
    units = np.repeat(np.arange(11), rng.integers(1, 4, size=11))
    gains = walks(len(units), rng) + 0.7
    best = gains.mean(axis=0).max()
    reached = [
        bool((gains * np.array(signs)[units, None]).mean(axis=0).max() >= best - 1e-12)
        for signs in product((-1, 1), repeat=11)
    ]
    assert p_of_best(gains, units) == pytest.approx(np.mean(reached), abs=0.03)


def test_of_one_gain_it_is_the_sign_test() -> None:
    gains = np.array([1.0] * 9 + [-1.0])[:, None]
    assert p_of_best(gains, np.arange(10)) == pytest.approx(11 / 2**10, abs=0.006)


def test_what_can_tell_nothing_is_no_gain() -> None:
    one = np.ones((6, 3))
    assert p_of_best(one, np.zeros(6)) == pytest.approx(0.5, abs=0.05)  # a single unit
    assert p_of_best(-one, np.arange(6)) == 1
    assert p_of_best(0 * one, np.arange(6)) == 1
    assert p_of_best(one[:0], np.arange(0)) == 1


@pytest.mark.parametrize("n", [24, 72])
def test_chance_is_taken_in_a_tenth_of_trainings_at_most(n: int) -> None:
    """200 draws without gain, where the rule of one standard error takes three times as many."""
    rng = np.random.default_rng(n)
    draws = [walks(n, rng) for _ in range(200)]
    taken = [p_of_best(gains, np.arange(n)) <= CHANCE for gains in draws]
    assert np.mean(taken) <= 0.1
    by_one_error = [
        (best := gains[:, gains.mean(axis=0).argmax()]).mean() > best.std(ddof=1) / np.sqrt(n) for gains in draws
    ]
    assert np.mean(by_one_error) >= 0.3


@pytest.mark.parametrize(("errors", "least"), [(1, 0.2), (2, 0.6), (3, 0.9)])
def test_true_gains_are_taken(errors: int, least: float) -> None:
    """Gains of so many standard errors from the sixth epoch on; least is what cross-fitting at the same level takes."""
    rng = np.random.default_rng(errors)
    taken = []
    for _ in range(200):
        gains = walks(72, rng)
        gains += errors * gains.std(axis=0) / np.sqrt(72) * np.minimum(np.arange(1, EPOCHS + 1) / 6, 1)
        taken.append(p_of_best(gains, np.arange(72)) <= CHANCE)
    assert np.mean(taken) >= least
