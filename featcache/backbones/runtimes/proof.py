"""Comparing a graph's activations with those of eager torch, and the cache of graphs that agreed.

One file per graph: the graph, inputs made from a seed, and what eager torch gave for them. A file is used only if its
digest holds, and the graph runs on these inputs again before it is trusted. So a damaged file, a wrong graph and a
library that computes something else on this machine are found, without torch. Of the comparison on a run's own images
only the errors are kept.
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
"""Raised when more is asked of a graph than before."""
_MAX_GRAPHS = 32
"""Graphs in the cache; the least recently used ones are deleted."""


@dataclass(frozen=True, slots=True)
class Proven:
    """A graph with the data that proves it.

    Attributes:
        graph: the graph.
        inputs: (n, …), made from a seed.
        expected: what eager torch gave for them, by layer.
        errors: by layer the largest relative error on the images of the run that converted it.
    """

    graph: Graph
    inputs: np.ndarray
    expected: dict[str, np.ndarray]
    errors: dict[str, float]


@dataclass(frozen=True, slots=True)
class GraphCache:
    """The cache entry of one graph.

    Attributes:
        fingerprint: of the recipe.
        layers: names, in the order of the outputs.
        shape: of one image's input.
        library: the package that defines the network, if known.
    """

    fingerprint: str
    layers: tuple[str, ...]
    shape: tuple[int, ...]
    library: str | None

    @property
    def key(self) -> str:
        """Everything that the graph depends on, as JSON."""
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
        """The entry, or None if there is none or it is damaged."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, framework="numpy") as file:
                kept = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            if kept["key"] != self.key or kept["digest"] != _digest(kept["key"], kept["errors"], tensors):
                return None
            expected = {name: tensors[f"expected/{name}"] for name in self.layers}
            proven = Proven(
                Graph(tensors["xml"].tobytes(), tensors["weights"]), tensors["inputs"], expected,
                {str(name): float(error) for name, error in json.loads(kept["errors"]).items()},
            )  # fmt: skip
            os.utime(self.path)
        except (OSError, SafetensorError, KeyError, ValueError, TypeError, AttributeError):
            return None
        return proven

    def write(self, proven: Proven) -> None:
        """Write the entry.

        Raises:
            OSError: it cannot be written, so that the graph has to be converted again next time.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import save_file

        tensors = {
            "xml": np.frombuffer(proven.graph.xml, np.uint8),
            "weights": proven.graph.weights,
            "inputs": np.ascontiguousarray(proven.inputs),
            **{f"expected/{name}": np.ascontiguousarray(array) for name, array in proven.expected.items()},
        }
        errors = json.dumps(proven.errors, sort_keys=True)
        metadata = {"key": self.key, "errors": errors, "digest": _digest(self.key, errors, tensors)}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(f".{os.getpid()}")
        try:
            save_file(tensors, partial, metadata)
            os.replace(partial, self.path)
        except SafetensorError as error:  # what the system says is part of its message
            raise OSError(str(error)) from error
        finally:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
        with suppress(OSError):
            files = sorted(self.path.parent.glob("*.safetensors"), key=lambda path: path.stat().st_mtime)
            for old in files[:-_MAX_GRAPHS]:
                old.unlink(missing_ok=True)

    def forget(self) -> None:
        """Delete the entry."""
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
"""Largest ‖a - b‖/‖b‖ of an image's activations at one layer, by precision. bfloat16 has eight significant bits, so
after many layers two correct results differ by some percent; the bound tells these from a wrong graph."""


def check_agreement(
    got: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], precision: str
) -> dict[str, float]:
    """Compare activations with those of the reference, image by image and layer by layer.

    An image with non-finite values at any layer of the reference is not compared, since a graph reports NaN for all
    layers at once. At a layer where the reference is not finite, *got* must not be finite either.

    Args:
        got, expected: by layer name (n, …) float32 of the same n images.
        precision: ``float32`` or ``bfloat16``, that of *got*.

    Returns:
        The largest relative error by layer.

    Raises:
        ConversionError: they differ by more than `TOLERANCE` or in shape, values are not finite in only one of them, or
            the reference is finite for no image.
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
