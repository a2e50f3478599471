"""Layers: module outputs that are taken as activations, with a pooling.

``pooled`` is the penultimate vector. Any other layer is ``<module path>:<pooling>``, where the pooling is ``mean``,
``mean_std`` (mean and population standard deviation, concatenated) or ``none`` (the whole map). Pooling is over all
axes except batch and channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase

from featcache.core.errors import UnknownNameError, UsageError

POOLED = "pooled"
POOLINGS = ("mean", "mean_std", "none")


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of one network."""

    name: str
    position: int
    """Index in network order; ``pooled`` is last."""
    shape: tuple[int, ...]
    """Shape of one image's activations."""

    @property
    def path(self) -> str:
        """The module's path, empty for ``pooled``."""
        return "" if self.name == POOLED else self.name.rpartition(":")[0]

    @property
    def pooling(self) -> str:
        """``mean``, ``mean_std`` or ``none``; empty for ``pooled``."""
        return "" if self.name == POOLED else self.name.rpartition(":")[2]

    @property
    def default_dtype(self) -> str:
        """float16 for whole maps, which are large, and float32 for vectors."""
        return "float16" if self.pooling == "none" else "float32"


@dataclass(frozen=True, slots=True)
class LayerInfo:
    """One module of a network, as ``featcache layers`` lists it.

    Attributes:
        name: ``pooled`` or the module's path.
        shape: of its output for one image.
        axes: the axis order (``C``, ``CHW``, ``HWC``, ``LC``), or ``?`` if it is not declared.
        mean_bytes: bytes per image with ``:mean`` as float32; for ``pooled`` of the vector itself.
        none_bytes: bytes per image with ``:none`` as float16; 0 if there is nothing to pool.
    """

    name: str
    shape: tuple[int, ...]
    axes: str
    mean_bytes: int
    none_bytes: int


def expand(patterns: Sequence[str], names: Sequence[str]) -> list[str]:
    """Expand names, globs and ``+`` to layer names.

    Args:
        patterns: for example ``pooled``, ``blocks.4:mean_std``, ``blocks.*:mean``, ``pooled+blocks.5:mean``.
            ``*`` stays within one dot-separated part.
        names: the network's module paths, in network order.

    Returns:
        Layer names in network order, each once.

    Raises:
        UsageError: a layer without a pooling.
        UnknownNameError: no module matches, or an unknown pooling.

    Example:
        >>> expand(["pooled+blocks.*:mean"], ["stem", "blocks", "blocks.0", "blocks.1"])
        ['blocks.0:mean', 'blocks.1:mean', 'pooled']
    """
    chosen: set[tuple[int, str]] = set()
    for pattern in (part.strip() for text in patterns for part in text.split("+")):
        if pattern == POOLED:
            chosen.add((len(names), POOLED))
            continue
        path, colon, pooling = pattern.rpartition(":")
        if not colon or pooling not in POOLINGS:
            path = path if colon else pattern
            if colon and path:
                advice = f"The layer needs a pooling: {path}:mean, {path}:mean_std, or {path}:none for the whole map."
                raise UnknownNameError.among("pooling", pooling, POOLINGS, advice)
            if not colon and pattern not in names and get_close_matches(pattern, [POOLED], cutoff=0.75):
                raise UnknownNameError.among("layer", pattern, [POOLED])
            raise UsageError(
                f"The layer {pattern!r} needs a pooling: {path}:mean, {path}:mean_std, or {path}:none for the "
                f"whole map. Only {POOLED!r} stands alone."
            )
        parts = path.split(".")
        found = [
            (position, name)
            for position, name in enumerate(names)
            if len(name.split(".")) == len(parts)
            and all(fnmatchcase(a, b) for a, b in zip(name.split("."), parts, strict=True))
        ]
        if not found:
            raise UnknownNameError.among("layer", path, [POOLED, *names], "`featcache layers B` lists them.")
        chosen.update((position, f"{name}:{pooling}") for position, name in found)
    return [name for _, name in sorted(chosen)]


def check_module(path: str, names: Sequence[str]) -> None:
    """Check that a network has a module.

    Raises:
        UnknownNameError: it has none of that path.
    """
    if path not in names:
        raise UnknownNameError.among("layer", path, names, "`featcache layers B` lists them.")


def position(name: str, names: Sequence[str]) -> int:
    """A layer's index in network order."""
    return len(names) if name == POOLED else names.index(name.rpartition(":")[0])
