"""The small values that the store speaks in."""

from __future__ import annotations

from dataclasses import dataclass

from featcache.core.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Item:
    """One image of a source."""

    source: str
    """The source's name."""
    uri: str
    """Where the image is, relative to the source's root."""
    sha256: bytes
    """SHA-256 of the image's bytes (32 bytes)."""
    label: str | None
    split: str | None
    group: str | None


@dataclass(frozen=True, slots=True)
class LayerColumn:
    """One layer of a space: what is stored of it."""

    name: str
    position: int
    """Where the layer stands in the network's order."""
    shape: tuple[int, ...]
    """Shape of one image's activations."""
    dtypes: tuple[str, ...]
    """The storage dtypes that occur."""
    rows: int
    """Vectors stored, over all views."""
    views: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Space:
    """All vectors of one recipe in one store."""

    fingerprint: str
    recipe: Recipe
    layers: dict[str, LayerColumn]
    """By name, in network order."""
