"""Which stored layer is compared where none is named."""

from __future__ import annotations

from collections.abc import Sequence

from featcache.backbones.layers import POOLED
from featcache.core.errors import MissingVectorsError, UnknownNameError
from featcache.faces.aligned import MIRRORED
from featcache.store import FeatureStore
from featcache.store.commit import places


def preferred_layer(store: FeatureStore, source: str | None = None, space: str | None = None) -> str:
    """``mirrored`` or ``pooled``, whichever more images of the source have; where they are equal, ``mirrored``.

    Args:
        store: the store.
        source: the source's name; may be left out where there is one.
        space: the space; may be left out where there is one.

    Raises:
        UnknownNameError: the space has neither; or no such source or space.
        MissingVectorsError: it has, but no image of the source does.
    """
    stored = store.space(space).layers
    candidates = [name for name in (MIRRORED, POOLED) if name in stored]
    if not candidates:
        raise UnknownNameError.among("stored layer", POOLED, list(stored), "Name one of those that are stored.")
    name = store.source(source)
    contents = [item.sha256 for item in store.items(source=name)]
    counts = {layer: rows_having(store, layer, contents, space) for layer in candidates}
    best = max(candidates, key=lambda layer: counts[layer])  # the first of several
    if not counts[best]:
        raise MissingVectorsError(
            f"No image of source {name!r} has vectors of {' or '.join(candidates)} in this space. Run "
            "`featcache faces extract` on it (or `featcache extract` for whole pictures), or name another layer."
        )
    return best


def rows_having(store: FeatureStore, layer: str, sha256s: Sequence[bytes], space: str | None = None) -> int:
    """How many of these contents have a vector of a stored layer."""
    return len(places(store.catalogue, store.column(layer, space).column, list(dict.fromkeys(sha256s))))
