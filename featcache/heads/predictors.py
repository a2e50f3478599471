"""What a fitted head predicts labels with, in NumPy alone: a linear map, a multilayer perceptron, or stored vectors.

A predictor can be saved and converted to torch, and needs neither scikit-learn nor torch to answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from featcache.core.errors import BundleError
from featcache.metrics.calibration import sigmoid, softmax

SHARPNESS = 0.07
_COSINES_AT_ONCE = 16_000_000
LINKS = ("softmax", "margin", "sigmoid")
SUPPORTED = (
    "the named heads, scikit-learn's linear classifiers (LogisticRegression, LinearSVC, RidgeClassifier, SGDClassifier "
    "…), and pipelines of StandardScaler, MinMaxScaler, MaxAbsScaler, PCA or TruncatedSVD before one of these"
)


@dataclass(frozen=True)
class LinearPredictor:
    """A linear classifier, z = W x + b; a scaler in front of it is multiplied in.

    With the link ``softmax`` the probabilities are softmax(z); with ``margin`` the largest z gives the label and
    there are no probabilities; with ``sigmoid`` each label has its own probability 1 / (1 + exp(-z)).

    Attributes:
        weight: (k, d) float32.
        bias: (k,) float32.
        classes: k labels.
        link: ``softmax``, ``margin`` or ``sigmoid``.
    """

    weight: np.ndarray
    bias: np.ndarray
    classes: tuple[str, ...]
    link: str

    def scores(self, X: np.ndarray) -> np.ndarray:
        """z for each row, (n, k) float64."""
        return np.asarray(np.asarray(X, np.float64) @ self.weight.T.astype(np.float64) + self.bias)

    def probabilities(self, X: np.ndarray) -> np.ndarray | None:
        """(n, k) float64, rows sum to 1 but for the link ``sigmoid``; None for the link ``margin``."""
        if self.link == "margin":
            return None
        z = self.scores(X)
        if self.link == "sigmoid":
            return sigmoid(z)
        return softmax(z)

    def with_temperature(self, temperature: float) -> LinearPredictor:
        """The same predictor with its scores divided by a temperature; the labels stay the same."""
        if temperature == 1.0:
            return self
        return replace(self, weight=self.weight / np.float32(temperature), bias=self.bias / np.float32(temperature))

    def predict(self, X: np.ndarray) -> np.ndarray:
        """(n,) labels; for the link ``sigmoid`` (n, k) bool, which labels are more likely than not."""
        if self.link == "sigmoid":
            return np.asarray(self.scores(X) > 0)
        return np.asarray(np.array(self.classes)[self.scores(X).argmax(axis=1)])


def check_linear(estimator: Any) -> None:
    """Check by the classes of a scikit-learn estimator or pipeline, fitted or not, that it is linear once fitted.

    Raises:
        BundleError: it is not; the message names what is supported.
    """
    *before, final = [step for _, step in estimator.steps] if hasattr(estimator, "steps") else [estimator]
    if not _is_linear(final):
        raise _not_linear(final)
    for step in before:
        if step is not None and step != "passthrough" and not _is_affine(step):
            raise _not_affine(step)


def linear_predictor(fitted: Any) -> LinearPredictor:
    """The linear map of a fitted scikit-learn estimator or pipeline.

    Raises:
        BundleError: it is not linear; the message names what is supported.
    """
    check_linear(fitted)
    steps = [step for _, step in fitted.steps] if hasattr(fitted, "steps") else [fitted]
    final = steps[-1]
    if not all(hasattr(final, name) for name in ("coef_", "intercept_", "classes_")):
        raise _not_linear(final)
    weight = np.atleast_2d(np.asarray(final.coef_, dtype=np.float64))
    bias = np.broadcast_to(np.asarray(final.intercept_, dtype=np.float64), (len(weight),)).copy()
    for step in reversed(steps[:-1]):
        if step is None or step == "passthrough":
            continue
        matrix, offset = _affine(step)
        bias = bias + weight @ offset
        weight = weight * matrix if matrix.ndim == 1 else weight @ matrix
    # Scores are divided by the temperature before the softmax.
    temperature = getattr(final, "temperature_", 1.0)
    weight, bias = weight / temperature, bias / temperature
    classes = tuple(str(c) for c in final.classes_)
    if getattr(final, "link", None) == "sigmoid":
        return LinearPredictor(np.ascontiguousarray(weight, np.float32), bias.astype(np.float32), classes, "sigmoid")
    if len(weight) == 1:
        # Two classes: sigmoid(z) is softmax(0, z).
        weight, bias = np.vstack([np.zeros_like(weight), weight]), np.concatenate([[0.0], bias])
    link = "softmax" if hasattr(final, "predict_proba") and _is_softmax(final) else "margin"
    # In the order of rows, as it is read back from a file: BLAS rounds other orders otherwise.
    return LinearPredictor(np.ascontiguousarray(weight, np.float32), bias.astype(np.float32), classes, link)


def _is_linear(estimator: Any) -> bool:
    module = type(estimator).__module__
    return module.startswith(("featcache.heads.", "sklearn.linear_model", "sklearn.svm._classes")) and not any(
        kind.__name__ == "BaseLibSVM"
        for kind in type(estimator).__mro__  # those with kernels
    )


def _is_softmax(estimator: Any) -> bool:
    name = type(estimator).__name__
    if type(estimator).__module__.startswith("featcache.heads."):
        return True
    # liblinear fits one class against the rest and divides by the sum, which is no softmax.
    one_against_rest = getattr(estimator, "solver", "") == "liblinear" and len(estimator.classes_) > 2
    # Before scikit-learn 1.8 the option multi_class made probabilities of two other kinds.
    strategy = getattr(estimator, "multi_class", "auto")
    one_against_rest |= strategy == "ovr" and len(estimator.classes_) > 2
    doubled = strategy == "multinomial" and len(estimator.classes_) == 2
    return name in ("LogisticRegression", "LogisticRegressionCV") and not one_against_rest and not doubled


def _is_affine(step: Any) -> bool:
    name, is_known = type(step).__name__, type(step).__module__.startswith("sklearn.")
    if name in ("MinMaxScaler", "MaxAbsScaler"):
        return is_known and not getattr(step, "clip", False)
    return is_known and name in ("StandardScaler", "PCA", "TruncatedSVD")


def _not_linear(final: Any) -> BundleError:
    return BundleError(
        f"A {type(final).__name__} cannot be saved or converted to torch, since it is not linear. Supported: "
        f"{SUPPORTED}."
    )


def _not_affine(step: Any) -> BundleError:
    return BundleError(
        f"A pipeline with {type(step).__name__} cannot be saved or converted to torch. Supported: {SUPPORTED}."
    )


def _affine(step: Any) -> tuple[np.ndarray, np.ndarray]:
    """A fitted transformer that `_is_affine`, as x → M x + c; M is a vector where it is diagonal."""
    name = type(step).__name__
    if name == "StandardScaler":
        size = step.n_features_in_
        scale = np.ones(size) if step.scale_ is None else step.scale_
        mean = step.mean_ if step.with_mean else np.zeros(size)
        return 1 / scale, -mean / scale
    if name == "MinMaxScaler":
        return step.scale_, step.min_
    if name == "MaxAbsScaler":
        return 1 / step.scale_, np.zeros(step.n_features_in_)
    matrix = step.components_
    if name == "TruncatedSVD":
        return matrix, np.zeros(len(matrix))
    if step.whiten:
        scale = np.sqrt(step.explained_variance_)
        matrix = matrix / np.maximum(scale, np.finfo(scale.dtype).eps)[:, None]
    return matrix, -matrix @ step.mean_


@dataclass(frozen=True)
class MLPPredictor:
    """A multilayer perceptron with ReLU between its layers.

    z = W_m a_{m-1} + b_m with a_0 = x and a_i = max(0, W_i a_{i-1} + b_i); the probabilities are softmax(z).

    Attributes:
        weights: of each layer from the input to the output, (h, d), …, (k, h) float32.
        biases: of each layer, (h,), …, (k,) float32.
        classes: k labels.
        link: ``softmax``.
    """

    weights: tuple[np.ndarray, ...]
    biases: tuple[np.ndarray, ...]
    classes: tuple[str, ...]
    link: str = "softmax"

    def scores(self, X: np.ndarray) -> np.ndarray:
        """z for vectors (n, d), (n, k) float64."""
        a = np.asarray(X, np.float64)
        for place, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            a = (np.maximum(a, 0) if place else a) @ weight.T.astype(np.float64) + bias
        return np.asarray(a)

    def probabilities(self, X: np.ndarray) -> np.ndarray:
        """(n, k) float64 for vectors (n, d), rows sum to 1."""
        return softmax(self.scores(X))

    def with_temperature(self, temperature: float) -> MLPPredictor:
        """The same predictor with its scores divided by a temperature; the labels stay the same."""
        if temperature == 1.0:
            return self
        # The last layer alone: scores are linear in it.
        divisor = np.float32(temperature)
        return replace(
            self,
            weights=(*self.weights[:-1], self.weights[-1] / divisor),
            biases=(*self.biases[:-1], self.biases[-1] / divisor),
        )

    def predict(self, X: np.ndarray) -> np.ndarray:
        """(n,) labels."""
        return np.asarray(np.array(self.classes)[self.scores(X).argmax(axis=1)])


@dataclass(frozen=True)
class KnnPredictor:
    """The nearest training vectors vote.

    The k vectors most similar by cosine vote for their classes with weights exp((c - c₁) / 0.07), where c is the
    cosine and c₁ the largest of them (Wu et al. 2018, equation 8, and its temperature). One more vote is shared by
    all classes equally, so that no probability is 0.

    Attributes:
        vectors: (n, d), of length 1 (or 0).
        class_ids: (n,) int64, the class of each as its place in ``classes``.
        k: how many vote.
        classes: labels.
        link: ``votes``; probabilities are those described above.
    """

    vectors: np.ndarray
    class_ids: np.ndarray
    k: int
    classes: tuple[str, ...]
    link: str = "votes"

    def probabilities(self, X: np.ndarray) -> np.ndarray:
        """(m, classes) float64 for vectors (m, d), rows sum to 1."""
        found = np.empty((len(X), len(self.classes)))
        for at, cosines, places in nearest(self.vectors, normalized(X), self.k):
            found[at] = vote_shares(cosines, self.class_ids[places], len(self.classes))
        return found

    def predict(self, X: np.ndarray) -> np.ndarray:
        """(m,) labels."""
        return np.asarray(np.array(self.classes)[self.probabilities(X).argmax(axis=1)])


def normalized(X: np.ndarray) -> np.ndarray:
    """Vectors (n, d) divided by their lengths; those of length 0 stay 0."""
    # By the largest number first, whose square could be too large or too small.
    X = X / np.maximum(np.abs(X).max(axis=1, keepdims=True), np.finfo(X.dtype).tiny)
    lengths = np.linalg.norm(X, axis=1, keepdims=True)
    return np.asarray(X / np.where(lengths > 0, lengths, 1))


def nearest(
    vectors: np.ndarray,
    queries: np.ndarray,
    k: int,
    groups: np.ndarray | None = None,
    query_groups: np.ndarray | None = None,
) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """The most similar vectors of each query, in blocks of bounded memory.

    Args:
        vectors: (n, d) of length 1.
        queries: (m, d) of length 1.
        k: how many; fewer where n is smaller.
        groups: (n,) numbers.
        query_groups: (m,) numbers; vectors of the query's own group get the cosine -inf.

    Yields:
        Which queries these are, their cosines (b, k) from large to small, and row numbers (b, k).
    """
    k = min(k, len(vectors))
    step = max(1, _COSINES_AT_ONCE // len(vectors))
    for start in range(0, len(queries), step):
        at = slice(start, min(start + step, len(queries)))
        cosines = queries[at] @ vectors.T
        if groups is not None and query_groups is not None:
            cosines[query_groups[at, None] == groups] = -np.inf
        places = np.argpartition(cosines, len(vectors) - k, axis=1)[:, len(vectors) - k :]
        found = np.take_along_axis(cosines, places, axis=1)
        order = np.argsort(-found, axis=1, kind="stable")
        yield at, np.take_along_axis(found, order, axis=1), np.take_along_axis(places, order, axis=1)


def vote_weights(cosines: np.ndarray) -> np.ndarray:
    """The votes' weights, (b, k) float64; that of the nearest is 1."""
    cosines = cosines.astype(np.float64)
    return np.asarray(np.exp((cosines - cosines[:, :1]) / SHARPNESS))


def vote_shares(cosines: np.ndarray, class_ids: np.ndarray, classes: int) -> np.ndarray:
    """(b, classes) probabilities from the neighbors' cosines and class ids, both (b, k)."""
    votes = np.full((len(cosines), classes), 1 / classes)
    for weight, number in zip(vote_weights(cosines).T, class_ids.T, strict=True):
        votes[np.arange(len(votes)), number] += weight
    return np.asarray(votes / votes.sum(axis=1, keepdims=True))
