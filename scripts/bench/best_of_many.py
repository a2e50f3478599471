"""How often an epoch is taken for better than the linear probe: without any true gain, and with true ones.

    OMP_NUM_THREADS=1 python scripts/bench/best_of_many.py [--draws 200]

The gains of n validation items after each of 12 epochs are drawn at random, in four kinds that differ in how alike the
epochs are and how their tails look; without a true gain each item's sign is drawn too. With one, the mean rises to so
many standard errors by the sixth epoch and stays. Compared are the rule of one standard error applied to the best
epoch, the randomization test of the maximum (`featcache.metrics.best_of_many`, at the level that `finetune` takes and
at 0.1), a bootstrap of the centered maximum, and cross-fitting: in each of five parts the epoch that is best on the
others, and one-sided tests of what that gains, at the level of a tenth and of a twentieth.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable

import numpy as np
from recording import append

from featcache.finetuning.linear_probe import CHANCE
from featcache.metrics.best_of_many import p_of_best

EPOCHS = 12


def drawn(kind: str, n: int, rng: np.random.Generator) -> np.ndarray:
    """Gains (n, 12) of n items without any in the mean."""
    if kind == "walk":  # what an epoch changes adds up
        gains = np.cumsum(rng.standard_t(4, size=(n, EPOCHS)), axis=1)
    elif kind == "alike":  # all epochs differ from the probe in much the same way
        gains = rng.standard_t(4, size=(n, 1)) + 0.7 * rng.standard_normal((n, EPOCHS))
    elif kind == "independent":
        gains = rng.standard_normal((n, EPOCHS))
    else:  # "rare": a few items differ by much
        gains = rng.exponential(1, size=(n, 1)) ** 2 + rng.exponential(1, size=(n, EPOCHS)) - 1
    return np.asarray(gains * rng.choice([-1.0, 1.0], size=(n, 1)))


def one_error(gains: np.ndarray) -> bool:
    """The best epoch is ahead by its standard error."""
    best = gains[:, gains.mean(axis=0).argmax()]
    return bool(best.mean() > best.std(ddof=1) / math.sqrt(len(best)))


def bootstrap(gains: np.ndarray, level: float) -> bool:
    """The largest mean is beyond that of resamples of the centered gains."""
    n, best = len(gains), gains.mean(axis=0).max()
    times = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=2000)
    centered = (gains - gains.mean(axis=0)) * math.sqrt(n / (n - 1))
    return bool(best > 0 and (1 + ((times @ centered / n).max(axis=1) >= best).sum()) / 2001 <= level)


def cross_fitted(gains: np.ndarray, z: float) -> bool:
    """What the epoch that is best on other items gains is ahead by *z* standard errors."""
    part = np.random.default_rng(0).permutation(len(gains)) % 5
    out = np.empty(len(gains))
    for number in range(5):
        out[part == number] = gains[part == number][:, gains[part != number].mean(axis=0).argmax()]
    return bool(out.mean() > z * out.std(ddof=1) / math.sqrt(len(out)))


RULES: dict[str, Callable[[np.ndarray], bool]] = {
    "one standard error": one_error,
    f"signs {CHANCE}": lambda gains: p_of_best(gains, np.arange(len(gains))) <= CHANCE,
    "signs 0.1": lambda gains: p_of_best(gains, np.arange(len(gains))) <= 0.1,
    f"bootstrap {CHANCE}": lambda gains: bootstrap(gains, CHANCE),
    "cross-fitted 0.1": lambda gains: cross_fitted(gains, 1.2816),
    "cross-fitted 0.05": lambda gains: cross_fitted(gains, 1.6449),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--items", type=int, nargs="+", default=[24, 72])
    options = parser.parse_args()
    began = time.process_time()
    for n in options.items:
        for kind in ("walk", "alike", "independent", "rare"):
            found: dict[str, list[float]] = {name: [] for name in RULES}
            for errors in range(4):
                rng = np.random.default_rng([n, errors, len(kind)])
                taken = dict.fromkeys(RULES, 0)
                for _ in range(options.draws):
                    gains = drawn(kind, n, rng)
                    rising = np.minimum(np.arange(1, EPOCHS + 1) / 6, 1)
                    gains += errors * gains.std(axis=0, ddof=1) / math.sqrt(n) * rising
                    for name, rule in RULES.items():
                        taken[name] += rule(gains)
                for name, count in taken.items():
                    found[name].append(count / options.draws)
            append("best_of_many", {"kind": kind, "items": n, "draws": options.draws, "taken_at_0_1_2_3_errors": found})
    print(f"{time.process_time() - began:.0f} s of processor time")


if __name__ == "__main__":
    main()
