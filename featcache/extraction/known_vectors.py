"""Vectors that a store already holds, for images that are asked about anew: found by content, never by name alone."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from featcache.core.errors import MissingVectorsError, ShardGoneError, UnusableImageError
from featcache.extraction.pipeline import is_unchanged
from featcache.extraction.stored_source import StoredImage
from featcache.images.entry import Entry, as_text
from featcache.store import FeatureStore
from featcache.store.folder import CATALOGUE
from featcache.store.sources import Record

if TYPE_CHECKING:
    from pathlib import Path

    from featcache.core.recipe import Recipe


def is_store(path: Any) -> bool:
    """Whether something is the path of a store's folder."""
    return isinstance(path, (str, os.PathLike)) and os.path.isfile(os.path.join(path, CATALOGUE))


def store_among(images: Any, recipe: Recipe, layers: Sequence[str]) -> FeatureStore | None:
    """The first store among the images that are asked about which holds vectors of this recipe and these layers."""
    for image in images if isinstance(images, (list, tuple)) else [images]:
        if is_store(image):
            store = FeatureStore.open(image)
            with suppress(MissingVectorsError):
                KnownVectors(store, recipe, layers)
                return store
    return None


class KnownVectors:
    """Looks vectors up in a store, for heads of one recipe.

    Args:
        store: where to look.
        recipe: of the vectors.
        layers: names of layers, whose view 0 is concatenated.

    Raises:
        MissingVectorsError: the store holds no such vectors.
    """

    def __init__(self, store: FeatureStore, recipe: Recipe, layers: Sequence[str]) -> None:
        space = next((space for space in store.spaces if space.fingerprint == recipe.fingerprint), None)
        lacking = [name for name in layers if space is None or name not in space.layers]
        if space is None or lacking:
            lack = f"no layer {', '.join(lacking)}" if space is not None else "no space"
            raise MissingVectorsError(
                f"{store.path} holds {lack} of the recipe that the head needs ({recipe.backbone}), so no vector can be "
                "taken from it. Omit the store, or extract with that backbone and these --layers."
            )
        self._store, self._layers, self._space = store, list(layers), space.fingerprint
        self._columns = [store.column(name, space.fingerprint) for name in layers]
        self._roots = [
            (name, os.path.join(root, "")) for name, root in store.sources().items() if root and root[0] == os.sep
        ]

    def of(self, images: Sequence[Any]) -> dict[int, np.ndarray]:
        """The (d,) float32 vectors of those of some images that are known, by their places among these."""
        sha256s: dict[int, bytes] = {}
        for place, image in enumerate(images):
            sha256 = self._content(image)
            if sha256 is not None:
                sha256s[place] = sha256
        wanted = list(dict.fromkeys(sha256s.values()))
        try:
            return self._found(sha256s, wanted)
        except ShardGoneError:  # compacted meanwhile
            self._columns = [self._store.column(name, self._space) for name in self._layers]
            return self._found(sha256s, wanted)

    def _found(self, sha256s: dict[int, bytes], wanted: Sequence[bytes]) -> dict[int, np.ndarray]:
        stands = [column.places(wanted) for column in self._columns]
        there = [place for place, sha256 in sha256s.items() if all(sha256 in stand for stand in stands)]
        if not there:
            return {}
        parts = []
        for column, stand in zip(self._columns, stands, strict=True):
            rows = np.empty((len(there), *column.row_shape), np.float32)
            column.gather(np.array([stand[sha256s[place]] for place in there], np.int64), rows)
            parts.append(rows.reshape(len(there), -1))
        return dict(zip(there, np.concatenate(parts, axis=1), strict=True))

    def _content(self, image: Any) -> bytes | None:
        """The SHA-256 of a file, which is read unless a source has it unchanged; None where nothing tells."""
        if isinstance(image, Entry) and isinstance(image.content, StoredImage):
            return image.content.sha256
        if isinstance(image, Entry) and image.content is None and image.make_image is None:
            path: str | Path = image.place
        elif isinstance(image, (str, os.PathLike)):
            path = os.fspath(image)
        else:
            return None
        place = os.path.realpath(path)
        entry = Entry("", place, None, None, None)
        for name, root in self._roots:
            if place.startswith(root):
                for row in self._store.catalogue.query(
                    "thTTTiiiii",
                    "SELECT i.uri, i.sha256, i.label, i.split, i.grp, i.size, i.mtime_ns, i.ctime_ns, i.inode, "
                    "i.indexed_ns FROM items i JOIN sources s ON s.id = i.source_id WHERE s.name = ? AND i.uri = ?",
                    (name, as_text(place.removeprefix(root).replace(os.sep, "/"))),
                ):
                    if is_unchanged(entry, record := Record(*row)):
                        return record.sha256
        try:
            return hashlib.sha256(entry.read()[0]).digest()  # not remembered: there may be very many
        except UnusableImageError:
            return None  # whoever reads it says why
