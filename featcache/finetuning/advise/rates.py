"""How fast this machine is at extracting and at training, measured on a few images and a few steps."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from featcache.backbones import Backbone
from featcache.core.errors import MissingVectorsError
from featcache.core.progress import Progress
from featcache.extraction.extract import extract
from featcache.extraction.stored_source import KnownSource, known_images
from featcache.store import FeatureStore

_FEW, _MORE = 8, 40
_MARGIN = 1.2
"""Estimates are so many times what was measured: a part that is begun should end within the budget."""


@dataclass(frozen=True, slots=True)
class ExtractionRate:
    """Of an extraction.

    Attributes:
        start: seconds before the first image.
        image: seconds an image and view.
    """

    start: float
    image: float

    def seconds(self, passes: int) -> float:
        """About how long *passes* images (times views) take; nothing for none."""
        return _MARGIN * (self.start + passes * self.image) if passes else 0.0


def extraction_rate(
    store: FeatureStore, backbone: Backbone, layers: Sequence[str], source: str | None, shown: Progress
) -> ExtractionRate:
    """Extract some of a source's images into a store that is thrown away.

    Args:
        store: knows the images.
        backbone: of the space.
        layers: to be extracted.
        source: which source.
        shown: is told of places that are gone.

    Raises:
        MissingVectorsError: none of the images is where the store knows it.
        UsageError: the images can be given by a Python program alone.
    """
    name, notes = store.source(source), list[str]()
    items = store.items(source=name)
    there = known_images(store, name, items, notes)
    for note in notes:
        shown.note(note)
    found = [item for item in items if item.uri in there]
    if not found:
        raise MissingVectorsError(f"None of the images of source {name!r} is where the store knows it any more.")
    seconds, counts = list[float](), list[int]()
    with tempfile.TemporaryDirectory(prefix="featcache-") as folder:
        for count in (min(_FEW, len(found)), min(_MORE, len(found))):
            chosen = found[:: max(1, len(found) // count)][:count]
            began = time.monotonic()
            extract(
                KnownSource(name, store.sources()[name], chosen, there),
                Path(folder, f"{len(counts)}.fcache"), backbone=backbone, layers=layers, progress=False,
            )  # fmt: skip
            seconds.append(time.monotonic() - began)
            counts.append(len(chosen))
    # The first one loads the network as well, so the second tells of an image, and of the start what it can.
    image = max(seconds[1] - seconds[0], 0.3 * seconds[1]) / max(1, counts[1] - counts[0] or counts[1])
    return ExtractionRate(max(0.0, seconds[1] - counts[1] * image), image)


def step_seconds(model: nn.Module, x: Tensor, classes: int, steps: int = 2) -> float:
    """Seconds that a training step takes for one of its items.

    Args:
        model: from inputs (b, …) to scores (b, classes); its weights are changed.
        x: (b, …) inputs, wherever they are.
        classes: how many.
        steps: that are measured, after one that also makes room.
    """
    device = next(model.parameters()).device
    x, y = x.to(device), (torch.arange(len(x)) % classes).to(device)
    optimiser = torch.optim.AdamW(parameter for parameter in model.parameters() if parameter.requires_grad)
    model.train()
    began = time.monotonic()
    for step in range(1 + steps):
        if step == 1:
            _finish(device)
            began = time.monotonic()  # the first one also makes room
        loss = nn.functional.cross_entropy(model(x), y)
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
    _finish(device)
    model.eval()
    return _MARGIN * (time.monotonic() - began) / (steps * len(x))


def _finish(device: torch.device) -> None:
    """Wait for what a GPU was told to do, which it does while the program goes on."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
