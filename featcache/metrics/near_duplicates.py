"""Near-duplicates: images that were re-encoded, resized or cropped from one another, found by their vectors.

Vectors are centered and brought to length 1; the distance of two is sqrt(2 - 2 cos), with the exact cosine.

The data say themselves how close strangers come. The number of neighbors within a distance r grows as
r^D, where D is the intrinsic dimension. It follows from how much farther the 20th neighbor is than the
10th, D = ln 2 / ln(r20 / r10) (Farahmand et al. 2007), in the median over items; a few copies do not reach
these ranks. So among n items some n · 10 · u^D are expected to have a stranger closer than u times the
distance of their 10th neighbor. The **threshold** is the u at which that number is 0.05: of twenty data
sets without copies one shows a pair. It is never above 0.6. A pair is a near-duplicate where its distance
is below the threshold times that of the 10th neighbor of either one. Each item has a scale of its own,
since merely similar images of one class lie close together, but all of them do. To compare with a farther
neighbor is Lowe's test (2004, section 7.1), and that ratios of neighbor distances follow a power law
with D as its exponent is shown by Facco et al. (2017).

More than ten copies of one image (frames of a film) would take one another for strangers, so the scale is
at least half the median one. Where most items are of that kind, nothing is found: give them a group. Nor
are copies found that the network sees as different images, as re-encoded images of a fine texture.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from featcache.core.progress import Progress, Silent
from featcache.core.threads import one_blas_thread

FEWEST, MOST = 50, 100_000
"""Fewer independent items say too little about distances; the search among more would take minutes."""

_K = 10
_EXPECTED = 0.05
_LARGEST = 0.6
_SAMPLE = 512
_AXES = 128
_ROWS = 2048
_BAND = 1.25
_ROUNDING = 1e-5
_MANY = 50


@dataclass(frozen=True, slots=True)
class NearDuplicates:
    """What `find` found.

    Attributes:
        pairs: (m, 2) int64 row numbers, the closest pair first.
        cosines: (m,) of the centered vectors.
        threshold: a pair is closer than this share of the distance of its 10th neighbors; None where
            nothing could be looked for.
        note: why nothing was looked for or told, or None.
    """

    pairs: np.ndarray
    cosines: np.ndarray
    threshold: float | None = None
    note: str | None = None


NOTHING = NearDuplicates(np.empty((0, 2), np.int64), np.empty(0))


def find(
    read: Callable[[np.ndarray], np.ndarray],
    units: np.ndarray,
    *,
    scored: np.ndarray | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> NearDuplicates:
    """Find pairs of near-duplicates that lie in different units.

    The search is exact. Most pairs are excluded by an upper bound on their cosine from 128 main axes
    (Cauchy and Schwarz on the rest), and the others are computed. In memory are 640 numbers per item and
    some thousand vectors.

    Args:
        read: from row numbers to vectors, (rows, d).
        units: (n,) int64; items of one unit are known to belong together and are not compared.
        scored: (n,) bool; only pairs with at least one of these rows are looked for. All by default.
        seed: of the sample that distances are estimated from, where there are more than 512 items.
        progress: shows the progress.
    """
    n = len(units)
    found = len(np.unique(units))
    if found < FEWEST:
        return replace(NOTHING, note=f"not looked for among fewer than {FEWEST} independent items")
    if n > MOST:
        return replace(NOTHING, note=f"not looked for among more than {MOST:,} items")
    shown = Silent() if progress is None else progress
    scored = np.ones(n, dtype=bool) if scored is None else scored
    shown.start("look for near-duplicates", n, "items")
    vectors = _Vectors(read, n, seed)
    sketch, sample_cosines = vectors.sketched()
    threshold, scale, most = _calibrated(sample_cosines, vectors.sample, units)
    if threshold is None:
        shown.finish()
        return replace(NOTHING, note="the distances of neighbors tell nothing: most are the same")
    floor = scale / 2
    # The 10th neighbor within the sample is no nearer than the 10th of all: a first, generous scale.
    generous = np.clip(_kth(sample_cosines, units, units[vectors.sample], _K), floor, most)
    pairs = _candidates(sketch, generous, _BAND * threshold, units, scored, shown)
    if pairs is None:
        shown.finish()
        return replace(NOTHING, note="not looked for: too many pairs would have to be compared")
    distances = vectors.distances(pairs)
    close = distances <= _BAND * threshold * np.minimum(generous[pairs[:, 0]], generous[pairs[:, 1]])
    pairs, distances = pairs[close], distances[close]
    involved, place = np.unique(pairs, return_inverse=True)
    own = np.clip(vectors.tenth(involved, units), floor, most)[place.reshape(pairs.shape)]
    ratios = distances / own.min(axis=1, initial=np.inf)
    shown.finish()
    near = ratios <= threshold
    band = int((ratios <= _BAND * threshold).sum()) - int(near.sum())
    if band > near.sum() and len(np.unique(pairs[near])) > n / 10:
        return replace(NOTHING, threshold=threshold, note="no clear gap between copies and similar images")
    order = np.argsort(distances[near], kind="stable")
    return NearDuplicates(pairs[near][order], 1 - distances[near][order] ** 2 / 2, threshold)


def about_seconds(n: int, d: int) -> float:
    """About how long `find` takes of processor time for n items of d numbers, by what one core of 2024 does."""
    if not FEWEST <= n <= MOST:
        return 0.0
    products = 2 * d * (n * (_AXES + _SAMPLE) + 4 * _AXES * min(n, 4 * _SAMPLE))
    return 0.1 + 8e-9 * n**2 + 6e-11 * products


class _Vectors:
    """Centered vectors of length 1, read block by block; the center and the main axes come from a sample."""

    def __init__(self, read: Callable[[np.ndarray], np.ndarray], n: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.n = n
        self._read = read
        wide = np.sort(rng.choice(n, min(n, 4 * _SAMPLE), replace=False))
        self.centre = np.zeros(1, np.float32)
        raw = np.asarray(read(wide), dtype=np.float64)
        self.centre = raw.mean(axis=0).astype(np.float32)
        Z = self.unit(wide)
        # The range of Z'Z by two rounds of subspace iteration (Halko et al. 2011, algorithm 4.4).
        axes = rng.normal(size=(Z.shape[1], min(_AXES, *Z.shape))).astype(np.float32)
        for _ in range(2):
            image = Z.T @ (Z @ axes)
            # A hundred narrow steps: several threads would mostly wait for each other, for seconds if a core is busy.
            with one_blas_thread():
                axes = np.linalg.qr(image)[0]
        self.axes = axes
        self.sample = np.sort(rng.choice(wide, min(n, _SAMPLE), replace=False))

    def unit(self, rows: np.ndarray) -> np.ndarray:
        """(rows, d) float32 of length 1; a vector at the center stays 0."""
        Z = np.asarray(self._read(rows), dtype=np.float32) - self.centre
        lengths = np.linalg.norm(Z, axis=1, keepdims=True)
        return np.asarray(Z / np.where(lengths > 0, lengths, 1))

    def sketched(self) -> tuple[np.ndarray, np.ndarray]:
        """For each row its main axes and the length of the rest, (n, a + 1), and its cosines to the sample, (n, s)."""
        chosen = self.unit(self.sample).T
        sketch = np.empty((self.n, self.axes.shape[1] + 1), np.float32)
        cosines = np.empty((self.n, len(self.sample)), np.float32)
        for rows in _blocks(np.arange(self.n)):
            Z = self.unit(rows)
            cosines[rows] = Z @ chosen
            sketch[rows, :-1] = Z @ self.axes
            rest = np.square(Z).sum(1) - np.square(sketch[rows, :-1]).sum(1)
            sketch[rows, -1] = np.sqrt(np.maximum(rest, 0))
        return sketch, cosines

    def distances(self, pairs: np.ndarray) -> np.ndarray:
        """(m,) exact distances of (m, 2) pairs."""
        parts = [np.empty(0)]
        for block in _blocks(pairs):
            rows, place = np.unique(block, return_inverse=True)
            Z = self.unit(rows)
            a, b = place.reshape(block.shape).T
            parts.append(np.linalg.norm(Z[a] - Z[b], axis=1))
        return np.concatenate(parts)

    def tenth(self, rows: np.ndarray, units: np.ndarray) -> np.ndarray:
        """(rows,) exact distances of the 10th neighbor in other units."""
        parts = [np.empty(0)]
        for some in _blocks(rows):
            chosen = self.unit(some)
            best = np.empty((len(some), 0), np.float32)
            for block in _blocks(np.arange(self.n)):
                cosines = chosen @ self.unit(block).T
                cosines[units[some][:, None] == units[block]] = -2
                best = np.concatenate([best, cosines], axis=1)
                best = -np.partition(-best, _K - 1, axis=1)[:, :_K]
            parts.append(_distance(best.min(axis=1)))
        return np.concatenate(parts)


def _calibrated(cosines: np.ndarray, sample: np.ndarray, units: np.ndarray) -> tuple[float | None, float, float]:
    """Threshold, median scale and largest scale, from the neighbors of the sampled rows among all."""
    tenth = _kth(cosines.T, units[sample], units, _K)
    twentieth = _kth(cosines.T, units[sample], units, 2 * _K)
    growths = np.log(np.maximum(twentieth, 1e-12) / np.maximum(tenth, 1e-12))
    scale, growth = float(np.median(tenth)), float(np.median(growths))
    if scale <= 1e-6 or growth <= 1e-6:
        return None, scale, scale
    dimension = math.log(2) / growth
    threshold = min(_LARGEST, (_EXPECTED / (_K * len(units))) ** (1 / dimension))
    return threshold, scale, float(np.quantile(tenth, 0.99))


def _kth(cosines: np.ndarray, of: np.ndarray, among: np.ndarray, k: int) -> np.ndarray:
    """Distance of each row's k-th neighbor in another unit, (rows,); (rows, columns) cosines are given."""
    parts = []
    for rows in _blocks(np.arange(len(cosines))):
        block = cosines[rows]
        block[of[rows][:, None] == among] = -2
        parts.append(-np.partition(-block, k - 1, axis=1)[:, k - 1])
    return _distance(np.concatenate(parts))


def _distance(cosines: np.ndarray) -> np.ndarray:
    return np.sqrt(np.maximum(2 - 2 * cosines.astype(np.float64), 0))


def _candidates(
    sketch: np.ndarray, scales: np.ndarray, share: float, units: np.ndarray, scored: np.ndarray, progress: Progress
) -> np.ndarray | None:
    """(m, 2) pairs that may be closer than *share* of both scales; None where they are too many to look at."""
    least = (1 - (share * scales) ** 2 / 2 - _ROUNDING).astype(np.float32)
    queries = np.flatnonzero(scored)
    parts, count = [np.empty((0, 2), np.int64)], 0
    progress.advance(len(sketch) - len(queries))
    for rows in _blocks(queries):
        # A pair of two scored rows is met once, from its first; the others are met from the scored one.
        others = np.flatnonzero(~scored | (np.arange(len(sketch)) >= rows[0]))
        for columns in _blocks(others):
            bound = sketch[rows] @ sketch[columns].T
            a, b = np.nonzero((bound >= least[rows][:, None]) & (bound >= least[columns]))
            a, b = rows[a], columns[b]
            new = (units[a] != units[b]) & (~scored[b] | (a < b))
            parts.append(np.column_stack([a[new], b[new]]))
            count += len(parts[-1])
            if count > _MANY * len(sketch):
                return None
        progress.advance(len(rows))
    pairs = np.concatenate(parts)
    return np.sort(pairs, axis=1)


def _blocks(rows: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(rows), _ROWS):
        yield rows[start : start + _ROWS]
