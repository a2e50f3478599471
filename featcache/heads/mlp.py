"""The head ``mlp``: hidden layers of its own and an output layer, trained by mini-batches.

Vectors are standardized by mean and deviation of the rows that are learned from. A part of the rows, whole groups of
every class that has two, is held out. For each weight decay the layers are trained by AdamW (Loshchilov and Hutter,
ICLR 2019; biases do not decay) from the same start on the same batches until the held-out log-loss has not fallen for
some epochs, and the weights of the decay and the epoch of the least held-out loss are kept. Half by half the held-out
rows also serve for the temperature, see `featcache.heads.minibatch`. Dropout (Srivastava et al. 2014) sets values
behind the rectifiers to 0. Whatever is drawn comes from generators of the head's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor
from torch.nn import functional

from featcache.core.errors import UsageError
from featcache.heads.minibatch import (
    HELD_OUT_ROWS,
    HeldOutChoice,
    Layers,
    hold_out,
    initial_layers,
    logits,
    moments,
    threads_for,
    unstandardized,
)
from featcache.heads.predictors import MLPPredictor
from featcache.heads.streaming import VectorStream
from featcache.heads.training_loop import AdamW, NonFiniteError, require_finite, stalled, train_epochs
from featcache.heads.validation import check_finite, to_answer, to_fit

_STEPS, _FEWEST_EPOCHS, _PATIENCE = 1000, 20, 5
_STEPS_OF_EPOCH, _SMALLEST_BATCH, _LARGEST_BATCH = 16, 32, 128
_HELD_OUT = 0.2
_KEPT_BYTES = 2**28
"""Vectors that take no more are read once; others are read again in each epoch."""


class MLPHead(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """A multilayer perceptron with rectifiers and a softmax.

    Args:
        hidden: how wide each hidden layer is, from the input to the output.
        dropout: the share of values behind each hidden layer that a step does without, from 0 to less than 1.
        epochs: at most so many passes for each weight decay; by default enough for 1,000 steps, at least 20.
        batch_size: rows a step; by default 32 to 128, so that an epoch of few rows has 16 steps.
        lr: the highest learning rate.
        decays: weight decays to choose from.
        patience: epochs without a better held-out loss after which training stops, see
            `featcache.heads.training_loop.stalled`.
        random_state: of the first weights, the dropout, the order of the rows and the held-out part.

    Attributes:
        classes_: (k,) labels.
        weights_: of each layer, (h, d), …, (k, h) float32, for the vectors as they are given.
        biases_: of each layer, (h,), …, (k,) float32.
        chosen_: ``{"weight_decay": …, "epochs": …}`` of the least held-out loss; where nothing could be held out the
            largest decay and all epochs.
        chosen_by_: how it was chosen, in words.
        losses_: (epochs, decays) held-out log-loss after each epoch, decays from small to large, NaN where training had
            stopped; without held-out rows that of the learning.
        loss_curve_: (epochs,) its column of the chosen decay, as far as it goes.
        held_out_rows_: (m,) the rows held out.
        held_out_logits_: (m, k) float32, for each of them the logits by weights that neither learned from it nor
            were chosen by it; None where fewer than 50 rows are held out or they cannot be halved.
        on_progress: a function that is called while `fit` runs with how many epochs are done and how many there are
            over all decays; it ends with all. None by default; no parameter, so it is not cloned.
    """

    on_progress: Callable[[int, int], None] | None = None

    def __init__(
        self,
        hidden: Sequence[int] = (512,),
        dropout: float = 0.2,
        epochs: int | None = None,
        batch_size: int | None = None,
        lr: float = 1e-3,
        decays: Sequence[float] = (0.01,),
        patience: int = _PATIENCE,
        random_state: int = 0,
    ) -> None:
        self.hidden = hidden
        self.dropout = dropout
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.decays = decays
        self.patience = patience
        self.random_state = random_state

    def fit(self, X: Any, y: Any, groups: Any = None) -> MLPHead:
        """Fit on arrays: (n, d) vectors, (n,) labels, (n,) groups that the held-out part keeps together.

        Raises:
            UsageError: a value is not finite in float32 (the row is named), there is one class only, *groups* has
                another length, a parameter is out of range, or the training diverges.
        """
        vectors, classes, class_ids, groups = to_fit(self, X, y, groups)
        narrow = vectors.astype(np.float32, copy=False)
        check_finite(narrow)
        return self.fit_stream(VectorStream(lambda rows: narrow[rows], class_ids, groups, classes, narrow.shape[1]))

    def fit_stream(self, stream: VectorStream) -> MLPHead:
        """Fit on vectors that need not fit in memory, in a new order each pass."""
        widths = [stream.width, *self._checked_parameters(), len(stream.classes)]
        if hasattr(self, "weights_"):
            del self.weights_  # if the training fails, no earlier one may answer in its place
        # Where all are of one group it tells nothing apart.
        groups = stream.groups if len(np.unique(stream.groups)) > 1 else np.arange(len(stream))
        train_rows, held_out = hold_out(stream.class_ids, groups, _HELD_OUT, self.random_state)
        class_ids = np.asarray(stream.class_ids, dtype=np.int64)
        with threads_for(self._batch_size(len(train_rows)) * max(a * b for a, b in pairwise(widths))):
            read = _once_read(stream)
            blocks = VectorStream(read, class_ids, groups, stream.classes, stream.width).blocks
            mean, scale, *_ = moments(
                lambda: ((X, class_ids[rows]) for rows, X in blocks(train_rows)), stream.width, len(stream.classes)
            )

            def standardized(rows: np.ndarray) -> Tensor:
                return (torch.from_numpy(read(rows)) - mean) / scale

            choice = None
            if len(held_out):
                choice = HeldOutChoice(
                    standardized(held_out), class_ids[held_out], groups[held_out], widths[-1], self.random_state
                )
            layers = self._train(standardized, class_ids, train_rows, widths, choice)
        self.held_out_rows_, self.held_out_logits_ = held_out, None if choice is None else choice.logits
        self.classes_, self.n_features_in_ = np.asarray(stream.classes), stream.width
        folded = unstandardized(layers, mean, scale)
        self.weights_: tuple[np.ndarray, ...] = tuple(weight for weight, _ in folded)
        self.biases_: tuple[np.ndarray, ...] = tuple(bias for _, bias in folded)
        return self

    def _train(
        self,
        standardized: Callable[[np.ndarray], Tensor],
        class_ids: np.ndarray,
        train_rows: np.ndarray,
        widths: list[int],
        choice: HeldOutChoice | None,
    ) -> Layers:
        """Train with each decay; the layers that are chosen, for standardized vectors."""
        targets = torch.from_numpy(class_ids)
        steps = -(-len(train_rows) // self._batch_size(len(train_rows)))
        epochs = int(self.epochs or max(_FEWEST_EPOCHS, -(-_STEPS // steps)))
        decays = sorted(float(decay) for decay in self.decays)
        if choice is None:
            decays = decays[-1:]
        losses = np.full((epochs, len(decays)), np.nan)
        tell = self.on_progress or (lambda done, of: None)
        layers: Layers = []
        for column, decay in enumerate(decays):
            tell(column * epochs, len(decays) * epochs)
            try:
                for epoch, (loss, layers) in enumerate(
                    self._epochs(decay, widths, train_rows, lambda rows: (standardized(rows), targets[rows]), epochs)
                ):
                    if choice is not None:
                        loss = choice.judge(layers, decay, epoch + 1)
                        require_finite("held-out loss", loss, epoch + 1, steps, self.lr)
                    losses[epoch, column] = loss
                    tell(column * epochs + epoch + 1, len(decays) * epochs)
                    if choice is not None and stalled(losses[: epoch + 1, column].tolist(), self.patience):
                        break
            except NonFiniteError as error:
                raise UsageError(
                    f"The training diverged: in epoch {error.epoch}, at the weight decay {decay:g}, the {error.what} "
                    f"is not finite, and no weights are kept. Take a smaller lr than {self.lr:g}."
                ) from error
        tell(len(decays) * epochs, len(decays) * epochs)
        self._describe(losses, decays, choice)
        return layers if choice is None else choice.layers

    def _epochs(
        self,
        decay: float,
        widths: list[int],
        train_rows: np.ndarray,
        batch: Callable[[np.ndarray], tuple[Tensor, Tensor]],
        epochs: int,
    ) -> Iterator[tuple[float, Layers]]:
        """The mean loss of each epoch, and the layers after it, which the next epoch changes."""
        order, generator = np.random.default_rng(self.random_state), torch.Generator().manual_seed(self.random_state)
        layers, size = initial_layers(widths, generator), self._batch_size(len(train_rows))

        def batches(_: int) -> Iterator[tuple[Tensor, Tensor]]:
            shuffled = order.permutation(train_rows)
            for start in range(0, len(train_rows), size):
                yield batch(shuffled[start : start + size])

        optimizer = AdamW(
            [
                {"params": [weight for weight, _ in layers], "weight_decay": decay},
                {"params": [bias for _, bias in layers], "weight_decay": 0.0},
            ],
            lr=self.lr,
            fused=True,  # one pass over the weights, which takes longer than the products of a small batch
        )
        for loss, _ in train_epochs(
            optimizer,
            batches,
            lambda x, target: functional.cross_entropy(logits(layers, x, self.dropout, generator), target),
            epochs=epochs,
            steps=-(-len(train_rows) // size),
        ):
            yield loss, layers

    def _batch_size(self, rows: int) -> int:
        """Rows of a step, of so many rows to learn from."""
        by_rows = min(_LARGEST_BATCH, max(_SMALLEST_BATCH, rows // _STEPS_OF_EPOCH))
        return by_rows if self.batch_size is None else int(self.batch_size)

    def _describe(self, losses: np.ndarray, decays: list[float], choice: HeldOutChoice | None) -> None:
        """Set the attributes that report the choice."""
        self.losses_ = losses
        if choice is None:
            self.chosen_ = {"weight_decay": decays[0], "epochs": len(losses)}
            self.chosen_by_, self.loss_curve_ = "given, as no group can be held out", losses[:, 0]
            return
        self.chosen_ = {"weight_decay": choice.decay, "epochs": choice.epoch}
        self.chosen_by_ = f"the log-loss of {choice.rows:,} rows held out"
        curve = losses[:, decays.index(choice.decay)]
        self.loss_curve_ = curve[np.isfinite(curve)]

    def memory_needed(self, n: int, d: int, k: int) -> int:
        """Bytes that a fit holds at least, of n float32 vectors of d numbers in k classes, read piece by piece."""
        widths = [d, *self._checked_parameters(), k]
        parameters = sum((a + 1) * b for a, b in pairwise(widths))
        # The weights, their gradient, two moments and the best so far; the vectors that are kept, those held out, and
        # what a step has of each layer.
        vectors = 4 * d * ((n if 4 * n * d <= _KEPT_BYTES else 0) + min(n // 5, HELD_OUT_ROWS))
        return 4 * 5 * parameters + vectors + 4 * min(n, self._batch_size(n)) * sum(widths)

    def predictor(self) -> MLPPredictor:
        """What is saved and converted to torch: labels as text."""
        check_is_fitted(self)
        return MLPPredictor(self.weights_, self.biases_, tuple(str(c) for c in self.classes_))

    def predict_proba(self, X: Any) -> np.ndarray:
        """(n, k) probabilities in the order of ``classes_``."""
        return self.predictor().probabilities(to_answer(self, X))

    def predict(self, X: Any) -> np.ndarray:
        """(n,) the most likely label."""
        places = self.predictor().scores(to_answer(self, X)).argmax(axis=1)
        return np.asarray(self.classes_[places])

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "weights_")

    def _checked_parameters(self) -> list[int]:
        """The widths of the hidden layers.

        Raises:
            UsageError: a parameter is out of range; it is named.
        """
        hidden, decays = np.atleast_1d(np.asarray(self.hidden)), np.atleast_1d(np.asarray(self.decays))
        whole = "a whole number from 1 on"
        for name, holds, asked in (
            (
                "hidden",
                hidden.ndim == 1 and len(hidden) > 0 and hidden.dtype.kind in "iu" and hidden.min() >= 1,
                f"{whole} for each hidden layer, one or more (without any it would be the head softmax)",
            ),
            ("dropout", _is_number(self.dropout) and 0 <= self.dropout < 1, "a number from 0 to less than 1"),
            ("epochs", self.epochs is None or _is_count(self.epochs), f"{whole}, or None"),
            ("batch_size", self.batch_size is None or _is_count(self.batch_size), f"{whole}, or None"),
            ("lr", _is_number(self.lr) and 0 < self.lr < np.inf, "a number above 0"),
            ("decays", all(_is_number(v) and 0 <= v < np.inf for v in decays) and len(decays), "numbers from 0 on"),
            ("patience", _is_count(self.patience), whole),
        ):
            if not holds:
                given = getattr(self, name)
                raise UsageError(f"The parameter {name} of the head mlp is {given!r}; it must be {asked}.")
        return [int(width) for width in hidden]


def _once_read(stream: VectorStream) -> Callable[[np.ndarray], np.ndarray]:
    """From row numbers to vectors (m, d) float32, out of memory where they are few."""
    if 4 * len(stream) * stream.width > _KEPT_BYTES:
        return lambda rows: stream.read(rows).astype(np.float32, copy=False)
    vectors = np.empty((len(stream), stream.width), np.float32)
    for rows, block in stream.blocks():
        vectors[rows] = block
    return lambda rows: vectors[rows]


def _is_count(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and bool(value >= 1)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
