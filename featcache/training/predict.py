"""A run of `predict` over many images: listed once, answered batch by batch, and able to go on where it was cut off."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from featcache.core.progress import choose
from featcache.extraction.embed import listed, name_of
from featcache.extraction.known_vectors import store_among
from featcache.training.prediction_table import PredictionTable, asked_for

if TYPE_CHECKING:
    from featcache.backbones import Backbone
    from featcache.store import FeatureStore
    from featcache.training.bundle import Bundle, Prediction


class Run:
    """Predictions for files, in a fixed order.

    Args:
        bundle: the head.
        images: files, folders, tar files and stores.
        top, store, backbone: as for `Bundle.predict`.

    Raises:
        SourceError: there is nothing to ask about.
    """

    def __init__(
        self,
        bundle: Bundle,
        images: Sequence[Path],
        *,
        top: int | None = None,
        store: Path | None = None,
        backbone: Backbone | None = None,
    ) -> None:
        _ = bundle.classifier  # raises before anything is listed
        self.bundle, self.top, self.backbone = bundle, top, backbone
        self.images = listed(list(images))
        self.names = [name_of(image, place) for place, image in enumerate(self.images)]
        self.store: Path | FeatureStore | None = store
        if store is None and bundle.recipe is not None:
            self.store = store_among(list(images), bundle.recipe, [layer.name for layer in bundle.layers])

    def batches(self, begin: int = 0) -> Iterator[list[Prediction]]:
        """The predictions from image *begin* on, with a bar."""
        with choose(True) as bar:
            bar.start("predict", len(self.images) - begin, "images")
            rest = self.images[begin:]
            for batch in self.bundle.predictions(rest, top=self.top, backbone=self.backbone, store=self.store):
                yield batch
                bar.advance(len(batch))

    def table(self, head: Path, path: Path, *, safe: bool, force: bool) -> PredictionTable:
        """Begin the table of this run, or go on with it; *head* is the file of the head."""
        return PredictionTable(
            path, asked_for(head, self.images, self.names, self.top), self.names, safe=safe, force=force
        )
