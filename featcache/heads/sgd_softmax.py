"""The head ``torch``: a softmax layer trained by mini-batches, for caches larger than memory.

Vectors are standardized by mean and deviation from a first pass. For several C at once, each with a
layer of its own on the same batches, the objective is that of logistic regression over n rows, mean
cross-entropy + ‖W‖² / (2 C n), minimized by Adam (Kingma and Ba 2015; AdamW without weight decay) with a learning rate
that falls as a cosine. A tenth of the units is held out; the C and the epoch of the least held-out loss are kept, and
training stops when no C has improved for some epochs. In memory are one batch, the layers and the
held-out tenth, at most some thousand rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from featcache.heads.minibatch import HELD_OUT_ROWS, Batches, hold_out, moments, threads_for
from featcache.heads.streaming import VectorStream
from featcache.heads.training_loop import AdamW, stalled, train_epochs
from featcache.heads.validation import check_finite, to_answer, to_fit
from featcache.metrics.calibration import softmax

_STEPS = 1200


class TorchSoftmaxHead(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """A softmax layer trained in PyTorch.

    Args:
        epochs: at most so many passes; by default enough for 1,200 steps, at least 5.
        batch_size: rows a step.
        lr: the learning rate that the cosine starts from.
        Cs: inverse strengths of the penalty to choose from, on standardized vectors.
        patience: epochs without a better held-out loss after which training stops.
        random_state: of the order of the rows and of the held-out tenth.
        class_weight: ``"balanced"`` for n / (k · items of the class), a weight for each label, or None
            for 1. An item's loss is multiplied by the weight of its class, also on the held-out tenth.

    Attributes:
        classes_: (k,) labels.
        coef_: (k, d) for the vectors as they are given.
        intercept_: (k,).
        chosen_: ``{"C": …, "epochs": …}`` of the least held-out loss.
        losses_: (epochs, Cs) held-out log-loss after each epoch.
    """

    def __init__(
        self,
        epochs: int | None = None,
        batch_size: int = 256,
        lr: float = 1e-2,
        Cs: Sequence[float] = (1e-4, 1e-3, 1e-2, 1e-1),
        patience: int = 15,
        random_state: int = 0,
        class_weight: Any = None,
    ) -> None:
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.Cs = Cs
        self.patience = patience
        self.random_state = random_state
        self.class_weight = class_weight

    def fit(self, X: Any, y: Any, groups: Any = None) -> TorchSoftmaxHead:
        """Fit on arrays: (n, d) vectors, (n,) labels, (n,) groups that the held-out tenth keeps together.

        Raises:
            UsageError: a value is not finite in float32 (the row is named), there is one class only, or *groups* has
                another length.
        """
        vectors, classes, class_ids, groups = to_fit(self, X, y, groups)
        narrow = vectors.astype(np.float32, copy=False)
        check_finite(narrow)
        return self.fit_stream(VectorStream(lambda rows: narrow[rows], class_ids, groups, classes, narrow.shape[1]))

    def fit_stream(self, stream: VectorStream) -> TorchSoftmaxHead:
        """Fit on vectors that need not fit in memory, in a new order each pass."""
        train_rows, held_out = held_out_rows(stream.class_ids, stream.groups, self.random_state)
        rng = np.random.default_rng(self.random_state)

        def batches() -> Iterable[tuple[np.ndarray, np.ndarray]]:
            for rows, vectors in stream.blocks(rng.permutation(train_rows), self.batch_size):
                yield vectors, stream.class_ids[rows]

        kept = stream.read(held_out), stream.class_ids[held_out]
        with threads_for(self.batch_size * stream.width * len(stream.classes) * len(self.Cs)):
            return self._fit_batches(batches, stream.classes, stream.width, kept)

    def memory_needed(self, n: int, d: int, k: int) -> int:
        """Bytes that a fit holds at least, of n float32 vectors of d numbers in k classes, read piece by piece."""
        # For each C the weights, their gradient, Adam's two moments and the best ones so far; the held-out vectors.
        return 4 * (5 * len(self.Cs) * k * d + min(n // 10, HELD_OUT_ROWS) * d)

    def _fit_batches(
        self, batches: Batches, classes: Sequence[Any] | np.ndarray, width: int, held_out: tuple[np.ndarray, np.ndarray]
    ) -> TorchSoftmaxHead:
        self.classes_, self.n_features_in_ = np.asarray(classes), width
        mean, scale, counts, steps = moments(batches, width, len(self.classes_))
        rows = int(counts.sum())
        class_weights = torch.from_numpy(_class_weights(self.class_weight, self.classes_, counts)).float()
        epochs = self.epochs or max(5, -(-_STEPS // max(1, steps)))
        sorted_Cs = sorted(float(C) for C in self.Cs)
        Cs = torch.tensor(sorted_Cs)
        weight = torch.zeros(len(Cs), len(self.classes_), width, requires_grad=True)
        bias = torch.zeros(len(Cs), 1, len(self.classes_), requires_grad=True)

        def losses(vectors: Tensor, target: Tensor) -> Tensor:
            """Mean weighted cross-entropy of each C's layer."""
            z = ((vectors - mean) / scale) @ weight.transpose(1, 2) + bias
            each = torch.nn.functional.cross_entropy(z.transpose(1, 2), target.expand(len(Cs), -1), reduction="none")
            return (each * class_weights[target]).mean(1)

        best_loss, best_epoch = np.full(len(Cs), np.inf), np.zeros(len(Cs), dtype=int)
        best_weight, best_bias = weight.detach().clone(), bias.detach().clone()
        history = []
        for epoch, _ in enumerate(
            train_epochs(
                AdamW([weight, bias], lr=self.lr, weight_decay=0.0),
                lambda _: map(_tensors, batches()),
                lambda x, target: (losses(x, target) + weight.square().sum((1, 2)) / (2 * Cs * rows)).sum(),
                epochs=epochs,
                steps=steps,
            ),
            start=1,
        ):
            with torch.no_grad():
                history.append(losses(*_tensors(held_out)).numpy())
            better = history[-1] < best_loss
            best_loss[better], best_epoch[better] = history[-1][better], epoch
            best_weight[better], best_bias[better] = weight.detach()[better], bias.detach()[better]
            if all(stalled(losses_of_C.tolist(), self.patience) for losses_of_C in np.array(history).T):
                break
        chosen = int(np.argmin(best_loss))
        folded = (best_weight[chosen] / scale).double()
        self.coef_ = folded.numpy()
        self.intercept_ = (best_bias[chosen, 0].double() - folded @ mean.double()).numpy()
        self.chosen_ = {"C": sorted_Cs[chosen], "epochs": int(best_epoch[chosen])}
        self.losses_ = np.array(history)
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """(n, k) scores."""
        check_is_fitted(self)
        return np.asarray(to_answer(self, X) @ self.coef_.T + self.intercept_)

    def predict_proba(self, X: Any) -> np.ndarray:
        """(n, k) probabilities in the order of ``classes_``."""
        return softmax(self.decision_function(X))

    def predict(self, X: Any) -> np.ndarray:
        """(n,) the most likely label."""
        return np.asarray(self.classes_[self.decision_function(X).argmax(1)])


def held_out_rows(class_ids: np.ndarray, groups: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to learn from, and at most some thousand rows of other groups that decide when to stop.

    Where no class has two groups, all rows serve for both.
    """
    train_rows, held_out = hold_out(class_ids, groups, 0.1, seed)
    return (train_rows, held_out) if len(held_out) else (train_rows, train_rows[:HELD_OUT_ROWS])


def _tensors(batch: tuple[np.ndarray, np.ndarray]) -> tuple[Tensor, Tensor]:
    vectors, class_ids = batch
    return torch.from_numpy(vectors), torch.from_numpy(np.asarray(class_ids, dtype=np.int64))


def _class_weights(class_weight: Any, classes: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The weight of each class, (k,)."""
    if class_weight is None:
        return np.ones(len(classes))
    if isinstance(class_weight, Mapping):
        return np.array([float(class_weight.get(name, 1.0)) for name in classes.tolist()])
    if class_weight != "balanced":
        raise ValueError(f"class_weight is 'balanced', a dictionary or None, not {class_weight!r}.")
    return np.asarray(counts.sum() / (len(counts) * np.maximum(counts, 1)))
