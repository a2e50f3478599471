"""The head ``stack``: ridge and softmax, on the last layer and on all layers, joined into one linear map.

Each member m answers with scores z_m = (W_m x + b_m) / T_m; the stack with softmax(Σ w_m z_m), w_m ≥ 0. That is the
stacking of log-probabilities, since Σ w_m log p_m differs from it by a number per row (Wolpert 1992; Breiman 1996 for
weights that are not negative). As all members are linear, so is the sum: the fitted head is one matrix.

Weights have the lowest log-loss on out-of-fold scores: exact leave-one-out for ridge (`featcache.heads.ridge`), the
folds of its own path for softmax. Then they are drawn towards the best single member as far as that costs no more than
one standard error of the paired loss (Breiman et al. 1984, section 3.4.3), so that few rows give few members.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from featcache.core.errors import UsageError
from featcache.heads.ridge import RidgeAxes, RidgeHead, ridge_axes
from featcache.heads.softmax import SoftmaxPathClassifier
from featcache.heads.streaming import VectorStream, available_memory
from featcache.heads.validation import LinearHead, check_finite, to_fit
from featcache.metrics.calibration import fit_temperature, log_loss, softmax

AXES = 768
"""Axes of the largest variance that softmax members see. Those of ridge are there already, and in them the path of
softmax takes a fraction of the time; what lies beyond so many axes is hardly any variance.
"""
_STEPS = 20
_SCORES = 4 * 5
"""Bytes per row and class: out-of-fold scores of four members and of the stack."""
_NUMBERS = 40_000_000
"""Out-of-fold scores that the weights are learned on, at most; of more rows some are drawn."""


@dataclass(frozen=True)
class Member:
    """A fitted member.

    Attributes:
        name: ``ridge`` or ``softmax``.
        first: the first column of the vectors that it reads.
        coef: (k, d) float64; for two classes (1, d).
        intercept: (k,) or (1,).
        chosen: its penalty.
        held_out: (n, k) float32 out-of-fold scores divided by the temperature; NaN where there are none.
        temperature: its scores are divided by this.
        log_loss: of ``held_out``, if there are any.
        accuracy: likewise.
    """

    name: str
    first: int
    coef: np.ndarray
    intercept: np.ndarray
    chosen: dict[str, float]
    held_out: np.ndarray
    temperature: float = 1.0
    log_loss: float | None = None
    accuracy: float | None = None

    def calibrated(self, class_ids: np.ndarray) -> Member:
        """The same with its temperature and scores, by the true classes (n,)."""
        usable = np.isfinite(self.held_out).all(axis=1)
        scores, truth = self.held_out[usable], class_ids[usable]
        if not len(scores):
            return self
        temperature, loss = fit_temperature(scores, truth)
        right = float((scores.argmax(axis=1) == truth).mean())
        held_out = self.held_out / np.float32(temperature)
        return replace(self, held_out=held_out, temperature=temperature, log_loss=loss, accuracy=right)


class StackHead(LinearHead):
    """Weighted sum of ridge and softmax on one and on all layers.

    Args:
        widths: numbers per vector of each layer that the vectors concatenate, the network's last layer last; None
            for one layer. With one layer there are two members, with several four.
        class_weight: as for the head softmax; ridge has none, so with weights there are no ridge members.
        random_state: seed of the folds.

    Attributes:
        classes_: (k,) labels.
        coef_: (k, d) float64; for two classes (1, d).
        intercept_: (k,) or (1,).
        members_: the fitted members.
        weights_: (M,) their weights, of which the sum is 1.
        scale_: the sum they had; the stack's scores are this times the weighted sum.
        held_out_logits_: (n, k) float32 out-of-fold scores of the stack, as of the head softmax.
        chosen_: the weight of each member that has one.
        chosen_by_: how they were chosen, in words.
        on_progress: as of the head softmax.
    """

    on_progress: Callable[[int, int], None] | None = None
    grid_note_: str | None = None

    def __init__(
        self,
        widths: Sequence[int] | None = None,
        class_weight: str | Mapping[Any, float] | None = None,
        random_state: int | None = 0,
    ) -> None:
        self.widths = widths
        self.class_weight = class_weight
        self.random_state = random_state

    def fit(self, X: Any, y: Any, groups: Any = None) -> StackHead:
        """Fit.

        Args:
            X: (n, d) vectors.
            y: (n,) labels.
            groups: (n,) rows with the same one are left out together.

        Raises:
            UsageError: a value is not finite (the row is named), there is one class only, or *widths* do not add up.
        """
        X, classes, class_ids, groups = to_fit(self, X, y, groups)
        return self._fit_whole(X, VectorStream(lambda rows: X[rows], class_ids, groups, classes, X.shape[1]))

    def fit_stream(self, stream: VectorStream) -> StackHead:
        """Fit on vectors that need not fit in memory; if they do not, on ridge members alone.

        Raises:
            UsageError: as for `fit`; or there are class weights, which ridge does not have, and too little memory.
        """
        have, needed = available_memory(), self._memory_whole(len(stream), stream.width, len(stream.classes))
        if have is None or needed <= have:
            X = np.concatenate([X for _, X in stream.blocks()])
            check_finite(X)
            return self._fit_whole(X, stream)
        if self.class_weight is not None:
            raise UsageError(
                f"With class weights the head stack reads all {len(stream):,} vectors at once, for which there is too "
                "little memory. Use --head torch, or omit the weights."
            )
        members = []
        for first in self._firsts(stream.width):
            part = replace(stream, read=_columns(stream.read, first), width=stream.width - first)
            members.append(_ridge_member(first, RidgeHead(random_state=self.random_state or 0).fit_stream(part), part))
        return self._joined(members, stream)

    def _fit_whole(self, X: np.ndarray, stream: VectorStream) -> StackHead:
        members = []
        for first in self._firsts(X.shape[1]):
            part = replace(stream, read=_columns(X.__getitem__, first), width=X.shape[1] - first)
            axes = ridge_axes(part)
            Z = axes.rotated(X[:, first:])
            if self.class_weight is None:
                ridge = RidgeHead(random_state=self.random_state or 0).fit_rotated(axes, part, Z.__getitem__)
                members.append(_ridge_member(first, ridge, part))
            members.append(self._softmax_member(first, axes, Z, part))
        return self._joined(members, stream)

    def _firsts(self, d: int) -> list[int]:
        """The first column of each set of layers: of the last one, and of all."""
        widths = list(self.widths or [d])
        if sum(widths) != d:
            raise UsageError(f"The vectors have {d} numbers, and layers of {widths} numbers were named.")
        return [d - widths[-1], 0] if len(widths) > 1 else [0]

    def _softmax_member(self, first: int, axes: RidgeAxes, Z: np.ndarray, part: VectorStream) -> Member:
        path = SoftmaxPathClassifier(class_weight=self._weights_by_id(part.classes), random_state=self.random_state)
        path.on_progress = self.on_progress
        with warnings.catch_warnings():
            # A member's last digits are nothing to the stack, whose weights and temperature are fitted on what it says.
            warnings.simplefilter("ignore", ConvergenceWarning)
            path.fit(Z[:, -AXES:], part.class_ids, part.groups)
        self.grid_note_ = self.grid_note_ or path.grid_note_
        coef = path.coef_ @ axes.axes[:, -AXES:].T
        held_out = path.held_out_logits_
        if held_out is None:
            held_out = np.full((len(Z), len(part.classes)), np.nan, np.float32)
        member = Member("softmax", first, coef, path.intercept_ - coef @ axes.mean, path.chosen_, held_out)
        return member.calibrated(part.class_ids)

    def _weights_by_id(self, classes: np.ndarray) -> Any:
        if not isinstance(self.class_weight, Mapping):
            return self.class_weight
        return {number: self.class_weight.get(label, 1.0) for number, label in enumerate(classes.tolist())}

    def _joined(self, members: list[Member], stream: VectorStream) -> StackHead:
        """Weigh the members and add them up."""
        self.classes_, self.n_features_in_, class_ids = stream.classes, stream.width, stream.class_ids
        weights, self.chosen_by_ = stack_weights(
            [member.held_out for member in members], class_ids, seed=self.random_state or 0
        )
        rows = 1 if len(self.classes_) == 2 else len(self.classes_)
        self.coef_, self.intercept_ = np.zeros((rows, stream.width)), np.zeros(rows)
        self.held_out_logits_ = np.zeros((len(class_ids), len(self.classes_)), np.float32)
        for weight, member in zip(weights, members, strict=True):
            if weight > 0:
                share = weight / member.temperature
                self.coef_[:, member.first :] += share * member.coef
                self.intercept_ += share * member.intercept
                self.held_out_logits_ += np.float32(weight) * member.held_out
        self.members_, self.scale_ = members, float(weights.sum())
        self.weights_ = weights / self.scale_
        self.chosen_ = {
            name: weight for name, weight in zip(self._names(), self.weights_.tolist(), strict=True) if weight
        }
        return self

    def _names(self) -> list[str]:
        layers = [
            "all layers" if len(self.widths or ()) > 1 and not m.first else "the last layer" for m in self.members_
        ]
        return [f"{member.name} on {of}" for member, of in zip(self.members_, layers, strict=True)]

    def members_report(self) -> list[dict[str, Any]]:
        """Each member's ``name``, its ``chosen`` penalty, out-of-fold ``log_loss`` and ``accuracy``, and ``weight``."""
        return [
            {
                "name": name,
                "chosen": member.chosen,
                "log_loss": member.log_loss,
                "accuracy": member.accuracy,
                "weight": weight,
            }
            for name, member, weight in zip(self._names(), self.members_, self.weights_.tolist(), strict=True)
        ]

    def memory_needed(self, n: int, d: int, k: int) -> int:
        """Bytes that a fit holds at least, of n float32 vectors of d numbers in k classes, read piece by piece."""
        return RidgeHead().memory_needed(n, d, k) + _SCORES * n * k

    def _memory_whole(self, n: int, d: int, k: int) -> int:
        """Bytes that a fit of all members takes at its peak, the vectors included."""
        rotated = SoftmaxPathClassifier().memory_needed(n, min(n, d, AXES), k)
        return RidgeHead().memory_needed(n, d, k) + rotated + 4 * n * (2 * d + min(n, d)) + _SCORES * n * k


def _columns(read: Callable[[np.ndarray], np.ndarray], first: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda rows: read(rows)[:, first:]


def _ridge_member(first: int, ridge: RidgeHead, part: VectorStream) -> Member:
    held_out = np.full((len(part), len(part.classes)), np.nan, np.float32)
    held_out[ridge.left_out_rows_] = ridge.left_out_scores_
    member = Member("ridge", first, ridge.coef_, ridge.intercept_, ridge.chosen_, held_out)
    return member.calibrated(part.class_ids)


def stack_weights(held_out: Sequence[np.ndarray], class_ids: np.ndarray, *, seed: int = 0) -> tuple[np.ndarray, str]:
    """Weights of members, not negative, by the log-loss of out-of-fold scores.

    Args:
        held_out: for each of M members (n, k) out-of-fold scores at its temperature; rows where one has none, or a
            class that a fold never saw, take no part.
        class_ids: (n,) the true classes.
        seed: draws the rows, where there are very many.

    Returns:
        (M,) weights, and how they were chosen, in words.
    """
    from scipy.optimize import minimize

    usable = np.flatnonzero(np.logical_and.reduce([np.isfinite(scores).all(axis=1) for scores in held_out]))
    M, k = len(held_out), held_out[0].shape[1]
    if M == 1 or not len(usable):
        return np.full(M, 1 / M), "equal weights, as no row could be left out" if M > 1 else "one member"
    most = max(1000, _NUMBERS // (M * k))
    if len(usable) > most:
        usable = np.sort(np.random.default_rng(seed).permutation(usable)[:most])
    Z, truth = np.stack([scores[usable] for scores in held_out]).astype(np.float64), class_ids[usable]
    n = len(truth)
    # As if there were one row more of each wrong kind (Platt 1999): where all are right, no weights would be enough.
    wrong = 1 / (n + 2)
    own = Z[:, np.arange(n), truth]
    right = (1 - wrong) * own + wrong * (Z.sum(axis=2) - own) / (k - 1)

    def losses(weights: np.ndarray) -> np.ndarray:
        z = np.tensordot(weights, Z, 1)
        top = z.max(axis=1)
        return np.asarray(np.log(np.exp(z - top[:, None]).sum(axis=1)) + top - weights @ right)

    def loss_and_slope(weights: np.ndarray) -> tuple[float, np.ndarray]:
        p = softmax(np.tensordot(weights, Z, 1))
        return float(losses(weights).mean()), (np.einsum("nk,mnk->m", p, Z) - right.sum(axis=1)) / n

    single = [log_loss(z, truth) for z in Z]
    alone = np.eye(M)[int(np.argmin(single))]
    if n == 1:
        return alone, "the best single member, on one item"
    # Convex, so the start does not matter for what is found.
    found = minimize(loss_and_slope, np.full(M, 1 / M), jac=True, method="L-BFGS-B", bounds=[(0, None)] * M).x
    if not found.any():
        return alone, "the best single member, as none tells the classes apart"
    least = losses(found)
    for step in np.linspace(0, 1, _STEPS + 1):
        weights = (1 - step) * alone + step * found
        excess = losses(weights) - least
        if excess.mean() <= excess.std(ddof=1) / np.sqrt(n) or step == 1:
            break
    return weights, f"out-of-fold log-loss of {n:,} items"
