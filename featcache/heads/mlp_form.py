"""Hidden layers and an output layer: what the head ``mlp`` answers with, fitted or read from a file.

z = W_m a_{m-1} + b_m, where a_0 = x and a_i = max(0, W_i a_{i-1} + b_i); probabilities are softmax(z).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from featcache.evaluation.temperature import softmax


@dataclass(frozen=True)
class MLPForm:
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

    def tempered(self, temperature: float) -> MLPForm:
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
