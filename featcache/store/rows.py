"""The items of a source together with where their vectors lie."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from featcache.core.errors import MissingVectorsError, ShardGoneError
from featcache.core.names import VIEW_0
from featcache.store.sources import judged
from featcache.store.spaces import Item

if TYPE_CHECKING:
    from featcache.store.column import ColumnReader
    from featcache.store.reader import StoreReader


class ItemRows:
    """Items by position, with their vectors read on demand.

    It holds the items and two numbers a layer and view for each, so it stays small however large the cache is.
    Only the path travels to another process, which opens the store for itself.

    With K views an item has K positions, one after another; with one, positions are those of the items.

    Attributes:
        items: n items, by source and URI.
        missing: the other items of the sources and split, which have no such vectors; those in quarantine included.
        layers: names of the layers, in network order.
        views: names of the K views, in order.
    """

    def __init__(
        self,
        store: StoreReader,
        space: str | None,
        layers: list[str],
        views: list[str],
        located: _Located,
    ) -> None:
        self._store, self._space, self.layers, self.views = store, space, layers, views
        self.items, self.missing, self._where = located
        self._readers: dict[tuple[str, str], ColumnReader] | None = None

    @classmethod
    def of(
        cls,
        store: StoreReader,
        layers: str | Sequence[str] | None = None,
        *,
        split: str | None = None,
        source: str | Sequence[str] | None = None,
        space: str | None = None,
        views: bool | Sequence[str] | None = None,
    ) -> ItemRows:
        """The items that have vectors of these layers; the arguments are those of `FeatureStore.arrays`."""
        names = store.layer_names(layers, space)
        chosen = store.view_names(views, names, space)
        located = _locate(store, names, split=split, source=source, space=space, views=chosen)
        return cls(store, space, names, chosen, located)

    @classmethod
    def of_contents(cls, store: StoreReader, layers: list[str], sha256s: Sequence[bytes], space: str) -> ItemRows:
        """View 0 of those images, listed by a source or not, that have vectors of all these layers."""
        found = [store.column(layer, space).places(sha256s) for layer in layers]
        having = [sha256 for sha256 in sha256s if all(sha256 in places for places in found)]
        where = {
            (layer, VIEW_0): np.array([places[sha256] for sha256 in having], dtype=np.int64).reshape(-1, 2)
            for layer, places in zip(layers, found, strict=True)
        }
        items = [Item("", "", sha256, None, None, None) for sha256 in having]
        return cls(store, space, layers, [VIEW_0], _Located(items, [], where))

    def __len__(self) -> int:
        return len(self.items) * len(self.views)

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """The shape of one image's activations, for each layer."""
        readers = self._open()
        return [readers[layer, self.views[0]].row_shape for layer in self.layers]

    def read(self, rows: np.ndarray) -> np.ndarray:
        """The vectors at these positions.

        Args:
            rows: (n,) int64 positions.

        Returns:
            (n, d) float32, each layer flattened, the layers one after another.

        Raises:
            MissingVectorsError: another process removed some of them since this was made.
        """
        try:
            return self._read(rows)
        except ShardGoneError:
            # Another process compacted the store, or took rows away: ask the catalogue once more.
            sha256s = [item.sha256 for item in self.items]
            self._where = {
                (layer, view): pairs
                for view in self.views
                for layer, pairs in self._store.where(self.layers, sha256s, self._space, view).items()
            }
            self._readers = None
            return self._read(rows)

    def _read(self, rows: np.ndarray) -> np.ndarray:
        readers, shapes = self._open(), self.shapes
        widths = [math.prod(shape) for shape in shapes]
        out = np.empty((len(rows), sum(widths)), np.float32)
        if len(readers) == 1:
            ((column, reader),) = readers.items()
            reader.gather(self._where[column][rows], out.reshape(len(rows), *shapes[0]))
            return out
        items, views = np.divmod(rows, len(self.views))
        for number, view in enumerate(self.views):
            at, start = np.flatnonzero(views == number), 0
            for layer, shape, width in zip(self.layers, shapes, widths, strict=True):
                part = np.empty((len(at), *shape), np.float32)
                readers[layer, view].gather(self._where[layer, view][items[at]], part)
                out[at, start : start + width] = part.reshape(len(at), width)
                start += width
        return out

    def _open(self) -> dict[tuple[str, str], ColumnReader]:
        if self._readers is None:
            self._readers = {
                (layer, view): self._store.column(layer, self._space, view)
                for layer in self.layers
                for view in self.views
            }
        return self._readers

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_readers": None}


class _Located(NamedTuple):
    items: list[Item]
    missing: list[Item]
    where: dict[tuple[str, str], np.ndarray]


def _locate(
    store: StoreReader,
    names: Sequence[str],
    *,
    split: str | None,
    source: str | Sequence[str] | None,
    space: str | None,
    views: Sequence[str],
) -> _Located:
    """The items that have vectors, those that have none, and for each layer and view (n, 2) pairs of shard and row.

    An image in quarantine may lack some of the layers or views; it is then left out.

    Raises:
        MissingVectorsError: no item has vectors, or some have only part of the layers or views.
    """
    items = store.items(split, source)
    sources = store.source_names(source)
    columns = [(layer, view) for layer in names for view in views]
    places: list[dict[bytes, tuple[int, int]]] = []
    for layer, view in columns:
        place: dict[bytes, tuple[int, int]] = {}
        for name in sources:
            found = store.catalogue.query(
                "hii",
                "SELECT r.sha256, r.shard_id, r.row FROM items i JOIN sources s ON s.id = i.source_id "
                "JOIN rows r ON r.sha256 = i.sha256 AND r.column_id = ? WHERE s.name = ?",
                (store.column(layer, space, view).column, name),
            )
            place.update((sha256, (shard, row)) for sha256, shard, row in found)
        places.append(place)
    having = [item for item in items if any(item.sha256 in p for p in places)]
    partial = [item for item in having if not all(item.sha256 in p for p in places)]
    if partial:
        lost = _unusable(store, sources, space, columns, places, {(i.source, i.uri): i.sha256 for i in partial})
        having = [item for item in having if (item.source, item.uri) not in lost]
        partial = [item for item in partial if (item.source, item.uri) not in lost]
    if partial:
        raise MissingVectorsError(_lacking(partial, having, names, views))
    if not having:
        raise MissingVectorsError(
            f"No image of source {', '.join(map(repr, sources))} has vectors of {', '.join(names)}. Run `featcache "
            "extract` first."
        )
    where = {
        column: np.array([p[item.sha256] for item in having], dtype=np.int64)
        for column, p in zip(columns, places, strict=True)
    }
    there = {(item.source, item.uri) for item in having} if len(having) < len(items) else set()
    missing = [item for item in items if (item.source, item.uri) not in there] if there else []
    return _Located(having, missing, where)


def _unusable(
    store: StoreReader,
    sources: Sequence[str],
    space: str | None,
    columns: Sequence[tuple[str, str]],
    places: Sequence[Mapping[bytes, tuple[int, int]]],
    partial: Mapping[tuple[str, str], bytes],
) -> set[tuple[str, str]]:
    """Source and URI of the images that lack a column because they, or the values of that column, are in quarantine."""
    lost = set()
    for name in sources:
        unusable = store.catalogue.query(
            "tt",
            "SELECT q.uri, q.versions FROM quarantine q JOIN sources s ON s.id = q.source_id "
            "JOIN spaces p ON p.id = q.space_id WHERE s.name = ? AND p.fingerprint = ?",
            (name, store.space(space).fingerprint),
        )
        for uri, versions in unusable:
            sha256, (_, bad) = partial.get((name, uri)), judged(versions)
            if not bad or any(
                column in bad and sha256 is not None and sha256 not in p
                for column, p in zip(columns, places, strict=True)
            ):
                lost.add((name, uri))
    return lost


def _lacking(partial: Sequence[Item], having: Sequence[Item], layers: Sequence[str], views: Sequence[str]) -> str:
    some, first = f"{len(partial)} of {len(having)} images have", f"(first: {partial[0].uri})"
    if len(views) == 1:
        return (
            f"{some} only part of the layers {', '.join(layers)} {first}. Run `featcache extract` with these --layers "
            "to compute the rest."
        )
    return (
        f"{some} only part of the {len(views)} views of {', '.join(layers)} {first}. Run `featcache extract` with the "
        "--views, --seed and --layers that the others had to compute the rest, or use view 0 alone (`featcache train "
        "--views first`)."
    )
