"""Converted graphs and the proof that they are right, kept for later processes.

One file a graph: the graph, some images made from a seed, and what eager torch gave for them. A file is used only
while the digest of all that is in it holds, and the graph is run on these images again before it is trusted: so
neither a damaged file, nor a wrong graph, nor a library that computes otherwise on this machine goes unseen, and no
torch is needed for that. The proof on a run's own images is kept as figures; the images are not.

Whether two runtimes give the same activations of the same images.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from featcache.backbones import compute
from featcache.backbones.recipe_cache import cache_folder
from featcache.backbones.runtimes.openvino import Graph
from featcache.core.errors import ConversionError
from featcache.core.recipe import weights_digest

_FORMAT = 2
"""Another number where more is asked of a graph than before."""
_KEPT = 32
"""Graphs that are kept; those that were not used for the longest time go."""


@dataclass(frozen=True, slots=True)
class Proven:
    """A graph with its proof.

    Attributes:
        graph: the graph.
        images: (n, …) its input, made from a seed.
        expected: what eager torch gave for them, by layer.
        errors: the largest relative error of each layer on the images of the run that converted it.
    """

    graph: Graph
    pictures: np.ndarray
    expected: dict[str, np.ndarray]
    errors: dict[str, float]


@dataclass(frozen=True, slots=True)
class GraphCache:
    """The place of one graph.

    Attributes:
        fingerprint: of the recipe.
        layers: names of the layers, in the order of the outputs.
        shape: of one image's input.
        library: the package whose code makes the network, if it is known.
    """

    fingerprint: str
    layers: tuple[str, ...]
    shape: tuple[int, ...]
    library: str | None

    @property
    def key(self) -> str:
        """All that the graph was made of and with, as JSON."""
        packages = ("featcache", "openvino", "torch", *([self.library] if self.library else []))
        versions = {package: _version(package) for package in packages}
        return json.dumps(
            [_FORMAT, self.fingerprint, self.layers, self.shape, versions, compute.identity()], separators=(",", ":")
        )

    @property
    def path(self) -> Path:
        """The file."""
        return cache_folder() / "graphs" / f"{hashlib.sha256(self.key.encode()).hexdigest()[:32]}.safetensors"

    def read(self) -> Proven | None:
        """What is kept, or None where that is nothing or is damaged."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, framework="numpy") as file:
                kept = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            if kept["key"] != self.key or kept["digest"] != _digest(kept["key"], kept["errors"], tensors):
                return None
            expected = {name: tensors[f"expected/{name}"] for name in self.layers}
            proven = Proven(
                Graph(tensors["xml"].tobytes(), tensors["weights"]), tensors["pictures"], expected,
                {str(name): float(error) for name, error in json.loads(kept["errors"]).items()},
            )  # fmt: skip
            os.utime(self.path)
        except (OSError, SafetensorError, KeyError, ValueError, TypeError, AttributeError):
            return None
        return proven

    def write(self, proven: Proven) -> None:
        """Keep a graph; one that cannot be kept is only made again."""
        from safetensors import SafetensorError
        from safetensors.numpy import save_file

        tensors = {
            "xml": np.frombuffer(proven.graph.xml, np.uint8),
            "weights": proven.graph.weights,
            "pictures": np.ascontiguousarray(proven.pictures),
            **{f"expected/{name}": np.ascontiguousarray(array) for name, array in proven.expected.items()},
        }
        errors = json.dumps(proven.errors, sort_keys=True)
        metadata = {"key": self.key, "errors": errors, "digest": _digest(self.key, errors, tensors)}
        with suppress(OSError, SafetensorError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            partial = self.path.with_suffix(f".{os.getpid()}")
            try:
                save_file(tensors, partial, metadata)
                os.replace(partial, self.path)
            finally:
                partial.unlink(missing_ok=True)
            files = sorted(self.path.parent.glob("*.safetensors"), key=lambda path: path.stat().st_mtime)
            for old in files[:-_KEPT]:
                old.unlink(missing_ok=True)

    def forget(self) -> None:
        """Drop what turned out to be wrong."""
        with suppress(OSError):
            self.path.unlink(missing_ok=True)


def _digest(key: str, errors: str, tensors: dict[str, np.ndarray]) -> str:
    parts = weights_digest(
        (name, array.shape, str(array.dtype), np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        for name, array in tensors.items()
    )
    return hashlib.sha256("\n".join([key, errors, parts]).encode()).hexdigest()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1}
"""Largest ‖a - b‖/‖b‖ of an image's activations at one layer, by precision. A bfloat16 number keeps eight binary
digits, so after many layers two right answers differ by some percent; the bound tells these from a wrong graph."""


def check_agreement(
    got: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], precision: str
) -> dict[str, float]:
    """Compare activations with those of the reference, image by image and layer by layer.

    An image that the reference loses at any layer is not compared: a graph may tell of NaN for all layers at once. It
    has to be lost at that layer, though.

    Args:
        got, expected: for each layer's name (n, …) float32 of the same n images.
        precision: ``float32`` or ``bfloat16``, that of *got*.

    Returns:
        For each layer the largest relative error.

    Raises:
        ConversionError: they differ by more than `TOLERANCE` or in shape, values are not finite in one alone, or there
            is no image of which all values of the reference are finite.
    """
    whole = np.logical_and.reduce([_finite(reference) for reference in expected.values()])
    largest = {}
    for name, reference in expected.items():
        if got[name].shape != reference.shape:
            raise ConversionError(f"the layer {name} has shape {got[name].shape}, in eager torch {reference.shape}")
        n = len(reference)
        a, b = (array.reshape(n, -1).astype(np.float64) for array in (got[name], reference))
        if (_finite(a) != _finite(b))[whole | ~_finite(b)].any():
            raise ConversionError(
                f"the layer {name} has values that are not finite, and not where eager torch has them"
            )
        if not whole.any():
            raise ConversionError("no image has finite values at every layer, so nothing can be compared")
        away, length = (np.linalg.norm(part[whole], axis=1) for part in (a - b, b))
        # Where the reference is all zeros, so must be the other.
        errors = np.divide(away, length, out=np.where(away > 0, np.inf, 0.0), where=length > 0)
        largest[name] = float(errors.max())
        if largest[name] > TOLERANCE[precision]:
            raise ConversionError(
                f"the layer {name} differs from eager torch by {largest[name]:.1e} relative to its norm, "
                f"more than {TOLERANCE[precision]:.0e}"
            )
    return largest


def _finite(array: np.ndarray) -> np.ndarray:
    """(n,) bool, whether all values of an image are finite."""
    finite: np.ndarray = np.isfinite(array.reshape(len(array), -1)).all(axis=1)
    return finite
