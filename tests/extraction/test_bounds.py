"""However many images there are, only so many are in memory at one time, views and batches on their way included."""

from __future__ import annotations

import functools
import gc
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featcache.backbones import Layer, tiny_backbone
from featcache.extraction import ExtractReport
from featcache.extraction.reader import Picture
from featcache.extraction.run import Run
from featcache.images.augmentation import views_beside
from featcache.images.entry import Entry
from featcache.progress import Silent
from featcache.store import StoreWriter
from featcache.store.source_records import SourceRecords
from featcache.store.view_names import VIEW_0

WORKERS = 2
IN_A_PASS = 4
AHEAD = 4 * IN_A_PASS
"""Pictures that may be read before their turn: four passes of them."""


class Slow:
    """Passes that take their time, while whoever may reads on, and count the pictures that anything holds then."""

    runtime, images = "own", IN_A_PASS

    def __init__(self, parallel: bool) -> None:
        self.parallel, self.most = parallel, 0
        self.notes: list[str] = []

    def ready(self, batch: np.ndarray, layers: Sequence[Layer]) -> None:
        pass

    def forward(self, batch: np.ndarray, layers: Sequence[Layer]) -> dict[str, np.ndarray]:
        time.sleep(0.05)
        self.most = max(self.most, sum(type(o) is Picture for o in gc.get_objects()))
        return {layer.name: batch.mean((2, 3)) for layer in layers}


def noise(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8))


@pytest.mark.parametrize("views", [1, 4])
@pytest.mark.parametrize("parallel", [False, True])
def test_only_so_many_pictures_are_in_memory(tmp_path: Path, parallel: bool, views: int) -> None:
    count = 120 // views
    entries = [Entry(f"{i:03}", f"{i:03}", None, None, None, functools.partial(noise, i)) for i in range(count)]
    net, passes, beside = tiny_backbone(), Slow(parallel), views_beside(views, 0)
    layers, report = net.resolve_layers(["pooled"]), ExtractReport("", "", "", count, views)
    with StoreWriter(tmp_path / "s.fcache") as writer:
        records, space = SourceRecords(writer.catalogue, "noise", "/noise"), writer.space(net.recipe)
        for view in (VIEW_0, *(view.name for view in beside)):
            space.declare("pooled", view, layers[0].position)
        run = Run(net, layers, records, space, report, views=beside, dtype=None, strict=False, image_timeout=30)
        run.over(entries, passes, WORKERS, Silent())
        run.finish()
    assert (report.computed, report.left) == (120, 0)
    # Batches: one that fills, one that is put and, computed beside the reading, one for each thread and one to spare.
    batches = 2 + (WORKERS + 1 if parallel else 0)
    # What is read last stands for all views of an image, as does what each thread has in hand.
    assert passes.most <= max(AHEAD, 2 * WORKERS * views) + batches * IN_A_PASS + (1 + WORKERS) * views
