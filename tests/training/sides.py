"""What the hold-out of a store says of the images of a source."""

from __future__ import annotations

from pathlib import Path

from featcache.store import FeatureStore


def sides_of(store: Path | FeatureStore, source: str | None = None) -> dict[bytes, str]:
    """``test`` or ``train`` by SHA-256; empty before the first hold-out."""
    opened = FeatureStore.open(store)
    known = opened.sides()
    if "holdout_seed" not in opened.settings():
        return {}
    return {item.sha256: known.get(item.sha256, ("train", ""))[0] for item in opened.items(source=source)}
