"""How many images a second a backbone does, decoding and forward pass together, on JPEGs made for it."""

from __future__ import annotations

import io
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from featcache.backbones import compute as processor
from featcache.core.progress import Progress

if TYPE_CHECKING:
    from featcache.backbones import Backbone, Layer
    from featcache.backbones.runtimes.passes import Passes

WIDTH, HEIGHT = 500, 375
_PICTURES = 16
_SEED = 0


@dataclass(frozen=True, slots=True)
class Speed:
    """What was measured.

    Attributes:
        runtime: that computed, as `extract` would choose it.
        images_per_second: decoded and run through the network, once all is ready.
        images: that were counted.
        seconds: that these took.
        preparing_seconds: that loading, and converting the network where that was not done before, took.
        notes: on the choice of the runtime.
    """

    runtime: str
    images_per_second: float
    images: int
    seconds: float
    preparing_seconds: float
    notes: list[str]


def measure(backbone: Backbone, layer: Layer, *, seconds: float, progress: Progress) -> Speed:
    """Decode and compute for so long, with all cores that this process may use.

    Args:
        backbone: the network.
        layer: what is computed.
        seconds: how long; the batches begun by then are finished, and count.
        progress: is told of images.

    Raises:
        FeatcacheError: the network cannot be had, or the runtime asked for cannot run it.
    """
    files, cores = pictures(), processor.cores()
    began = time.monotonic()
    passes = backbone.passes(at_once=cores, cores=cores)
    passes.ready(_decoded(backbone, files, 0, passes.images), [layer])
    passes.forward(_decoded(backbone, files, 0, passes.images), [layer])
    start = time.monotonic()
    images = _both_in_threads if passes.parallel else _decoding_in_threads
    done = images(backbone, passes, layer, files, cores, start + seconds, progress)
    took = time.monotonic() - start
    return Speed(passes.runtime, done / took, done, took, start - began, list(passes.notes))


def pictures() -> list[bytes]:
    """JPEGs of WIDTH × HEIGHT pixels at quality 90, which take about as long to decode as photographs of that size."""
    from PIL import Image

    rng, made = np.random.default_rng(_SEED), []
    for _ in range(_PICTURES):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((WIDTH, HEIGHT))
        noise = rng.normal(0, 12, (HEIGHT, WIDTH, 1))
        out = io.BytesIO()
        Image.fromarray(np.clip(np.asarray(coarse) + noise, 0, 255).astype(np.uint8)).save(out, "JPEG", quality=90)
        made.append(out.getvalue())
    return made


def _both_in_threads(
    backbone: Backbone, passes: Passes, layer: Layer, files: Sequence[bytes], cores: int, end: float, progress: Progress
) -> int:
    """Each thread decodes a batch and computes it, then the next."""

    def work(thread: int) -> int:
        done = 0
        while time.monotonic() < end:
            passes.forward(_decoded(backbone, files, thread + done, passes.images), [layer])
            done += passes.images
            progress.advance(passes.images)
        return done

    with ThreadPoolExecutor(cores) as pool:
        return sum(pool.map(work, range(cores)))


def _decoding_in_threads(
    backbone: Backbone, passes: Passes, layer: Layer, files: Sequence[bytes], cores: int, end: float, progress: Progress
) -> int:
    """The runtime has threads of its own; meanwhile others decode the next batches."""
    done = 0
    with ThreadPoolExecutor(cores) as pool:
        coming = deque(pool.submit(_decoded, backbone, files, n, passes.images) for n in range(cores))
        while time.monotonic() < end:
            batch = coming.popleft().result()
            coming.append(pool.submit(_decoded, backbone, files, done, passes.images))
            passes.forward(batch, [layer])
            done += passes.images
            progress.advance(passes.images)
    return done


def _decoded(backbone: Backbone, files: Sequence[bytes], first: int, n: int) -> np.ndarray:
    return np.stack([backbone.prepare(backbone.decode(files[(first + i) % len(files)])) for i in range(n)])
