"""Labelled vectors to learn from or to score on, read on demand.

The layers that a head reads, each with the scale that its vectors are divided by.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from featcache.core.errors import MissingVectorsError, UsageError
from featcache.core.names import VIEW_0
from featcache.core.recipe import Recipe
from featcache.metrics import splits
from featcache.store import FeatureStore, Item, export
from featcache.store.rows import ItemRows


@dataclass
class FeatureDataset:
    """Labelled vectors.

    Attributes:
        items: n items.
        y: (n,) labels, text; or (n, k) bool, where an item can have several.
        units: (n,) int64; items with one number share their content or their group, or are linked.
        layers: names of the layers, in network order.
        shapes: the shape of one image's activations, for each layer.
        recipe: what made the vectors, where that is known.
        read: from row numbers to vectors of view 0, (rows, d) float32, the layers one after another.
        views: the K views of each item that are learned from, view 0 first; answers are asked for view 0.
        view_reader: from row · K + place of the view to vectors, likewise; None where there is view 0 alone.
        knows_images: whether the items' SHA-256s are those of images.
        without_vectors: labelled images of the source that have no vectors, so are not among the items; those
            in quarantine are not counted.
        without_labels: images of the source that have vectors but no label, so are not among the items.
        labels: the k labels of the columns of ``y``, where an item can have several.
        narrow: from row numbers to (rows, e) vectors by which near-duplicates are looked for, where those of ``read``
            are whole activation maps.
        links: (m, 2) row numbers of pairs that were linked, see `linked`.
    """

    items: list[Item]
    y: np.ndarray
    units: np.ndarray
    layers: list[str]
    shapes: list[tuple[int, ...]]
    recipe: Recipe | None
    read: Callable[[np.ndarray], np.ndarray]
    knows_images: bool = True
    without_vectors: int = 0
    without_labels: int = 0
    labels: tuple[str, ...] | None = None
    views: tuple[str, ...] = (VIEW_0,)
    view_reader: Callable[[np.ndarray], np.ndarray] | None = None
    narrow: Callable[[np.ndarray], np.ndarray] | None = None
    links: np.ndarray = field(default_factory=lambda: np.empty((0, 2), np.int64))

    def linked(self, pairs: np.ndarray) -> FeatureDataset:
        """The same vectors, where the items of each of these pairs (m, 2) belong to one unit."""
        return replace(self, units=splits.units(self.items, pairs), links=pairs)

    def learned(self, rows: np.ndarray) -> np.ndarray:
        """The places (m·K,) of all views of these rows (m,) for `view_reader`, a row's one after another."""
        k = len(self.views)
        return (rows[:, None] * k + np.arange(k)).reshape(-1)

    def read_views(self, places: np.ndarray) -> np.ndarray:
        """The vectors (m, d) at some of the places that `learned` gives."""
        return (self.read if self.view_reader is None else self.view_reader)(places)

    @property
    def widths(self) -> list[int]:
        """How many numbers of a vector come from each layer."""
        return [int(np.prod(shape, dtype=np.int64)) for shape in self.shapes]

    @classmethod
    def from_store(
        cls,
        store: FeatureStore,
        layers: str | Sequence[str] | None = None,
        *,
        labels: str | Path | None = None,
        split: str | None = None,
        source: str | None = None,
        space: str | None = None,
        views: bool | Sequence[str] = False,
    ) -> FeatureDataset:
        """The labelled items of a source that have vectors.

        Args:
            store: the store.
            layers: which stored layers.
            labels: a CSV file (``path,label``) whose labels take the place of the stored ones.
            split: only this split.
            source: which source.
            space: which space.
            views: learn from all views that are stored of these layers, not from view 0 alone; or from view 0 and
                those of these names.

        Raises:
            MissingVectorsError: no labelled item has vectors, or some lack a layer or a view.
            UsageError: *labels* names paths that are no images of the source.
        """
        chosen = views if isinstance(views, bool) else [VIEW_0, *views]
        rows = ItemRows.of(store, layers, split=split, source=source, space=space, views=chosen)
        items = rows.items
        given: dict[str, str] | None = None
        if labels is not None:
            given = labels_of(store, items[0].source, labels)
            items = [replace(item, label=given.get(item.uri)) for item in items]
        kept = np.array([i for i, item in enumerate(items) if item.label is not None], dtype=np.int64)
        if not len(kept):
            raise MissingVectorsError(
                f"None of the {len(items)} items has a label. Put the images into one folder a class, "
                "or give --labels FILE with the columns path,label."
            )
        labelled, k = [items[i] for i in kept], len(rows.views)
        return cls(
            items=labelled,
            y=np.array([item.label for item in labelled], dtype=str),
            units=splits.units(labelled),
            layers=rows.layers,
            shapes=rows.shapes,
            recipe=store.space(space).recipe,
            read=lambda at: rows.read(kept[at] * k),
            views=tuple(rows.views),
            view_reader=None if k == 1 else lambda at: rows.read(kept[at // k] * k + at % k),
            without_vectors=_without_vectors(store, items, split, given),
            without_labels=len(items) - len(kept),
        )

    @classmethod
    def from_file(cls, path: Path) -> FeatureDataset:
        """The labelled rows of a plain HDF5 or NumPy file.

        Where the file does not say which images they are (``sha256``), equal vectors count as one image.

        Raises:
            UsageError: the file is a head.
            SourceError: the file has no ``features`` and ``labels``, or they do not fit.
            MissingVectorsError: no row has a label.
        """
        if path.suffix == ".fch":
            raise UsageError(f"{path} is a head. Give the store to train on: featcache train STORE -o {path.name}")
        plain = export.read(path)
        kept = np.array([i for i, label in enumerate(plain.y) if label is not None], dtype=np.int64)
        if not len(kept):
            raise MissingVectorsError(f"No row of {path} has a label.")
        X = plain.X[kept]
        items = [
            Item(
                path.stem,
                plain.uris[i],
                plain.sha256s[i] if plain.sha256s else hashlib.sha256(plain.X[i].tobytes()).digest(),
                str(plain.y[i]),
                plain.splits[i],
                plain.groups[i],
            )
            for i in kept
        ]
        known = plain.recipe is not None and len(plain.layers) == 1
        return cls(
            items=items,
            y=np.array([item.label for item in items], dtype=str),
            units=splits.units(items),
            layers=plain.layers if known else ["features"],
            shapes=[X.shape[1:]],
            recipe=plain.recipe if known else None,
            read=lambda at: X[at],
            knows_images=plain.sha256s is not None,
            without_labels=len(plain.y) - len(kept),
        )


def labels_of(store: FeatureStore, source: str, labels: str | Path) -> dict[str, str]:
    """Labels by URI from a CSV file (``path,label``).

    Raises:
        SourceError: as `featcache.images.sources.read_labels`.
        UsageError: paths are no images of the source.
    """
    from featcache.images.sources import read_labels

    given = read_labels(Path(labels))
    # An image in quarantine may be named; what is no image of the source was misspelt.
    unknown = sorted(given.keys() - {item.uri for item in store.items(source=source)})
    if unknown:
        raise UsageError(
            f"{labels} gives {len(given)} paths a label, of which {len(unknown)} are no images of source "
            f"{source!r} (first: {unknown[0]}). Paths are relative to {store.sources()[source]}."
        )
    return given


def _without_vectors(
    store: FeatureStore, having: Sequence[Item], split: str | None, given: Mapping[str, str] | None
) -> int:
    """How many labelled images of the source of *having* are missing there, except those in quarantine."""
    name = having[0].source
    known = next(source["items"] for source in store.status()["sources"] if source["name"] == name)
    if known == len(having):
        return 0  # nothing is missing, so a list of a million images need not be read twice
    there = {item.uri for item in having} | {uri for uri, _ in store.quarantine(name)}
    lacking = [item for item in store.items(split, name) if item.uri not in there]
    return sum((item.label if given is None else given.get(item.uri)) is not None for item in lacking)


@dataclass(frozen=True, slots=True)
class LayerUse:
    """A layer that a head reads.

    Attributes:
        name: the layer.
        shape: shape of one image's activations.
        scale: its vectors are divided by this: their root mean square on the items the head was fitted
            on, or 1 where the head reads one layer.
    """

    name: str
    shape: tuple[int, ...]
    scale: float

    @property
    def width(self) -> int:
        """Numbers an image."""
        return math.prod(self.shape)


def scale_layers(X: np.ndarray, layers: Sequence[LayerUse]) -> np.ndarray:
    """Divide each layer's part of (n, d) vectors by its scale."""
    if all(use.scale == 1.0 for use in layers):
        return X
    return X / np.repeat(np.array([u.scale for u in layers], np.float32), [u.width for u in layers])
