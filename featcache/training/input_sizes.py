"""Sizes of the network's input, tried on some images of a source before all are extracted."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from featcache.backbones.input_size import patch_of
from featcache.core.errors import FeatcacheError, UsageError
from featcache.extraction.extract import extract
from featcache.store import FeatureStore
from featcache.training.selection import ALL
from featcache.training.spaces import SpaceScore, comparable_spaces, compare_spaces

if TYPE_CHECKING:
    from featcache.backbones import Backbone
    from featcache.core.progress import Progress

IMAGES, FEWEST, FIRST = 500, 100, 40
"""The most images to try on, the fewest, and those by which the time is measured."""
SEVENTHS = (7, 9, 11)
"""Whole images at these sevenths of the published size; a pass takes about their square."""
_STEP = 16


def larger(backbone: Backbone, sevenths: int) -> int:
    """The size in pixels that is next to so many sevenths of the published one, in steps that suit the network."""
    side = backbone.network.size[0]
    step = max(patch_of(backbone.module), _STEP) if sevenths != 7 else 1
    return step * round(side * sevenths / 7 / step)


def try_input_sizes(
    source: str | Path,
    backbone: Backbone,
    *,
    seconds: float,
    seed: int = 0,
    labels: str | None = None,
    progress: Progress,
) -> tuple[Backbone, list[SpaceScore]]:
    """Compare the published pixels with whole images at the published and at larger sizes, in a temporary store.

    Args:
        source, labels: as for `featcache.extract`.
        backbone: at its published size.
        seconds: how long it may take; fewer images are taken where that is little.
        seed: as for `featcache.training.spaces.compare_spaces`.
        progress: is told.

    Returns:
        The backbone at the size that suits the images, and how all did; none where nothing could be compared, and the
        reason is noted.
    """
    sized = [backbone]
    for sevenths in SEVENTHS:
        try:
            one = backbone.with_input(larger(backbone, sevenths), "whole")
            one.resolve_layers(["pooled"])
        except UsageError as error:
            progress.note(str(error))
        else:
            sized += [one] if one.recipe != backbone.recipe else []
    with tempfile.TemporaryDirectory(prefix="featcache-") as folder:
        store = Path(folder, "sizes.fcache")

        def run(one: Backbone, images: int) -> float:
            report = extract(source, store, backbone=one, limit=images, labels=labels, progress=progress)
            return report.images_per_second

        try:
            rate = run(backbone, FIRST)
            work = sum((one.network.size[0] / backbone.network.size[0]) ** 2 for one in sized)
            images = min(IMAGES, int(seconds * rate / work))
            if images < FEWEST:
                progress.note(f"Sizes of the input are not tried: in {seconds:.0f} s only on {images} images.")
                return backbone, []
            for one in sized:
                run(one, images)
            opened = FeatureStore.open(store)
            found = compare_spaces(opened, comparable_spaces(opened, None), ALL, seed=seed, progress=progress)
        except FeatcacheError as error:
            progress.note(f"Sizes of the input are not tried: {error}")
            return backbone, []
    (chosen,) = (score.space for score in found if score.chosen)
    return next(one for one in sized if one.recipe.fingerprint == chosen), found
