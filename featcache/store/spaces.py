"""Items, spaces and layers as values, how spaces of one backbone differ, and which stored layers a choice means."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from featcache.core.errors import DamagedStoreError, MissingVectorsError, UnknownNameError, UsageError
from featcache.core.labels import settled
from featcache.core.recipe import StandardTransform

if TYPE_CHECKING:
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

    def __post_init__(self) -> None:
        for name, text in settled(self.label, self.split, self.group):
            object.__setattr__(self, name, text)


@dataclass(frozen=True, slots=True)
class Pending:
    """One image that a source lists and that was not extracted yet."""

    uri: str
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


def parsed(text: str) -> dict[str, Any]:
    """A JSON object that the catalogue keeps.

    Raises:
        DamagedStoreError: the text is none.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise DamagedStoreError(f"The catalogue holds {text[:80]!r}, which is no JSON object. Run `featcache repair`.")
    return found


_DIGITS = 12
"""Of a digest, as many as the store shows of fingerprints."""


def distinctions(spaces: Sequence[Space]) -> list[str]:
    """For each space how its recipe differs from those of the other spaces of its backbone.

    Args:
        spaces: all among which one is to be chosen.

    Returns:
        As many texts, such as ``scaled dct/1`` and ``without scaled``; empty where a backbone has one space alone.
    """
    return [_words(space, [s for s in spaces if s.recipe.backbone == space.recipe.backbone]) for space in spaces]


def named(spaces: Sequence[Space]) -> str:
    """The spaces as a list in a sentence, each by its fingerprint's beginning, its backbone and its distinction."""
    abouts = zip(spaces, distinctions(spaces), strict=True)
    return "; ".join(
        f"{space.fingerprint[:_DIGITS]} ({', '.join(filter(None, [space.recipe.backbone, about]))})"
        for space, about in abouts
    )


def _words(space: Space, alike: Iterable[Space]) -> str:
    mine = {name: value for other in alike for name, value, _ in space.recipe.differences(other.recipe)}
    transform, sizes = space.recipe.pixels.transform, {f"pixels.transform.{name}" for name in ("crop", "resize")}
    if sizes & mine.keys() and isinstance(transform, StandardTransform):
        mine = {name: value for name, value in mine.items() if name not in sizes} | {"": transform.size_words}
    present = [f"{_short(name)} {_value(value)}".strip() for name, value in sorted(mine.items()) if value is not None]
    return ", ".join(present or [f"without {_short(name)}" for name in sorted(mine)])


def _short(name: str) -> str:
    return name.rpartition(".")[2]


def _value(value: object) -> str:
    if isinstance(value, list):
        return " × ".join(map(str, value))
    text = str(value)
    return text[:_DIGITS] if len(text) == 64 else text


def choose(layers: str | Sequence[str] | None, stored: Sequence[str]) -> list[str]:
    """Resolve names, globs and ``+`` against the stored layers.

    Args:
        layers: a name, a glob, several joined by ``+``, or a list of these; None means ``pooled``, or
            else the only layer there is.
        stored: the layers there are, in network order.

    Returns:
        The chosen ones, in network order, each once.

    Raises:
        UnknownNameError: a name or glob matches nothing.
        MissingVectorsError: nothing is stored.
        UsageError: nothing was chosen and there is no evident choice.
    """
    if not stored:
        raise MissingVectorsError("There are no vectors of any layer. Run `featcache extract` first.")
    if layers is None:
        if "pooled" in stored or len(stored) == 1:
            return ["pooled" if "pooled" in stored else stored[0]]
        raise UsageError(f"Choose with --layers among the stored layers: {', '.join(stored)}.")
    wanted = [layers] if isinstance(layers, str) else list(layers)
    patterns = [part.strip() for text in wanted for part in text.split("+")]
    chosen: set[str] = set()
    for pattern in patterns:
        found = [name for name in stored if matches(name, pattern)]
        if not found:
            raise UnknownNameError.among(
                "stored layer", pattern, stored, "`featcache extract --layers …` adds a layer."
            )
        chosen.update(found)
    return [name for name in stored if name in chosen]


def matches(name: str, pattern: str) -> bool:
    """Whether a glob means this layer; ``*`` stays within one dot-separated part of the path."""
    path, _, pooling = name.partition(":")
    wanted, _, wanted_pooling = pattern.partition(":")
    parts, wanted_parts = path.split("."), wanted.split(".")
    return (
        len(parts) == len(wanted_parts)
        and all(fnmatchcase(a, b) for a, b in zip(parts, wanted_parts, strict=True))
        and fnmatchcase(pooling, wanted_pooling)
    )
