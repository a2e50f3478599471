"""`CachedEmbedder`: a frozen backbone as a scikit-learn transformer that computes each image once."""

from __future__ import annotations

import math
import multiprocessing
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin

from featcache.backbones.extractor import held
from featcache.core.arguments import checked, described
from featcache.core.errors import UnusableImageError, UsageError
from featcache.core.files import absolute
from featcache.core.names import GIVEN, PATHS
from featcache.core.progress import Progress, choose, counted
from featcache.extraction import NothingUsableError
from featcache.extraction.extract import extract
from featcache.images.decode import NO_IMAGE, is_no_image
from featcache.images.image_list import image_list
from featcache.images.in_memory import GivenImage, GivenImages, given
from featcache.store import FeatureStore
from featcache.store.folder import has_catalogue

if TYPE_CHECKING:
    from featcache.backbones import Backbone, Layer
    from featcache.extraction.embed import ImageLike

_NAMED = 5
"""Images that cannot be used which an error names."""


class CachedEmbedder(TransformerMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Images to vectors, looked up in a store; only what is missing is computed, and then stored.

    It learns nothing, so it can be part of a cross-validated pipeline: no image is computed twice, whatever the folds,
    the grid or the number of processes (several that start on an empty store may each compute the same images; call
    `transform` once before). If nothing is missing, torch is not imported.

    A file is identified by the SHA-256 of its bytes, so vectors that `featcache.extract` stored are used wherever the
    file lies now. An image in memory is identified by the SHA-256 of its RGB pixels. Images that no source of the store
    lists are added to one: files to the source ``paths``, images in memory to ``memory``. `featcache.gc` keeps the
    vectors of both until it is told to empty that source by name.

    Vectors are returned as stored. One of several layers may have far larger values than another: add a
    ``StandardScaler``.

    Args:
        backbone: a full name, or a `Backbone`.
        store: the store's folder; created if missing.
        layers: as for `featcache.extract`: ``pooled``, ``blocks.5:mean``, ``pooled+blocks.5:mean``, a glob,
            or a list of these.
        input_size: as for `featcache.extract`, whole images; for anything else give ``Backbone.with_input``.
        progress: True for a bar, False for none, None for a bar on a terminal, or an object that is told.

    Example:
        ``make_pipeline(fc.CachedEmbedder("timm:vit_small_patch14_dinov2", "s.fcache"), LogisticRegression())``
    """

    @checked
    def __init__(
        self,
        backbone: str | Backbone,
        store: str | Path,
        layers: str | Sequence[str] = "pooled",
        *,
        input_size: int | None = None,
        progress: Progress | bool | None = None,
    ) -> None:
        self.backbone = backbone
        # A program may change its folder before the first call.
        self.store = store if os.path.isabs(store) else absolute(store)
        self.layers = layers
        self.input_size = input_size
        self.progress = progress

    @checked
    def fit(self, X: Any, y: Any = None) -> CachedEmbedder:
        """Check the backbone's name and the images; nothing is learned.

        Args:
            X: n images, as for `transform`.
            y: not used.

        Raises:
            UnknownNameError: there is no such backbone.
            UsageError: these are no images.
        """
        self._network()
        _images(X)
        return self

    @checked
    def transform(self, X: Any) -> np.ndarray:
        """Vectors of images.

        Args:
            X: n images in a list, a one-dimensional object array or a series: paths, PIL images, or arrays
                (h, w), (h, w, 1), (h, w, 3) or (h, w, 4) of uint8 or uint16. An array (n, h, w, c) is n images.

        Returns:
            (n, d) float32, in the order given; the layers one after another in network order, flattened.

        Raises:
            UnusableImageError: some images cannot be used; the message counts them, and names the first five. What was
                computed is kept. A file that is no image at all is not recorded; a damaged image is quarantined.
            SourceError: a path does not exist.
            UsageError: these are no images.
            UnknownNameError: there is no such backbone or layer.
        """
        images, network = _images(X), self._network()
        layers = self._layers(network)
        # Bars of several processes would overwrite each other.
        quiet = self.progress is None and multiprocessing.current_process().name != "MainProcess"
        with held(network), choose(False if quiet else self.progress) as bar:
            bar.start("look up", len(images), "images")
            listed, problems = [], list[str]()
            for place, image in enumerate(images):
                try:
                    listed.append(given(image, place))
                except UnusableImageError as error:
                    problems.append(str(error).removesuffix("."))
                bar.advance()
            wanted = self._wanted(listed, network, layers)
            if wanted:
                problems += self._compute(wanted, network, layers, bar)
            self._refuse(problems)
        if not images:
            return np.empty((0, sum(math.prod(layer.shape) for layer in layers)), np.float32)
        store = FeatureStore.open(self.store)
        parts = store.gather(
            [one.sha256 for one in listed], [layer.name for layer in layers], network.recipe.fingerprint
        )
        return np.concatenate([part.reshape(len(images), -1) for part in parts], axis=1)

    @checked
    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """(d,) names, ``pooled_0`` and so on: the layer, and the place in it."""
        found = [f"{layer.name}_{i}" for layer in self._layers(self._network()) for i in range(math.prod(layer.shape))]
        return np.array(found, dtype=object)

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        tags.requires_fit = False
        tags.no_validation = True
        return tags

    def _network(self) -> Backbone:
        from featcache import backbones

        network = backbones.get(self.backbone) if isinstance(self.backbone, str) else self.backbone
        return network.with_input(self.input_size)

    def _layers(self, network: Backbone) -> list[Layer]:
        return network.resolve_layers([self.layers] if isinstance(self.layers, str) else list(self.layers))

    def _wanted(self, listed: Iterable[GivenImage], network: Backbone, layers: Sequence[Layer]) -> list[GivenImage]:
        """The images that lack a vector or that no source lists, each content once."""
        once = {one.sha256: one for one in listed}
        if not has_catalogue(Path(self.store)):
            return list(once.values())
        store = FeatureStore.open(self.store)
        space = next((s for s in store.spaces if s.fingerprint == network.recipe.fingerprint), None)
        if space is None:
            return list(once.values())
        ready = store.listed(list(once))
        for layer in layers:
            asked = list(ready)
            ready = {asked[i] for i in np.flatnonzero(store.has(asked, layer.name, space=space.fingerprint))}
        return [one for sha256, one in once.items() if sha256 not in ready]

    def _compute(
        self, wanted: Sequence[GivenImage], network: Backbone, layers: Sequence[Layer], progress: Progress
    ) -> list[str]:
        """Store the vectors of the images; returns name and reason of each that cannot be used."""
        # A file that is no image at all is not recorded.
        wrong = {one.sha256 for one in wanted if one.source == PATHS and is_no_image(one.entry.place)}
        problems = [f"{one.name}: {NO_IMAGE}" for one in wanted if one.sha256 in wrong]
        for source in GIVEN:
            of_source = [one for one in wanted if one.source == source and one.sha256 not in wrong]
            if not of_source:
                continue
            try:
                report = extract(
                    GivenImages(source, of_source),
                    self.store,
                    backbone=network,
                    layers=[layer.name for layer in layers],
                    progress=progress,
                )
            except NothingUsableError as error:
                report = error.report
            names = {one.entry.uri: one.name for one in of_source}
            problems += [f"{names[uri]}: {reason}" for uri, reason in report.quarantine]
        if not problems:
            changed = self._wanted(wanted, network, layers)
            problems = [f"{one.name}: it was changed while it was read" for one in changed]
        return problems

    def _refuse(self, problems: Sequence[str]) -> None:
        """Raise UnusableImageError where images cannot be used."""
        if problems:
            more = f"; and {len(problems) - _NAMED:,} more" if len(problems) > _NAMED else ""
            raise UnusableImageError(
                f"{counted(len(problems), 'images')} cannot be used: {'; '.join(problems[:_NAMED])}{more}. The others "
                f"are stored in {self.store}. Leave these out of the list, or repair them; of a source that was "
                "extracted, `FeatureStore.arrays` gives the items that can be used."
            )


def _images(X: Any) -> list[ImageLike]:
    """The images one by one.

    Raises:
        UsageError: one image alone, or no images.
    """
    if isinstance(X, (str, os.PathLike)) or not hasattr(X, "__len__"):
        raise UsageError(f"Give a list of images, even of one, not {described(X)}.")
    if isinstance(X, np.ndarray) and X.ndim not in (1, 4):
        raise UsageError(
            f"Give n images as a list, as an array (n,) of objects or as an array (n, h, w, c), not as {X.shape}."
        )
    return image_list(X)
