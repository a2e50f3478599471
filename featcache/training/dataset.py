"""Labeled vectors that are read on demand."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featcache.core.errors import MissingVectorsError, SourceError, UsageError
from featcache.core.names import VIEW_0
from featcache.heads.streaming import available_memory
from featcache.heads.validation import check_finite
from featcache.metrics import splits
from featcache.store import FeatureStore, Item, export
from featcache.store.rows import ItemRows
from featcache.training.selection import ALL, LabelSource, Selection, describe_labels

if TYPE_CHECKING:
    from featcache.core.progress import Progress
    from featcache.core.recipe import Recipe

_HELD_BYTES = 2 << 30
"""Vectors that `FeatureDataset.in_memory` keeps at most."""


Reader = Callable[[np.ndarray], np.ndarray]
"""From row numbers (m,) to vectors (m, d) float32."""


@dataclass
class FeatureDataset:
    """Labeled vectors of n images.

    Attributes:
        items: the n images.
        y: (n,) labels, text; (n, k) bool with several labels per image.
        groups: (n,) int64; images with the same content or group, or that are linked, share a number.
        layers: names of the layers, in network order.
        shapes: the shape of one image's activations, for each layer.
        recipe: of the vectors; None if not known.
        read: from row numbers (m,) to vectors (m, d) float32 of view 0, the layers concatenated.
        views: the K views to train on, view 0 first; predictions are made on view 0.
        view_reader: from row · K + number of the view to vectors, likewise; None for view 0 alone.
        knows_images: whether the SHA-256s of the items are those of images.
        without_vectors: labeled images of the source that are missing here because they have no vectors and are not
            in quarantine.
        without_labels: images of the source that are missing here because they have vectors but no label.
        label_counts: where the labels come from, see `LabelSource.counts`; None for those stored.
        labels: the k labels of the columns of ``y``, with several labels per image.
        narrow: where ``read`` gives whole activation maps, makes of such a reader one of the vectors to search for
            near-duplicates.
        layers_named: whether the user named the layers; else a head may read the last one alone.
        links: (m, 2) row numbers of the pairs that `linked` was given.
    """

    items: list[Item]
    y: np.ndarray
    groups: np.ndarray
    layers: list[str]
    shapes: list[tuple[int, ...]]
    recipe: Recipe | None
    read: Callable[[np.ndarray], np.ndarray]
    knows_images: bool = True
    without_vectors: int = 0
    without_labels: int = 0
    label_counts: dict[str, Any] | None = None
    labels: tuple[str, ...] | None = None
    views: tuple[str, ...] = (VIEW_0,)
    view_reader: Callable[[np.ndarray], np.ndarray] | None = None
    narrow: Callable[[Reader], Reader] | None = None
    layers_named: bool = True
    links: np.ndarray = field(default_factory=lambda: np.empty((0, 2), np.int64))

    def tell_labels(self, progress: Progress) -> None:
        """Note how many labels come from the file that was given, and how many from the store."""
        if self.label_counts is not None:
            progress.note(describe_labels(self.label_counts))

    def linked(self, pairs: np.ndarray) -> FeatureDataset:
        """The same vectors, with the two images of each pair (m, 2) in one group."""
        return replace(self, groups=splits.units(self.items, pairs), links=pairs)

    def view_rows(self, rows: np.ndarray) -> np.ndarray:
        """Row numbers (m·K,) for `read_views` of all views of these rows (m,); a row's views follow one another."""
        k = len(self.views)
        return (rows[:, None] * k + np.arange(k)).reshape(-1)

    def read_views(self, rows: np.ndarray) -> np.ndarray:
        """Vectors (m, d) of these rows (m,) of `view_rows`."""
        return (self.read if self.view_reader is None else self.view_reader)(rows)

    def subset(self, rows: np.ndarray) -> FeatureDataset:
        """The same vectors of some rows (m,) alone."""
        reader, k = self.view_reader, len(self.views)
        return replace(
            self,
            items=[self.items[row] for row in rows],
            y=self.y[rows],
            groups=self.groups[rows],
            read=lambda at: self.read(rows[at]),
            view_reader=None if reader is None else lambda at: reader(rows[at // k] * k + at % k),
            links=np.empty((0, 2), np.int64),
        )

    @property
    def widths(self) -> list[int]:
        """Size of each layer's part of a vector."""
        return [int(np.prod(shape, dtype=np.int64)) for shape in self.shapes]

    def in_memory(self) -> FeatureDataset:
        """The same, but all vectors are read once, at the first use, and kept.

        Vectors that take more than 2 GiB, or more than a quarter of the available memory, are read from the store
        each time, as before.
        """
        views, available = len(self.views), available_memory()
        most = _HELD_BYTES if available is None else min(_HELD_BYTES, available // 4)
        if 4 * len(self.items) * views * sum(self.widths) > most:
            return self

        @functools.cache
        def vectors() -> np.ndarray:
            return self.read_views(np.arange(len(self.items) * views))

        return replace(
            self,
            read=lambda rows: vectors()[rows * views],
            view_reader=None if self.view_reader is None else lambda rows: vectors()[rows],
        )

    def contents(self, rows: Iterable[int]) -> np.ndarray:
        """The SHA-256s of the images in these rows, sorted, each once: (m, 32) uint8; none if they are not known."""
        found = sorted({self.items[row].sha256 for row in rows}) if self.knows_images else []
        return np.frombuffer(b"".join(found), dtype=np.uint8).reshape(-1, 32)

    @classmethod
    def from_store(
        cls,
        store: FeatureStore,
        layers: str | Sequence[str] | None = None,
        select: Selection = ALL,
        *,
        views: bool | Sequence[str] = False,
    ) -> FeatureDataset:
        """The labeled images of a source that have vectors.

        Args:
            store: the store.
            layers: names of stored layers; ``pooled`` by default.
            select: sources, space, split and labels.
            views: True for all views stored of these layers; or names of views, in addition to view 0.

        Raises:
            MissingVectorsError: no labeled image has vectors, or some lack a layer or a view.
            UsageError: the CSV file names paths that are not images of the sources.
        """
        chosen = views if isinstance(views, bool) else [VIEW_0, *views]
        rows = ItemRows.of(store, layers, split=select.split, source=select.source, space=select.space, views=chosen)
        given = LabelSource.of(store, select)
        items = given.applied(rows.items)
        kept = np.array([i for i, item in enumerate(items) if item.label is not None], dtype=np.int64)
        if not len(kept):
            raise MissingVectorsError(
                f"None of the {len(items)} items has a label. Put the images into one folder per class, "
                "or give --labels FILE with the columns path,label."
            )
        labeled, k = [items[i] for i in kept], len(rows.views)
        return cls(
            items=labeled,
            y=np.array([item.label for item in labeled], dtype=str),
            groups=splits.units(labeled),
            layers=rows.layers,
            shapes=rows.shapes,
            recipe=store.space(select.space).recipe,
            read=lambda at: rows.read(kept[at] * k),
            views=tuple(rows.views),
            view_reader=None if k == 1 else lambda at: rows.read(kept[at // k] * k + at % k),
            without_vectors=_count_labeled(store, rows.missing, given),
            without_labels=len(items) - len(kept),
            label_counts=given.counts(rows.items),
        )

    @classmethod
    def from_file(cls, path: Path) -> FeatureDataset:
        """The labeled rows of a plain HDF5 or NumPy file.

        Without ``sha256`` in the file, equal vectors count as one image.

        Raises:
            UsageError: the file is a head.
            SourceError: ``features`` or ``labels`` are missing or do not fit together, or a labeled row holds a value
                that is not finite; the message names the row of the file.
            MissingVectorsError: no row has a label.
        """
        if path.suffix == ".fch":
            raise UsageError(f"{path} is a head. Give the store to train on: featcache train STORE -o {path.name}")
        plain = export.read(path)
        kept = np.array([i for i, label in enumerate(plain.y) if label is not None], dtype=np.int64)
        if not len(kept):
            raise MissingVectorsError(f"No row of {path} has a label.")
        X = plain.X[kept]
        try:
            check_finite(X, kept)
        except UsageError as error:
            raise SourceError(f"{path}: {error} Rows are counted from 0.") from None
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
            groups=splits.units(items),
            layers=plain.layers if known else ["features"],
            shapes=[X.shape[1:]],
            recipe=plain.recipe if known else None,
            read=lambda at: X[at],
            knows_images=plain.sha256s is not None,
            without_labels=len(plain.y) - len(kept),
        )


def _count_labeled(store: FeatureStore, missing: Sequence[Item], given: LabelSource) -> int:
    """How many of these images have a label and are not in quarantine."""
    names = {item.source for item in missing}
    refused = {(name, uri) for name in names for uri, _ in store.quarantine(name)}
    return sum(given.label_of(item) is not None for item in missing if (item.source, item.uri) not in refused)
