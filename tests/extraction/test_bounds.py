"""However many images there are, only so many are in memory at one time, views and batches on their way included."""

from __future__ import annotations

import functools
import threading
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import featcache as fc
from featcache.backbones import Layer, tiny_backbone
from featcache.core.names import VIEW_0
from featcache.core.progress import Silent
from featcache.extraction import ExtractReport
from featcache.extraction.run import Run
from featcache.images.augmentation import AugmentedView, views_beside
from featcache.images.entry import Entry
from featcache.store import StoreWriter
from featcache.store.sources import SourceRecords

WORKERS = 2
IN_A_PASS = 4
AHEAD = 4 * IN_A_PASS
"""Images that may be read before their turn: four passes of them."""


class Alive:
    """Counts the images that anything still holds."""

    def __init__(self) -> None:
        self.count, self._lock = 0, threading.Lock()

    def watched(self, pixels: np.ndarray) -> np.ndarray:
        with self._lock:
            self.count += 1
        weakref.finalize(pixels, self._gone)
        return pixels

    def _gone(self) -> None:
        with self._lock:
            self.count -= 1


class Watching:
    """The tiny backbone, whose images are counted."""

    def __init__(self, alive: Alive) -> None:
        self._inner, self._alive = tiny_backbone(), alive

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def prepare(self, image: Any, sha256: bytes | None = None) -> np.ndarray:
        return self._alive.watched(self._inner.prepare(image, sha256))


class WatchedView:
    """A view whose images are counted."""

    def __init__(self, view: AugmentedView, alive: Alive) -> None:
        self.name, self._view, self._alive = view.name, view, alive

    def pixels(self, *arguments: Any) -> np.ndarray:
        return self._alive.watched(self._view.pixels(*arguments))


class Slow:
    """Passes that take their time, while whoever may reads on, and note how many images anything holds then."""

    runtime, batch_size = "own", IN_A_PASS

    def __init__(self, parallel: bool, alive: Alive) -> None:
        self.parallel, self.alive, self.most = parallel, alive, 0
        self.notes: list[str] = []

    def ready(self, batch: np.ndarray, layers: Sequence[Layer]) -> None:
        pass

    def forward(self, batch: np.ndarray, layers: Sequence[Layer]) -> dict[str, np.ndarray]:
        time.sleep(0.05)
        self.most = max(self.most, self.alive.count)
        return {layer.name: batch.mean((2, 3)) for layer in layers}


def noise(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8))


@pytest.mark.parametrize("views", [1, 4])
@pytest.mark.parametrize("parallel", [False, True])
def test_only_so_many_images_are_in_memory(tmp_path: Path, parallel: bool, views: int) -> None:
    count = 120 // views
    entries = [Entry(f"{i:03}", f"{i:03}", None, None, None, functools.partial(noise, i)) for i in range(count)]
    alive = Alive()
    net, passes = Watching(alive), Slow(parallel, alive)
    beside: Any = [WatchedView(view, alive) for view in views_beside(views, 0)]
    layers, report = net.resolve_layers(["pooled"]), ExtractReport("", "", "", count, views)
    with StoreWriter(tmp_path / "s.fcache") as writer:
        records, space = SourceRecords(writer.catalogue, "noise", "/noise"), writer.space(net.recipe)
        for view in (VIEW_0, *(view.name for view in beside)):
            space.declare("pooled", view, layers[0].position)
        run = Run(net, layers, records, space, report, views=beside, config=fc.ExtractionConfig())
        run.over(entries, passes, WORKERS, Silent())
        run.finish()
    assert (report.computed, report.left) == (120, 0)
    # Batches: one that fills, one that is put and, computed beside the reading, one for each thread and one to spare.
    batches = 2 + (WORKERS + 1 if parallel else 0)
    # What is read last stands for all views of an image, as does what each thread has in hand.
    assert passes.most <= max(AHEAD, 2 * WORKERS * views) + batches * IN_A_PASS + (1 + WORKERS) * views
