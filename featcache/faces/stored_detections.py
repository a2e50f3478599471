"""Detections read back from a store: of one image by its hash, or of all images of a source."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from featcache.core.errors import MissingVectorsError, ShardGoneError, UsageError
from featcache.faces.detection import COLUMNS, FACE, Detection, Detector
from featcache.store import FeatureStore
from featcache.store.commit import places


class StoredDetections:
    """The detections of one space; several threads may ask at once.

    Args:
        store: the store.
        space: fingerprint of the detection.

    Raises:
        MissingVectorsError: the store holds none of that detection.
    """

    def __init__(self, store: FeatureStore, space: str) -> None:
        self._store = store
        self._reader = store.column(FACE, space)

    def __call__(self, sha256: bytes) -> Detection | None:
        """The detection of the image with this SHA-256, None where there is none."""
        return self.of([sha256]).get(sha256)

    def of(self, sha256s: Sequence[bytes]) -> dict[bytes, Detection]:
        """The detections of those of these images that have one."""
        try:
            return self._read(sha256s)
        except ShardGoneError:
            # Another process compacted the store: the rows have other places now.
            return self._read(sha256s)

    def _read(self, sha256s: Sequence[bytes]) -> dict[bytes, Detection]:
        found = places(self._store.catalogue, self._reader.column, list(dict.fromkeys(sha256s)))
        rows = np.empty((len(found), len(COLUMNS)), np.float32)
        self._reader.gather(np.array(list(found.values()), np.int64).reshape(-1, 2), rows)
        return {sha256: Detection.of_row(row) for sha256, row in zip(found, rows, strict=True)}


def detections(
    store: str | Path | FeatureStore, source: str | None = None, *, detection: str | None = None
) -> dict[bytes, Detection]:
    """What was found in the images of a source, those without a vector included.

    Args:
        store: a store or its path.
        source: the source's name; may be left out where there is one.
        detection: fingerprint of the detection, such as a space's ``recipe.detection``; may be left out where the store
            holds one.

    Returns:
        Detections by the SHA-256 of the images' bytes. Images that could not be read have none.

    Raises:
        MissingVectorsError: faces were never looked for.
        UsageError: the store holds several detections and none was chosen.
    """
    opened = store if isinstance(store, FeatureStore) else FeatureStore.open(store)
    wanted = [item.sha256 for item in opened.items(source=source)]
    return StoredDetections(opened, _detection(opened, detection)).of(wanted)


def _detection(store: FeatureStore, wanted: str | None) -> str:
    found = [
        space.fingerprint
        for space in store.spaces
        if space.recipe.backbone == Detector.name and space.layers and wanted in (None, space.fingerprint)
    ]
    if not found:
        which = "" if wanted is None else f" by the detection {wanted[:12]}"
        raise MissingVectorsError(
            f"In {store.path} no faces were looked for{which}. Run `featcache faces extract` first."
        )
    if len(found) > 1:
        listed = ", ".join(fingerprint[:12] for fingerprint in found)
        raise UsageError(f"{store.path} holds several detections: {listed}. Choose one by its fingerprint.")
    return found[0]
