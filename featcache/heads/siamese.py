"""A siamese head: one linear projection for both images, under which a cosine tells who is alike.

The projection starts as linear discriminant analysis (`featcache.heads.lda`) and is trained from there in
PyTorch on batches of some identities with some images each. What keeps it from learning the people by heart, of
whom there are few and who are told apart wholly in so many dimensions, is noise: to the whitened coordinates, in
which images of one identity vary by 1 in each direction, a Gaussian of a multiple of that is added at each step
(Bishop 1995 shows what penalty this amounts to).

All that is chosen, the shrinkage, the noise and the number of steps, is chosen by people who were held out:
identities are dealt into folds, and what has the least mean equal error rate on the pairs within the held-out fold is
kept. No steps at all is among the choices, so by that measure the projection is never worse than where it started.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from featcache.core.errors import UnknownNameError, UsageError
from featcache.heads.lda import Scatter, Whitened, scatter_of, whiten
from featcache.heads.matching import MatchingPredictor
from featcache.heads.predictors import normalized
from featcache.heads.validation import to_answer, to_fit
from featcache.metrics import splits
from featcache.metrics.verification import cosine_scores, pairs_within, roc

LOSSES = ("cosine_margin", "contrastive", "triplet", "none")
_FEWEST_IDENTITIES = 3
_SHRINKAGES = (0.5, 0.75)
_PAIRS = 50_000
_FEW_ROWS = 2048


@dataclass(frozen=True)
class _Trial:
    """What one fold leaves over to learn from, and the pairs within it to choose by.

    Attributes:
        scatter: of the rows that were not held out.
        rows: (m,) numbers of those that were.
        X: (m, r) their vectors, in the basis of all.
        pairs, same: (p, 2) places in *rows*, and (p,) bool, which pairs show one identity.
    """

    scatter: Scatter
    rows: np.ndarray
    X: np.ndarray
    pairs: np.ndarray
    same: np.ndarray

    def error(self, embedded: np.ndarray) -> float:
        """The equal error rate of (m, p) vectors."""
        if len(embedded) > _FEW_ROWS:
            return roc(cosine_scores(embedded, self.pairs), self.same).eer()
        unit = normalized(embedded)
        return roc((unit @ unit.T)[self.pairs[:, 0], self.pairs[:, 1]], self.same).eer()


class SiameseHead(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """A projection that is learned from some identities, to compare images of others.

    Args:
        dimensions: at most so many; there are always fewer than identities to learn from, also without a fold.
        loss: ``cosine_margin``, ``contrastive`` or ``triplet``, see `featcache.heads.metric_learning`; ``none`` leaves
            the projection at linear discriminant analysis.
        shrinkage: of the covariance within identities, from 0 to 1; None to choose among Ledoit and Wolf's, 0.5, 0.75,
            and 0 where there are vectors enough.
        noise: standard deviations of the noise to choose from, in units of the deviation within identities.
        steps: at most so many steps of training.
        folds: how many folds of identities to choose by. Where there are fewer than twice as many identities with
            two images, none are held out, and then Ledoit and Wolf's shrinkage is taken and nothing is trained.
        random_state: of the folds, the batches and the noise.

    Attributes:
        classes_: (k,) identities.
        mean_: (d,) float32.
        projection_: (p, d) float32.
        chosen_: ``{"shrinkage", "noise", "steps"}``; noise is None where no step was taken.
        chosen_by_: how it was chosen, in words.
        held_out_eer_: ``{"initial", "chosen"}``, mean equal error rates within the held-out folds; None where none
            were held out.
        fold_: (n,) int64, the fold that each row was held out in; None where none were.
        out_of_fold_: (n, p) float32, each row projected by what was fitted without its fold, of length 1; only
            rows of one fold can be compared. Shrinkage, noise and steps were chosen on all folds, this one too.
            None where none were held out.
    """

    def __init__(
        self,
        dimensions: int = 128,
        loss: str = "cosine_margin",
        shrinkage: float | None = None,
        noise: tuple[float, ...] = (3.0, 1.0),
        steps: int = 240,
        folds: int = 4,
        random_state: int = 0,
    ) -> None:
        self.dimensions = dimensions
        self.loss = loss
        self.shrinkage = shrinkage
        self.noise = noise
        self.steps = steps
        self.folds = folds
        self.random_state = random_state

    def fit(self, X: Any, y: Any, groups: Any = None) -> SiameseHead:
        """Fit.

        Args:
            X: (n, d) vectors.
            y: (n,) identities.
            groups: (n,) identities that have images in one group are held out together.

        Raises:
            UsageError: a value is not finite (the row is named), there are fewer than three identities, none has two
                images, or a parameter is out of range.
        """
        self._check_parameters()
        X, self.classes_, class_ids, groups = to_fit(self, X, y, groups, check_targets=False)
        _check_identities(class_ids)
        scatter = scatter_of(X, class_ids)
        trials = self._trials(scatter, groups)
        # Cosines spread the less the more dimensions there are. Out-of-fold ones tell what those of the head will
        # be, so it has no more dimensions than the fewest identities of a fold allow.
        fewest = min([len(self.classes_), *(int(trial.scatter.class_ids.max()) + 1 for trial in trials)])
        dimensions = min(self.dimensions, len(scatter.within), fewest - 1)
        shrinkage = self._shrinkage(scatter, trials, dimensions)
        start = whiten(scatter, shrinkage, dimensions)
        noise, steps = self._trained_out_of_fold(trials, shrinkage, dimensions)
        weight = start.discriminants if noise is None else self._weights(start, noise)[steps]
        self.mean_ = scatter.mean.astype(np.float32)
        self.projection_ = start.unfolded(weight)
        self.chosen_ = {"shrinkage": shrinkage, "noise": noise, "steps": steps}
        self.chosen_by_ = (
            f"the equal error rate on held-out identities, {len(trials)} folds"
            if trials
            else f"nothing: identities cannot be dealt into {self.folds} folds with several images of some in each"
        )
        return self

    def deal(self, y: Any, groups: Any = None) -> np.ndarray:
        """The folds that `fit` holds identities out in, where it does; the arguments are those of `fit`.

        Returns:
            (n,) int64.
        """
        class_ids = np.unique(np.asarray(y), return_inverse=True)[1]
        return splits.identity_folds(class_ids, self.folds, self.random_state, groups)

    def transform(self, X: Any) -> np.ndarray:
        """(n, d) vectors projected: (n, p) float32 of length 1.

        Raises:
            UsageError: a value is not finite; the message names the row.
        """
        check_is_fitted(self)
        return self.predictor().embed(to_answer(self, X))

    def predictor(self) -> MatchingPredictor:
        """What can be saved; without a calibration."""
        check_is_fitted(self)
        return MatchingPredictor(self.mean_, self.projection_, None, tuple(str(name) for name in self.classes_))

    def memory_needed(self, n: int, d: int, k: int) -> int:
        """Bytes that a fit on n vectors of d numbers takes at most; k, the identities, hardly matter."""
        r = min(n, d)
        # In float64: the vectors, their residuals and a basis; coordinates and their covariance again for each fold.
        return 8 * (4 * n * d + r * d + (2 * n * r + r * r) * self.folds)

    def _trials(self, scatter: Scatter, groups: np.ndarray) -> list[_Trial]:
        """The folds; none where identities are too few."""
        self.fold_ = None
        # A turned basis of the span of all vectors changes nothing, and is found once for all folds.
        X, class_ids, directions = scatter.rows, scatter.class_ids, scatter.directions
        if int((np.bincount(class_ids) > 1).sum()) < 2 * self.folds:
            return []
        fold = self.deal(class_ids, groups)
        trials = []
        for held in range(self.folds):
            rows = np.flatnonzero(fold == held)
            pairs, same = pairs_within(class_ids[rows], _PAIRS, self.random_state)
            learned = np.unique(class_ids[fold != held], return_inverse=True)[1]
            if not same.any() or same.all() or not _can_learn(learned):
                return []
            remaining = scatter_of(X[fold != held], learned, directions=directions)
            trials.append(_Trial(remaining, rows, X[rows], pairs, same))
        self.fold_ = fold
        return trials

    def _shrinkage(self, scatter: Scatter, trials: list[_Trial], dimensions: int) -> float:
        """The shrinkage whose discriminants have the least error on the held-out folds."""
        if self.shrinkage is not None or not trials:
            return scatter.ledoit_wolf if self.shrinkage is None else float(self.shrinkage)
        candidates = [scatter.ledoit_wolf, *_SHRINKAGES]
        if len(scatter.rows) - len(self.classes_) > 2 * scatter.directions:
            # What tells identities apart may lie where there is least variance, which any shrinkage would hide.
            candidates.append(0.0)
        errors = [
            [trial.error(_initial(whiten(trial.scatter, a, dimensions), trial.X)) for a in candidates]
            for trial in trials
        ]
        return candidates[int(np.argmin(np.mean(errors, axis=0)))]

    def _trained_out_of_fold(self, trials: list[_Trial], shrinkage: float, dimensions: int) -> tuple[float | None, int]:
        """The noise and the steps with the least error on the held-out folds; tells what they make of these."""
        self.held_out_eer_ = self.out_of_fold_ = None
        if not trials:
            return None, 0
        choices: list[tuple[float | None, int]] = [(None, 0)]
        errors, projected = [], []
        for trial in trials:
            start = whiten(trial.scatter, shrinkage, dimensions)
            points = start.coordinates(trial.X)
            weights: dict[tuple[float | None, int], np.ndarray] = {(None, 0): start.discriminants}
            if self.loss != "none":
                for noise in self.noise:
                    weights |= {(noise, step): weight for step, weight in self._weights(start, noise).items()}
            choices = list(weights)
            errors.append([trial.error(points @ weight.T) for weight in weights.values()])
            projected.append((points, weights))
        means = np.mean(errors, axis=0)
        chosen = choices[int(np.argmin(means))]
        self.held_out_eer_ = {"initial": float(means[0]), "chosen": float(means.min())}
        self.out_of_fold_ = np.empty((sum(len(trial.rows) for trial in trials), dimensions), dtype=np.float32)
        for trial, (points, weights) in zip(trials, projected, strict=True):
            self.out_of_fold_[trial.rows] = normalized(points @ weights[chosen].T)
        return chosen

    def _weights(self, start: Whitened, noise: float) -> dict[int, np.ndarray]:
        """The weights (p, r) after some numbers of steps."""
        from featcache.heads.metric_learning import EVERY, one_torch_thread, trained

        with one_torch_thread():
            found = trained(
                start.rows,
                start.scatter.class_ids,
                start.discriminants,
                loss=self.loss,
                noise=noise,
                steps=self.steps,
                seed=self.random_state,
            )
            return {min(i * EVERY, self.steps): weight for i, weight in enumerate(found, start=1)}

    def _check_parameters(self) -> None:
        if self.loss not in LOSSES:
            raise UnknownNameError.among("loss", self.loss, LOSSES)
        for name, value, holds, asked in (
            ("dimensions", self.dimensions, self.dimensions >= 2, "at least 2"),
            ("steps", self.steps, self.steps >= 1, "at least 1"),
            ("folds", self.folds, self.folds >= 2, "at least 2"),
            ("noise", self.noise, len(self.noise) > 0 and min(self.noise) >= 0, "one or more numbers of at least 0"),
            ("shrinkage", self.shrinkage, self.shrinkage is None or 0 <= self.shrinkage <= 1, "from 0 to 1"),
        ):
            if not holds:
                raise UsageError(f"The parameter {name} of the head is {value!r}; it must be {asked}.")


def _initial(start: Whitened, X: np.ndarray) -> np.ndarray:
    return np.asarray(start.coordinates(X) @ start.discriminants.T)


def _can_learn(class_ids: np.ndarray) -> bool:
    counts = np.bincount(class_ids)
    return len(counts) >= _FEWEST_IDENTITIES and bool((counts > 1).any())


def _check_identities(class_ids: np.ndarray) -> None:
    if _can_learn(class_ids):
        return
    counts = np.bincount(class_ids)
    raise UsageError(
        f"There are {len(counts)} identities, {int((counts > 1).sum())} of them with two images or more. A projection "
        f"is learned from {_FEWEST_IDENTITIES} identities or more, some with several images: give more."
    )
