"""`FeatureStore`: a store opened for reading, as people use it: arrays, a torch dataset, status, checks, export.

Arrays come in a fixed order (source, then URI), one row an item and view.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featcache.core.arguments import checked
from featcache.core.html import html_table
from featcache.core.names import VIEW_0
from featcache.core.outputs import VECTORS, check_output
from featcache.store import completeness, export, status, verify
from featcache.store.reader import StoreReader
from featcache.store.rows import ItemRows

if TYPE_CHECKING:
    from featcache.core.progress import Progress
    from featcache.store.spaces import Item
    from featcache.store.torch_dataset import TorchDataset


class FeatureStore(StoreReader):
    """A store opened for reading; get one from `FeatureStore.open` or ``featcache.open``."""

    @classmethod
    @checked
    def open(cls, store: str | Path | FeatureStore) -> FeatureStore:
        """Open a store for reading, given its folder; an open store is returned as it is.

        Raises:
            NotAStoreError: there is no store.
            StoreFormatError: the store was written by a newer featcache.
            DamagedStoreError: the catalogue is not readable as one.

        Example:
            >>> store = fc.open("pets.fcache")
            >>> len(store.items()), store.spaces[0].recipe.backbone
            (24, 'bundled:efficientnet_lite0')
        """
        return store if isinstance(store, FeatureStore) else cls(store)

    @checked
    def arrays(
        self,
        split: str | None = None,
        layers: str | Sequence[str] | None = None,
        *,
        source: str | Sequence[str] | None = None,
        space: str | None = None,
        views: bool | Sequence[str] | None = None,
    ) -> tuple[np.ndarray, np.ndarray, list[Item]]:
        """All vectors of a source as one array.

        Args:
            split: only items of this split.
            layers: see `layer_names`; several layers are concatenated as they were stored.
            source: the source's name, or several; may be left out where there is one.
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

    @checked
    def dataset(
        self,
        layers: str | Sequence[str] | None = None,
        *,
        split: str | None = None,
        source: str | Sequence[str] | None = None,
        space: str | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> TorchDataset:
        """A torch map-style `Dataset` of (vector, class number) over the labeled items."""
        from featcache.store.torch_dataset import TorchDataset

        return TorchDataset(self, layers, split=split, source=source, space=space, labels=labels)

    def _repr_html_(self) -> str:
        return html_table(repr(self), {name: value for name, value in self.status().items() if name != "store"})

    def status(self) -> dict[str, Any]:
        """What the store holds, as `featcache.store.status.status` describes it."""
        return status.status(self)

    @checked
    def incomplete(self, source: str | None = None, *, space: str | None = None) -> list[str]:
        """What is missing of a source: how many images are not extracted yet, which classes have no usable image.

        Args:
            source: the source's name; may be left out where there is one.
            space: only what is missing in this space, by fingerprint or backbone; by default in each that `extract`
                was asked for.

        Returns:
            Sentences; none where all that the source lists was extracted, in all layers and views asked for.

        Example:
            >>> fc.open("pets.fcache").incomplete()
            []
        """
        return completeness.incomplete(self, self.source(source), space)

    @checked
    def verify(self, *, quick: bool = False, progress: Progress | bool | None = False) -> verify.VerifyReport:
        """Check the store, as `featcache.store.verify.verify` does."""
        return verify.verify(self.path, quick=quick, progress=progress)

    @checked
    def export(
        self,
        path: str | Path,
        *,
        split: str | None = None,
        layers: str | Sequence[str] | None = None,
        source: str | Sequence[str] | None = None,
        space: str | None = None,
        force: bool = False,
    ) -> dict[str, Any]:
        """Write one plain file, ``.h5`` or ``.npz`` by its suffix, with features, labels, uris and classes of view 0.

        The classes are those of the whole source, so files of its splits number them alike.
        Such a file that is there is replaced, any other only with *force*.

        Returns:
            ``path``, ``n``, ``d`` and ``layers`` of what was written; ``views_left_out``, how many other views are
            stored of these layers.
        """
        check_output(path, VECTORS, force=force)
        names, chosen = self.layer_names(layers, space), self.space(space)
        X, _, items = self.arrays(split, names, source=source, space=space)
        export.write(Path(path), X, items, self.classes(source), chosen.recipe, names)
        others = {view for name in names for view in chosen.layers[name].views} - {VIEW_0}
        return {"path": str(path), "n": len(X), "d": X.shape[1], "layers": names, "views_left_out": len(others)}


def labels_array(labels: Sequence[str | None]) -> np.ndarray:
    """Labels as an array: text where every item has one, else objects with None."""
    if all(label is not None for label in labels):
        return np.array(labels, dtype=str)
    return np.array(labels, dtype=object)
