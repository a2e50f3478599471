"""The linear form of a fitted head: what can be saved and turned into torch.

Most heads are a matrix and a bias in the end, also behind a scaler: z = W x + b. With the link
``softmax`` the probabilities are softmax(z); with ``margin`` the largest z names the label and there
are no probabilities; with ``sigmoid`` each label has the probability 1 / (1 + exp(-z)) of its own.

Hidden layers and an output layer: what the head ``mlp`` answers with, fitted or read from a file.

z = W_m a_{m-1} + b_m, where a_0 = x and a_i = max(0, W_i a_{i-1} + b_i); probabilities are softmax(z).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from featcache.core.errors import BundleError
from featcache.metrics.calibration import softmax

LINKS = ("softmax", "margin", "sigmoid")
SUPPORTED = (
    "the heads of featcache by their names, scikit-learn's linear classifiers (LogisticRegression, LinearSVC, "
    "RidgeClassifier, SGDClassifier …), and pipelines of StandardScaler, MinMaxScaler, MaxAbsScaler, PCA or "
    "TruncatedSVD before one of these"
)


@dataclass(frozen=True)
class LinearPredictor:
    """A linear classifier.

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
            return np.asarray(np.exp(-np.logaddexp(0, -z)))
        return softmax(z)

    def with_temperature(self, temperature: float) -> LinearPredictor:
        """The form whose scores are divided by a temperature; it predicts the same labels."""
        if temperature == 1.0:
            return self
        return replace(self, weight=self.weight / np.float32(temperature), bias=self.bias / np.float32(temperature))

    def predict(self, X: np.ndarray) -> np.ndarray:
        """(n,) labels; for the link ``sigmoid`` (n, k) bool, which labels are likelier than not."""
        if self.link == "sigmoid":
            return np.asarray(self.scores(X) > 0)
        return np.asarray(np.array(self.classes)[self.scores(X).argmax(axis=1)])


def linear_predictor(fitted: Any) -> LinearPredictor:
    """Bring a fitted estimator into linear form.

    Raises:
        BundleError: it has none; the message names what is supported.
    """
    steps = [step for _, step in fitted.steps] if hasattr(fitted, "steps") else [fitted]
    final = steps[-1]
    if not all(hasattr(final, name) for name in ("coef_", "intercept_", "classes_")) or not _is_linear(final):
        raise BundleError(
            f"A {type(final).__name__} trains and scores, but has no linear form, so it cannot be saved or turned "
            f"into torch. Supported are {SUPPORTED}."
        )
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
    return module.startswith(("featcache.heads.", "sklearn.linear_model", "sklearn.svm._classes")) and (
        not hasattr(estimator, "support_vectors_")
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


def _affine(step: Any) -> tuple[np.ndarray, np.ndarray]:
    """A transformer as x → M x + c; M is a vector where it is diagonal."""
    name = type(step).__name__
    if type(step).__module__.startswith("sklearn."):
        if name == "StandardScaler":
            size = step.n_features_in_
            scale = np.ones(size) if step.scale_ is None else step.scale_
            mean = step.mean_ if step.with_mean else np.zeros(size)
            return 1 / scale, -mean / scale
        if name == "MinMaxScaler" and not step.clip:
            return step.scale_, step.min_
        if name == "MaxAbsScaler" and not getattr(step, "clip", False):
            return 1 / step.scale_, np.zeros(step.n_features_in_)
        if name == "PCA":
            matrix = step.components_
            if step.whiten:
                scale = np.sqrt(step.explained_variance_)
                matrix = matrix / np.maximum(scale, np.finfo(scale.dtype).eps)[:, None]
            return matrix, -matrix @ step.mean_
        if name == "TruncatedSVD":
            return step.components_, np.zeros(len(step.components_))
    raise BundleError(
        f"A pipeline with {name} trains and scores, but cannot be saved or turned into torch. "
        f"Supported are {SUPPORTED}."
    )


@dataclass(frozen=True)
class MLPPredictor:
    """A multilayer perceptron with rectifiers (ReLU) between its layers.

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
        """The form whose scores are divided by a temperature; it predicts the same labels."""
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
