"""Which stored layers a choice of layers means."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from featcache.core.errors import MissingVectorsError, UnknownNameError, UsageError


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
