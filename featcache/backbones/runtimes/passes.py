"""Forward passes on a runtime, in as many threads as it allows.

- ``torch`` is the reference. It runs one pass at a time, on the CPU with torch's own threads.
- ``openvino`` runs a graph converted from the module, one core per pass. It is used only for layers for which it gave
  the activations of eager torch, see `GraphPasses`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, TypeAlias
from weakref import WeakKeyDictionary

import numpy as np

from featcache.backbones import compute
from featcache.backbones.backbone import Backbone
from featcache.backbones.recipe_cache import cache_folder
from featcache.backbones.runtimes.openvino import CompiledGraph, Graph
from featcache.backbones.runtimes.proof import GraphCache, Proven, check_agreement
from featcache.core.errors import ConversionError, UsageError
from featcache.core.progress import tell

if TYPE_CHECKING:
    from featcache.backbones.extractor import Extractor
    from featcache.backbones.layers import Layer


Key: TypeAlias = tuple[tuple[str, ...], tuple[int, ...]]
"""Layer names, and the shape of one image's input."""

_SEED = 20
_MAX_COMPILED = 4
"""Compiled graphs that are kept for a backbone, with their weights."""
_Place: TypeAlias = tuple[int, Key, int, int, int, str, str]
"""Process, key, batch size, concurrency, cores, precision, digest of the weights."""
_compiled: WeakKeyDictionary[Backbone, dict[_Place, CompiledGraph]] = WeakKeyDictionary()


class Passes(Protocol):
    """What runs batches through a network."""

    @property
    def runtime(self) -> str:
        """``torch`` or ``openvino``; ``own`` for an extractor with its own ``forward``."""

    @property
    def parallel(self) -> bool:
        """Whether several threads may call `forward` at the same time, each pass on one core."""

    @property
    def batch_size(self) -> int:
        """The number of images per pass that it runs best with."""

    @property
    def notes(self) -> list[str]:
        """Messages for the user about the choice of the runtime."""

    def ready(self, batch: np.ndarray, layers: Sequence[Layer]) -> None:
        """Prepare for these layers.

        To be called with real images before the first `forward` of a set of layers, in the thread that takes the
        results.
        """

    def forward(self, batch: np.ndarray, layers: Sequence[Layer]) -> dict[str, np.ndarray]:
        """(n, …) float32 by layer name, for n inputs (n, …) from `Backbone.prepare`."""


class EagerPasses:
    """Passes by the extractor's own ``forward``, which for a `Backbone` is eager torch on its device."""

    parallel = False

    def __init__(self, extractor: Extractor, batch_size: int | None, runtime: str = "torch") -> None:
        self._extractor, self.runtime = extractor, runtime
        self.batch_size = batch_size or 16
        self.notes: list[str] = []

    def ready(self, batch: np.ndarray, layers: Sequence[Layer]) -> None:
        self._extractor.load()

    def forward(self, batch: np.ndarray, layers: Sequence[Layer]) -> dict[str, np.ndarray]:
        return self._extractor.forward(batch, layers)


class GraphPasses:
    """Passes in OpenVINO, by graphs that are proven to give what eager torch gives.

    A new graph is compared with torch on the images given to `ready`, on the negatives of two of them, and on noise
    from a seed. A cached graph is compared on that noise again, with the activations that torch gave then. For a custom
    backbone, whose network is in memory, the images given to `ready` are compared every time.

    Args:
        backbone: on ``cpu``.
        batch_size: images in a pass.
        concurrency: passes at the same time.
        cores: cores that these passes share.
        must: raise if there is no correct graph, instead of falling back to torch.
        may_convert: convert if no graph is cached, which takes seconds; otherwise use torch.
    """

    def __init__(
        self, backbone: Backbone, *, batch_size: int | None, concurrency: int, cores: int, must: bool, may_convert: bool
    ) -> None:
        self._backbone, self._asked = backbone, batch_size
        self._concurrency, self._cores = concurrency, cores
        self._must, self._may_convert = must, may_convert
        self._graphs: dict[Key, CompiledGraph] = {}
        self._torch: EagerPasses | None = None
        self.notes: list[str] = []

    @property
    def runtime(self) -> str:
        return "openvino" if self._torch is None else "torch"

    @property
    def parallel(self) -> bool:
        return self._torch is None

    @property
    def batch_size(self) -> int:
        # On one core an image takes as long alone as in a batch; a few together save overhead.
        return (self._asked or 8) if self._torch is None else self._torch.batch_size

    def ready(self, batch: np.ndarray, layers: Sequence[Layer]) -> None:
        """As in `Passes`.

        Raises:
            ConversionError: OpenVINO cannot run the network as torch does, and *must* is set.
            UsageError: there is not enough memory for the batch size that was asked for.
        """
        key = _key(batch, layers)
        if key in self._graphs or self._torch is not None:
            return
        if not compute.has_openvino():
            self._take_torch("OpenVINO is not installed (pip install openvino)")
            return
        try:
            found = self._proven(key, batch, layers) or (self._new(key, batch, layers) if self._may_convert else None)
        except ConversionError as error:
            self._take_torch(str(error), error)
            return
        except MemoryError as error:
            if self._asked is None:
                raise
            # torch would need as much.
            raise UsageError(
                f"There is not enough memory for passes of {self._asked:,} images. Give a smaller --batch-size."
            ) from error
        if found is None:
            self._torch = EagerPasses(self._backbone, self._asked)
        else:
            self._graphs[key] = found

    def forward(self, batch: np.ndarray, layers: Sequence[Layer]) -> dict[str, np.ndarray]:
        # Graphs first: torch, whose hooks allow one pass at a time, must not be called by threads that were started
        # before the fallback to it.
        if (graph := self._graphs.get(_key(batch, layers))) is not None:
            return graph.forward(batch)
        assert self._torch is not None, "`ready` was not called for these layers"
        return self._torch.forward(batch, layers)

    def _proven(self, key: Key, batch: np.ndarray, layers: Sequence[Layer]) -> CompiledGraph | None:
        """A graph that is compiled in this process, or cached on disk and still correct."""
        if (found := _compiled.get(self._backbone, {}).get(self._place(key))) is not None:
            return found
        cache = self._cache(key)
        proven = cache.read()
        if proven is None:
            return None
        try:
            graph = self._compile(proven.graph, key)
            check_agreement(graph.forward(proven.inputs), proven.expected, self._backbone.precision)
            if self._backbone.is_custom:
                check_agreement(graph.forward(batch), self._reference(batch, layers), self._backbone.precision)
        except ConversionError:
            cache.forget()
            return None
        return self._keep(key, graph)

    def _new(self, key: Key, batch: np.ndarray, layers: Sequence[Layer]) -> CompiledGraph:
        from featcache.backbones.runtimes.convert import convert

        tell(f"Convert {self._backbone.name} for OpenVINO and check it against PyTorch, once for each set of layers …")
        inputs = _noise(batch)
        made = convert(self._backbone.network, layers, inputs)
        graph = self._compile(made, key)
        # Negatives too: the first images of a run are often alike, and a graph may be correct for such images only.
        images = np.concatenate([batch, _negatives(batch)])
        errors = check_agreement(graph.forward(images), self._reference(images, layers), self._backbone.precision)
        expected = self._reference(inputs, layers)
        if all(np.isfinite(array).all() for array in expected.values()):
            check_agreement(graph.forward(inputs), expected, self._backbone.precision)
            try:
                self._cache(key).write(Proven(made, inputs, expected, errors))
            except OSError as error:
                self.notes.append(
                    f"The converted network cannot be kept in {cache_folder()}, so every run converts it again: "
                    f"{error.strerror or error}. Set FEATCACHE_CACHE to a folder that can be written."
                )
        return self._keep(key, graph)

    def _reference(self, batch: np.ndarray, layers: Sequence[Layer]) -> dict[str, np.ndarray]:
        return self._backbone.network.forward(batch, layers)

    def _compile(self, graph: Graph, key: Key) -> CompiledGraph:
        return CompiledGraph(
            graph, key[0], batch_size=self.batch_size, concurrency=self._concurrency, cores=self._cores,
            precision=self._backbone.precision,
        )  # fmt: skip

    def _cache(self, key: Key) -> GraphCache:
        return GraphCache(self._backbone.recipe.fingerprint, *key, self._backbone.library)

    def _keep(self, key: Key, graph: CompiledGraph) -> CompiledGraph:
        held = _compiled.setdefault(self._backbone, {})
        held[self._place(key)] = graph
        for oldest in list(held)[:-_MAX_COMPILED]:
            held.pop(oldest, None)
        return graph

    def _place(self, key: Key) -> _Place:
        # Threads do not survive a fork, so a child process compiles its own.
        return (
            os.getpid(),
            key,
            self.batch_size,
            self._concurrency,
            self._cores,
            self._backbone.precision,
            self._backbone.recipe.weights,
        )

    def _take_torch(self, reason: str, error: ConversionError | None = None) -> None:
        name = self._backbone.name
        if self._must:
            raise ConversionError(
                f"{name} cannot run on OpenVINO: {reason}. Choose the runtime torch: --runtime torch."
            ) from error
        self.notes.append(f"{name} runs on torch, since OpenVINO cannot be used: {reason}.")
        self._torch = EagerPasses(self._backbone, self._asked)


def _key(batch: np.ndarray, layers: Sequence[Layer]) -> Key:
    return tuple(layer.name for layer in layers), batch.shape[1:]


def _negatives(batch: np.ndarray) -> np.ndarray:
    """The first two inputs of a batch, inverted."""
    return 255 - batch[:2] if batch.dtype == np.uint8 else -batch[:2]


def _noise(batch: np.ndarray) -> np.ndarray:
    """Two inputs like those of the batch, from a seed: noise, and noise with coarse squares."""
    rng = np.random.default_rng(_SEED)
    shape = batch.shape[1:]
    if batch.dtype != np.uint8:
        return rng.normal(size=(2, *shape)).astype(np.float32)
    noise = rng.integers(0, 256, (2, *shape), dtype=np.uint8)
    coarse = noise[1, ::16, ::16].repeat(16, axis=0).repeat(16, axis=1)[: shape[0], : shape[1]]
    return np.stack([noise[0], coarse // 2 + noise[1] // 2])


def passes_for(
    extractor: Extractor,
    *,
    concurrency: int = 1,
    cores: int | None = None,
    batch_size: int | None = None,
    convert: bool = True,
) -> Passes:
    """Passes on the backbone's runtime; with ``auto`` on the fastest one that agrees with eager torch.

    Args:
        extractor: a `Backbone`; an extractor that wraps one and has a method ``passes`` with the other arguments of
            this function; or any other, which runs by its own ``forward``.
        concurrency: passes at the same time, if the runtime allows several.
        cores: cores that these passes share; by default all that this process may use.
        batch_size: images in a pass; by default what the runtime runs best with.
        convert: with ``auto``, convert a network without a cached graph, which takes seconds.

    Example:
        >>> from featcache.backbones import tiny_backbone
        >>> backbone = tiny_backbone()
        >>> layers = backbone.resolve_layers(["pooled"])
        >>> passes = passes_for(backbone, batch_size=2)
        >>> images = np.zeros((2, 32, 32, 3), np.uint8)
        >>> passes.ready(images, layers)
        >>> passes.forward(images, layers)["pooled"].shape
        (2, 16)
    """
    if not isinstance(extractor, Backbone):
        wrapped = getattr(extractor, "passes", None)
        if wrapped is None:
            return EagerPasses(extractor, batch_size, "own")
        made: Passes = wrapped(concurrency=concurrency, cores=cores, batch_size=batch_size, convert=convert)
        return made
    named = compute.runtime_of_recipe(extractor.runtime, extractor.precision, extractor.device) or extractor.runtime
    if named == "torch" or extractor.device != "cpu":
        return EagerPasses(extractor, batch_size)
    must = named == "openvino"
    return GraphPasses(
        extractor,
        batch_size=batch_size,
        concurrency=concurrency,
        cores=cores or compute.cores(),
        must=must,
        may_convert=convert or must,
    )
