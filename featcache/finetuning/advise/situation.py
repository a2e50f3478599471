"""What all measurements share: the store, the network, the items, and the time that is left."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from featcache.backbones import Backbone
from featcache.core.errors import MissingVectorsError, UnknownNameError
from featcache.core.progress import Progress
from featcache.finetuning.advise.budget import Budget
from featcache.finetuning.advise.learning_items import LearningItems
from featcache.finetuning.advise.outcome import Outcome
from featcache.finetuning.advise.rates import ExtractionRate, extraction_rate
from featcache.store import FeatureStore
from featcache.training.activations import LEFT_FREE, extract_known, needed
from featcache.training.dataset import FeatureDataset, Selection

_GUESSED_RATE = 15.0
"""Seconds that it may take to load a network and measure its speed, before anything is known of it."""


@dataclass
class Situation:
    """What is measured on, and with what.

    Attributes:
        path: of the store.
        space: fingerprint of the space.
        source: name of the source.
        labels: a file of labels that take the place of the stored ones.
        seed: of all that is drawn.
        backbone: the network; None where it cannot be had, and then *why_not* says why.
        items: to learn from, with ``pooled``.
        budget: the time.
        shown: progress.
        watched: the same for work that may be ended when the budget is spent.
        whole: the softmax on ``pooled``, learned from all items.
        layers: all blocks and ``pooled``, in network order.
        no_rate: why it is not known how fast images are extracted, once that was asked.
    """

    path: Path
    space: str
    source: str
    labels: str | Path | None
    seed: int
    backbone: Backbone | None
    why_not: str
    items: LearningItems
    budget: Budget
    shown: Progress
    watched: Progress
    whole: Outcome
    layers: list[str]
    no_rate: str = ""
    _rate: ExtractionRate | None = field(default=None)
    _rate_known: bool = field(default=False)

    @property
    def store(self) -> FeatureStore:
        """The store, opened again since it may have grown."""
        return FeatureStore.open(self.path)

    def vectors(self, layers: Sequence[str], *, views: bool | Sequence[str] = False) -> FeatureDataset:
        """The items to learn from with other layers.

        Raises:
            UnknownNameError, MissingVectorsError: not all are in the store.
        """
        return self.items.of(self._all(layers, views))

    def _all(self, layers: Sequence[str], views: bool | Sequence[str] = False) -> FeatureDataset:
        return FeatureDataset.from_store(
            self.store, list(layers), Selection(self.source, self.space, labels=self.labels), views=views
        )

    def widths(self, layers: Sequence[str]) -> list[int]:
        """How many numbers a vector of each of these stored layers has; no vector is read for that."""
        columns = self.store.space(self.space).layers
        return [math.prod(columns[layer].shape) for layer in layers]

    def missing(self, layers: Sequence[str], views: int = 1) -> tuple[int, int]:
        """(Image, view) passes that the network has to do for these layers, and bytes that they will take."""
        if self.backbone is None or (views == 1 and self._there(layers)):
            return 0, 0
        store = self.store
        wanted = [needed(store, self.backbone, layer, self._selection, views=views, seed=self.seed) for layer in layers]
        return max(w.images * w.views - w.stored for w in wanted), sum(w.bytes for w in wanted)

    def rate(self) -> ExtractionRate | None:
        """How fast images are extracted, measured once; None where the budget or the images do not allow it."""
        if not self._rate_known and self.backbone is not None:
            self._rate_known, backbone = True, self.backbone
            self._rate = self.budget.run(
                "speed of extraction",
                _GUESSED_RATE,
                lambda: extraction_rate(self.store, backbone, self.layers, self.source, self.shown),
            )
            self.no_rate = self.budget.parts[-1].reason or ""
        return self._rate

    def extraction_seconds(self, layers: Sequence[str], views: int = 1) -> float | None:
        """About how long it takes until these layers are stored; None where no rate is known."""
        passes, _ = self.missing(layers, views)
        if not passes:
            return 0.0
        rate = self.rate()
        return None if rate is None else rate.seconds(passes)

    def provide(self, what: str, layers: Sequence[str], views: int = 1) -> bool:
        """Whether these layers are in the store, after an extraction where that fits; else the reason is noted."""
        if views == 1 and self._there(layers):
            return True
        if self.backbone is None:
            self.budget.leave_out(what, self.why_not)
            return False
        backbone = self.backbone
        passes, room = self.missing(layers, views)
        free = shutil.disk_usage(self.path).free
        if room > (1 - LEFT_FREE) * free:
            self.budget.leave_out(what, f"it needs {room / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB are free")
            return False
        if passes:
            seconds = self.extraction_seconds(layers, views)
            if seconds is None:
                self.budget.leave_out(
                    what, f"its layers are not stored, and how long that takes is not known: {self.no_rate}"
                )
                return False

            def extracted() -> bool:
                extract_known(
                    self.store, backbone, layers, self._selection, views=views, seed=self.seed, progress=self.shown
                )
                return True

            if self.budget.run(f"extraction for {what}", seconds, extracted) is None:
                self.budget.leave_out(what, "its layers could not be extracted, see there")
                return False
        if not self._there(layers):
            self.budget.leave_out(what, "not all items have its layers, as some images are gone or in quarantine")
            return False
        return True

    @property
    def _selection(self) -> Selection:
        return Selection(self.source, self.space, labels=self.labels)

    def _there(self, layers: Sequence[str]) -> bool:
        try:
            self.items.check(self._all(layers))
        except (MissingVectorsError, UnknownNameError):
            return False
        return True
