"""`StoreReader`: what a store holds, by source, item, space, layer and view.

Opening reads a few rows of the catalogue and writes nothing. Vectors come through memory maps, in float32, in the
order asked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np

from featcache.core import names as view_names
from featcache.core.arguments import checked
from featcache.core.errors import (
    DamagedStoreError,
    MissingVectorsError,
    ShardGoneError,
    StoreFormatError,
    UnknownNameError,
    UsageError,
)
from featcache.core.labels import split_name
from featcache.core.names import GIVEN, VIEW_0
from featcache.core.recipe import Recipe
from featcache.store import spaces as layer_names
from featcache.store.catalogue import Catalogue
from featcache.store.column import ColumnReader, Vectors
from featcache.store.folder import CATALOGUE, has_catalogue, lost_catalogue, no_store
from featcache.store.shard_maps import ShardMaps, row_shape
from featcache.store.spaces import Item, LayerColumn, Pending, Space, named, parsed

_T = TypeVar("_T")
_SHA256S_PER_QUERY = 500


class StoreReader:
    """A store opened for reading, without what is built on its rows (`featcache.store.FeatureStore`)."""

    @checked
    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()  # a program may change its folder
        if not self.path.exists():
            raise no_store(self.path)
        if not has_catalogue(self.path):
            if lost_catalogue(self.path):
                raise DamagedStoreError(f"{self.path} has lost its {CATALOGUE}. Run `featcache repair {self.path}`.")
            raise no_store(self.path)
        self.catalogue = Catalogue(self.path / CATALOGUE)
        self.maps = ShardMaps(self.path)

    def __reduce__(self) -> tuple[type[Self], tuple[str]]:
        # A spawned worker opens the store for itself: connections and maps do not travel.
        return type(self), (str(self.path),)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"

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

    @checked
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
            raise UsageError(f"{self.path} holds several spaces that match: {named(found)}. Choose one with --space.")
        return found[0]

    def sources(self) -> dict[str, str]:
        """The sources by name, with their roots."""
        return dict(self.catalogue.query("tt", "SELECT name, root FROM sources ORDER BY name"))

    @checked
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
            raise UsageError(
                f"{self.path} holds several sources: {self._described_sources()}. Choose one with --source."
            )
        if source not in names:
            raise UnknownNameError.among("source", source, names)
        return source

    def _described_sources(self) -> str:
        rows = self.catalogue.query(
            "tii",
            "SELECT s.name, COUNT(i.source_id), COUNT(i.label) FROM sources s LEFT JOIN items i ON i.source_id = s.id "
            "GROUP BY s.name ORDER BY s.name",
        )
        return ", ".join(f"{name} ({images:,} images, {labels or 'no'} labels)" for name, images, labels in rows)

    @checked
    def source_names(self, source: str | Sequence[str] | None = None) -> list[str]:
        """The sources that a choice means, sorted, each once.

        Args:
            source: a name or several; None means the only one, as for `source`.

        Raises:
            UsageError: several sources and none chosen; or an empty choice.
            UnknownNameError: none has such a name.
        """
        if source is None or isinstance(source, str):
            return [self.source(source)]
        if not source:
            raise UsageError("The choice of sources is empty. Name one or more of them, or give None for the only one.")
        return sorted({self.source(name) for name in source})

    @checked
    def items(self, split: str | None = None, source: str | Sequence[str] | None = None) -> list[Item]:
        """The images of one or more sources by source and URI, those in quarantine included.

        Args:
            split: only items of this split.
            source: the source's name, or several; may be left out where there is one.
        """
        found: list[Item] = []
        for name in self.source_names(source):
            rows = self.catalogue.query(
                "thTTT",
                "SELECT i.uri, i.sha256, i.label, i.split, i.grp FROM items i "
                "JOIN sources s ON s.id = i.source_id WHERE s.name = ? ORDER BY i.uri",
                (name,),
            )
            found += [Item(name, *row) for row in rows]
        if split is None:
            return found
        wanted = split_name(split)
        chosen = [item for item in found if item.split == wanted]
        if not chosen:
            raise UnknownNameError.among("split", split, sorted({item.split for item in found if item.split}))
        return chosen

    @checked
    def classes(self, source: str | Sequence[str] | None = None) -> list[str]:
        """The labels of whole sources, sorted: a class has the same number in every split and every file.

        Args:
            source: the source's name, or several; may be left out where there is one.
        """
        return sorted({item.label for item in self.items(source=source) if item.label is not None})

    @checked
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

    @checked
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

    @checked
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

    @checked
    def has(
        self, sha256s: Sequence[bytes], layer: str = "pooled", view: str = VIEW_0, space: str | None = None
    ) -> np.ndarray:
        """Which of these images have a vector of one layer and view.

        Args:
            sha256s: SHA-256 of each image's bytes, n of them.
            layer: name of a layer, which need not be stored.
            view: name of a view, likewise.
            space: which space.

        Returns:
            (n,) bool.
        """
        stored = self.space(space).layers.get(layer)
        if stored is None or view not in stored.views:
            return np.zeros(len(sha256s), bool)
        there = self.column(layer, space, view).places(list(dict.fromkeys(sha256s)))
        return np.array([sha256 in there for sha256 in sha256s], bool)

    @checked
    def listed(self, sha256s: Sequence[bytes]) -> set[bytes]:
        """Those of these images (SHA-256s) that some source lists."""
        found: set[bytes] = set()
        for start in range(0, len(sha256s), _SHA256S_PER_QUERY):
            some = tuple(sha256s[start : start + _SHA256S_PER_QUERY])
            marks = ",".join("?" * len(some))
            rows = self.catalogue.query("h", f"SELECT DISTINCT sha256 FROM items WHERE sha256 IN ({marks})", some)
            found.update(sha256 for (sha256,) in rows)
        return found

    @checked
    def columns_of(self, source: str, space: str) -> list[tuple[str, str]]:
        """The (layer, view) of a space of which at least one image of a source has a vector."""
        return self.catalogue.query(
            "tt",
            "SELECT k.layer, k.view FROM columns k JOIN spaces p ON p.id = k.space_id WHERE p.fingerprint = ? "
            "AND EXISTS (SELECT 1 FROM items i JOIN sources s ON s.id = i.source_id JOIN rows r ON r.column_id = k.id "
            "AND r.sha256 = i.sha256 WHERE s.name = ?) ORDER BY k.position, k.layer, k.view",
            (self.space(space).fingerprint, self.source(source)),
        )

    def sides(self) -> dict[bytes, tuple[str, str]]:
        """The exceptions to the rule by which images are held out.

        Returns:
            By SHA-256 the part, ``train``, ``test`` or ``neither``, and the reason, see `featcache.metrics.holdout`;
            ``recorded`` by an earlier version.
        """
        rows = self.catalogue.query("htt", "SELECT sha256, part, reason FROM holdout")
        return {sha256: (part, reason) for sha256, part, reason in rows}

    def settings(self) -> dict[str, str]:
        """What was settled once for the whole store, such as ``holdout_seed``."""
        return dict(self.catalogue.query("tt", "SELECT key, value FROM settings"))

    @checked
    def source_settings(self, source: str) -> dict[str, Any]:
        """What `extract` was told of a source: ``path``, ``labels``, ``split``, …; empty where an earlier one ran."""
        ((text,),) = self.catalogue.query("t", "SELECT settings FROM sources WHERE name = ?", (self.source(source),))
        return parsed(text)

    @checked
    def pending(self, source: str) -> list[Pending]:
        """The images of a source that a run listed and did not come to, in URI order."""
        name = self.source(source)
        rows = self.catalogue.query(
            "tTTT",
            "SELECT p.uri, p.label, p.split, p.grp FROM pending p JOIN sources s ON s.id = p.source_id "
            "WHERE s.name = ? ORDER BY p.uri",
            (name,),
        )
        return [Pending(*row) for row in rows]

    @checked
    def requests(self, source: str) -> dict[str, dict[str, Any]]:
        """What `extract` was asked for of a source, by the fingerprint of the space: layers, views, seed, …."""
        name = self.source(source)
        rows = self.catalogue.query(
            "tt",
            "SELECT p.fingerprint, r.request FROM requests r JOIN sources s ON s.id = r.source_id "
            "JOIN spaces p ON p.id = r.space_id WHERE s.name = ? ORDER BY p.id",
            (name,),
        )
        return {fingerprint: parsed(text) for fingerprint, text in rows}

    @checked
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
            stand = self.column(layer, space, view).places(wanted)
            absent = [sha256 for sha256 in wanted if sha256 not in stand]
            if absent:
                raise MissingVectorsError(
                    f"{len(absent)} of {len(wanted)} images have no {layer!r} vector in {self.path} (first: SHA-256 "
                    f"{absent[0].hex()}): they were never extracted, or were removed by `featcache gc` or `repair`. "
                    "Run `featcache extract` to compute them."
                )
            found[layer] = np.array([stand[sha256] for sha256 in sha256s], dtype=np.int64).reshape(-1, 2)
        return found

    @checked
    def vectors(self, layer: str = "pooled", *, space: str | None = None, view: str = VIEW_0) -> Vectors:
        """All vectors of one layer by position, whether or not an item still refers to them."""
        return _twice(lambda: Vectors(self.column(self.layer_names(layer, space)[0], space, view)))

    @checked
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

    @checked
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
