"""`FeatureStore`: a store opened for reading.

Opening reads a few rows of the catalogue and writes nothing. Vectors come through memory maps, in
float32, in a fixed order (source, then URI) and one row an item.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from featcache.core import names as view_names
from featcache.core.errors import (
    DamagedStoreError,
    MissingVectorsError,
    ShardGoneError,
    StoreFormatError,
    UnknownNameError,
    UsageError,
)
from featcache.core.names import GIVEN, VIEW_0
from featcache.core.progress import Progress
from featcache.core.recipe import Recipe
from featcache.store import export, status, verify
from featcache.store import spaces as layer_names
from featcache.store import spaces as space_words
from featcache.store.catalogue import Catalogue
from featcache.store.column import ColumnReader, ShardMaps, Vectors, row_shape
from featcache.store.commit import places
from featcache.store.folder import CATALOGUE, has_catalogue, lost_catalogue, no_store
from featcache.store.rows import ItemRows
from featcache.store.spaces import Item, LayerColumn, Space

if TYPE_CHECKING:
    from featcache.store.torch_dataset import FeatureDataset

_T = TypeVar("_T")


class FeatureStore:
    """A store opened for reading; get one from `FeatureStore.open` or ``featcache.open``."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.exists():
            raise no_store(self.path)
        if not has_catalogue(self.path):
            if lost_catalogue(self.path):
                raise DamagedStoreError(f"{self.path} has lost its {CATALOGUE}. Run `featcache repair {self.path}`.")
            raise no_store(self.path)
        self.catalogue = Catalogue(self.path / CATALOGUE)
        self.maps = ShardMaps(self.path)

    @classmethod
    def open(cls, path: str | Path) -> FeatureStore:
        """Open the store in folder *path* for reading.

        Raises:
            NotAStoreError: there is no store.
            StoreFormatError: the store was written by a newer featcache.
            DamagedStoreError: the catalogue is not readable as one.
        """
        return cls(path)

    def __reduce__(self) -> tuple[type[FeatureStore], tuple[str]]:
        # A spawned worker opens the store for itself: connections and maps do not travel.
        return FeatureStore, (str(self.path),)

    def __repr__(self) -> str:
        return f"FeatureStore({str(self.path)!r})"

    @property
    def spaces(self) -> list[Space]:
        """The spaces of the store with their layers in network order."""
        layers: dict[int, dict[str, LayerColumn]] = {}
        for space, layer, position, views, dtypes, shape, rows in self.catalogue.query(
            "itittti",
            "SELECT k.space_id, k.layer, k.position, group_concat(DISTINCT k.view), "
            "group_concat(DISTINCT c.dtype), min(c.shape), sum(c.live) "
            "FROM columns k JOIN shard_columns c ON c.column_id = k.id "
            "WHERE c.live > 0 GROUP BY k.space_id, k.layer ORDER BY k.position, k.layer",
        ):
            layers.setdefault(space, {})[layer] = LayerColumn(
                layer,
                position,
                row_shape(shape),
                tuple(sorted(dtypes.split(","))),
                rows,
                tuple(view_names.in_order(views.split(","))),
            )
        return [
            Space(fingerprint, self._recipe(recipe), layers.get(id_, {}))
            for id_, fingerprint, recipe in self.catalogue.query(
                "itt", "SELECT id, fingerprint, recipe FROM spaces ORDER BY id"
            )
        ]

    def _recipe(self, text: str) -> Recipe:
        try:
            return Recipe.from_json(text)
        except StoreFormatError as error:
            raise StoreFormatError(
                f"{self.path}: {error} If no newer featcache wrote it, run `featcache verify`."
            ) from error

    def space(self, space: str | None = None) -> Space:
        """The space of that fingerprint (or its beginning) or backbone name; the only one if not given.

        Raises:
            UsageError: several spaces match; the message lists them.
            UnknownNameError: none matches.
        """
        spaces = self.spaces
        if not spaces:
            raise MissingVectorsError(f"{self.path} holds no vectors yet. Run `featcache extract` first.")
        found = [s for s in spaces if space in (None, s.recipe.backbone) or s.fingerprint.startswith(str(space))]
        if space is None and len(found) > 1:
            # A space whose run stored nothing is no choice to be asked about.
            found = [s for s in found if s.layers] or found
            # Nor is where faces were found, which the vectors of these faces are made from.
            detections = {s.recipe.detection for s in spaces}
            found = [s for s in found if s.fingerprint not in detections] or found
        if not found:
            names = [s.fingerprint[:12] for s in spaces] + [s.recipe.backbone for s in spaces]
            raise UnknownNameError.among("space", str(space), names)
        if len(found) > 1:
            raise UsageError(
                f"{self.path} holds several spaces that match: {space_words.named(found)}. Choose one with --space."
            )
        return found[0]

    def sources(self) -> dict[str, str]:
        """The sources by name, with their roots."""
        return dict(self.catalogue.query("tt", "SELECT name, root FROM sources ORDER BY name"))

    def source(self, source: str | None = None) -> str:
        """The source of that name; the only one if not given, apart from images that were given in Python.

        Raises:
            UsageError: several sources and none chosen; the message lists them.
            UnknownNameError: none has that name.
        """
        names = list(self.sources())
        scanned = [name for name in names if name not in GIVEN] or names
        if source is None and len(scanned) == 1:
            return scanned[0]
        if source is None:
            if not names:
                raise MissingVectorsError(f"{self.path} holds no images yet. Run `featcache extract` first.")
            raise UsageError(f"{self.path} holds several sources: {', '.join(names)}. Choose one with --source.")
        if source not in names:
            raise UnknownNameError.among("source", source, names)
        return source

    def items(self, split: str | None = None, source: str | None = None) -> list[Item]:
        """The images of a source in URI order, those in quarantine included.

        Args:
            split: only items of this split.
            source: the source's name; may be left out where there is one.
        """
        name = self.source(source)
        rows = self.catalogue.query(
            "thTTT",
            "SELECT i.uri, i.sha256, i.label, i.split, i.grp FROM items i "
            "JOIN sources s ON s.id = i.source_id WHERE s.name = ? ORDER BY i.uri",
            (name,),
        )
        if split is not None and all(row[3] != split for row in rows):
            raise UnknownNameError.among("split", split, sorted({row[3] for row in rows if row[3]}))
        return [Item(name, *row) for row in rows if split is None or row[3] == split]

    def layer_names(self, layers: str | Sequence[str] | None = None, space: str | None = None) -> list[str]:
        """The stored layers that a choice means, in network order.

        Args:
            layers: a name, a glob (``blocks.*:mean_std``), several joined by ``+``, or a list of these;
                None means ``pooled``, or else the only layer there is.
            space: which space.

        Raises:
            UnknownNameError: no stored layer is called so.
        """
        return layer_names.choose(layers, list(self.space(space).layers))

    def arrays(
        self,
        split: str | None = None,
        layers: str | Sequence[str] | None = None,
        *,
        source: str | None = None,
        space: str | None = None,
        views: bool | Sequence[str] | None = None,
    ) -> tuple[np.ndarray, np.ndarray, list[Item]]:
        """All vectors of a source as one array.

        Args:
            split: only items of this split.
            layers: see `layer_names`; several layers are concatenated as they were stored.
            source: the source's name; may be left out where there is one.
            space: the space's fingerprint or backbone; may be left out where there is one.
            views: names of views, or True for all that are stored of these layers; view 0 by default.

        Returns:
            ``X`` (n, d) float32, each layer's activations flattened; ``y`` (n,) labels, text, or objects
            with None where an item has no label; the n items. With K views all three are n·K long: the views of
            an item follow one another, view 0 first, then by policy, seed and index, so ``X.reshape(-1, K, d)``
            has an item a row. Items without vectors (in quarantine, or not extracted yet) are left out.

        Raises:
            MissingVectorsError: no item has vectors, or some have only part of the layers or views.
            UnknownNameError: no such layer or view is stored.
        """
        rows = ItemRows.of(self, layers, split=split, source=source, space=space, views=views)
        X = rows.read(np.arange(len(rows)))
        items = [item for item in rows.items for _ in rows.views]
        return X, labels_array([item.label for item in items]), items

    def view_names(
        self,
        views: bool | Sequence[str] | None = True,
        layers: str | Sequence[str] | None = None,
        space: str | None = None,
    ) -> list[str]:
        """The stored views that a choice means, view 0 first, then by policy, seed and index.

        Args:
            views: names; True for all that are stored of any of these layers; None for view 0.
            layers: see `layer_names`.
            space: which space.

        Raises:
            UnknownNameError: no such view or layer is stored.
        """
        stored = self.space(space).layers
        names = layer_names.choose(layers, list(stored))
        return view_names.choose(views, (view for name in names for view in stored[name].views))

    def gather(self, sha256s: Sequence[bytes], layers: Sequence[str], space: str | None = None) -> list[np.ndarray]:
        """Vectors by content, in the order asked.

        Args:
            sha256s: SHA-256 of each image's bytes.
            layers: names of stored layers.
            space: which space.

        Returns:
            One float32 array (n, …) for each layer.

        Raises:
            MissingVectorsError: an image has no vector; the message says which.
        """
        return _twice(lambda: self._gathered(sha256s, layers, space))

    def _gathered(self, sha256s: Sequence[bytes], layers: Sequence[str], space: str | None) -> list[np.ndarray]:
        result = []
        where = self.where(layers, sha256s, space)
        for layer in layers:
            reader = self.column(layer, space)
            out = np.empty((len(sha256s), *reader.row_shape), np.float32)
            reader.gather(where[layer], out)
            result.append(out)
        return result

    def where(
        self, layers: Sequence[str], sha256s: Sequence[bytes], space: str | None = None, view: str = VIEW_0
    ) -> dict[str, np.ndarray]:
        """For each layer the (n, 2) pairs of shard and row at which these images' vectors of a view lie.

        Raises:
            MissingVectorsError: an image has no vector; the message says which.
        """
        found = {}
        wanted = list(dict.fromkeys(sha256s))
        for layer in layers:
            stand = places(self.catalogue, self.column(layer, space, view).column, wanted)
            absent = [sha256 for sha256 in wanted if sha256 not in stand]
            if absent:
                raise MissingVectorsError(
                    f"{len(absent)} of {len(wanted)} images have no {layer!r} vector in {self.path} (first: SHA-256 "
                    f"{absent[0].hex()}): they were never extracted, or were removed by `featcache gc` or `repair`. "
                    "Run `featcache extract` to compute them."
                )
            found[layer] = np.array([stand[sha256] for sha256 in sha256s], dtype=np.int64).reshape(-1, 2)
        return found

    def vectors(self, layer: str = "pooled", *, space: str | None = None, view: str = VIEW_0) -> Vectors:
        """All vectors of one layer by position, whether or not an item still refers to them."""
        return _twice(lambda: Vectors(self.column(self.layer_names(layer, space)[0], space, view)))

    def dataset(
        self,
        layers: str | Sequence[str] | None = None,
        *,
        split: str | None = None,
        source: str | None = None,
        space: str | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> FeatureDataset:
        """A torch map-style `Dataset` of (vector, class number) over the labelled items."""
        from featcache.store.torch_dataset import FeatureDataset

        return FeatureDataset(self, layers, split=split, source=source, space=space, labels=labels)

    def status(self) -> dict[str, Any]:
        """What the store holds, as `featcache.store.status.status` describes it."""
        return status.status(self)

    def quarantine(self, source: str | None = None, space: str | None = None) -> list[tuple[str, str]]:
        """The images that could not be used, as (URI, reason).

        Args:
            source: the source's name; may be left out where there is one.
            space: only those of this space; by default of all.
        """
        name, only = self.source(source), None if space is None else self.space(space).fingerprint
        rows = self.catalogue.query(
            "tt",
            "SELECT DISTINCT q.uri, q.reason FROM quarantine q JOIN sources s ON s.id = q.source_id "
            "JOIN spaces p ON p.id = q.space_id WHERE s.name = ? AND (? IS NULL OR p.fingerprint = ?) ORDER BY q.uri",
            (name, only, only),
        )
        return [(str(uri), str(reason)) for uri, reason in rows]

    def verify(self, *, quick: bool = False, progress: Progress | bool | None = False) -> verify.VerifyReport:
        """Check the store, as `featcache.store.verify.verify` does."""
        return verify.verify(self.path, quick=quick, progress=progress)

    def export(
        self,
        path: str | Path,
        *,
        split: str | None = None,
        layers: str | Sequence[str] | None = None,
        source: str | None = None,
        space: str | None = None,
    ) -> dict[str, Any]:
        """Write one plain file, ``.h5`` or ``.npz`` by its suffix, with features, labels, uris and classes of view 0.

        Returns:
            ``path``, ``n``, ``d`` and ``layers`` of what was written; ``views_left_out``, how many other views are
            stored of these layers.
        """
        names, chosen = self.layer_names(layers, space), self.space(space)
        X, y, items = self.arrays(split, names, source=source, space=space)
        export.write(Path(path), X, y, items, chosen.recipe, names)
        others = {view for name in names for view in chosen.layers[name].views} - {VIEW_0}
        return {"path": str(path), "n": len(X), "d": X.shape[1], "layers": names, "views_left_out": len(others)}

    def column(self, layer: str, space: str | None = None, view: str = VIEW_0) -> ColumnReader:
        """The reader of one stored layer and view."""
        chosen = self.space(space)
        if layer not in chosen.layers:
            raise UnknownNameError.among("stored layer", layer, chosen.layers)
        found = self.catalogue.query(
            "i",
            "SELECT k.id FROM columns k JOIN spaces p ON p.id = k.space_id "
            "WHERE p.fingerprint = ? AND k.layer = ? AND k.view = ?",
            (chosen.fingerprint, layer, view),
        )
        if not found:
            raise MissingVectorsError(
                f"{self.path} holds no view {view!r} of layer {layer!r}. Run `featcache extract` with this layer, and "
                "the --views and --seed of the others, to compute it; or use view 0 alone."
            )
        return ColumnReader(self.catalogue, self.maps, int(found[0][0]), chosen.fingerprint, layer, view)


def _twice(read: Callable[[], _T]) -> _T:
    """Read, and once more from the catalogue on if a compaction came between its answer and the reading."""
    try:
        return read()
    except ShardGoneError:
        return read()


def labels_array(labels: Sequence[str | None]) -> np.ndarray:
    """Labels as an array: text where every item has one, else objects with None."""
    if all(label is not None for label in labels):
        return np.array(labels, dtype=str)
    return np.array(labels, dtype=object)
