"""Stores of people whose vectors are known: each person a Gaussian cloud."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from featcache.core.recipe import PixelPath, Recipe, StandardTransform
from featcache.store import StoreWriter
from featcache.store.sources import Record, SourceRecords

RECIPE = Recipe("test:net", "0" * 64, PixelPath(StandardTransform((36,), (32, 32), "bicubic", (0.5,) * 3, (0.5,) * 3)))


def uri(person: int, image: int) -> str:
    """How the images are called, as in Labeled Faces in the Wild."""
    return f"p{person:02}/p{person:02}_{image + 1:04}.jpg"


def write_people(
    path: Path,
    *,
    people: int = 40,
    images: int = 6,
    width: int = 16,
    spread: float = 0.5,
    layers: tuple[str, ...] = ("pooled",),
    without_vectors: tuple[str, ...] = (),
    source: str = "people",
    salt: str = "",
    rename: Callable[[str], str | None] = str,
    split: Callable[[str], str | None] = lambda person: None,
    counts: Sequence[int] | None = None,
) -> dict[str, np.ndarray]:
    """Make a store, and return each image's vectors (layers, width) by its URI, those it does not hold too.

    Args:
        path: of the store.
        people, images: how many, and how many of each.
        width: numbers a vector.
        spread: standard deviation within a person, where that between people is 1.
        layers: each with vectors of its own.
        without_vectors: URIs of images that are listed and have no vector.
        source: its name; the store may hold others already.
        salt: another gives other contents and other vectors.
        rename: what the person ``p00`` and so on are called.
        split: of the images of a person.
        counts: images of each person, in place of *people* and *images*.
    """
    rng = np.random.default_rng(len(salt))
    counts = [images] * people if counts is None else counts
    people = len(counts)
    centres = rng.normal(size=(people, len(layers), width))
    names = [(p, i) for p, count in enumerate(counts) for i in range(count)]
    vectors = {
        uri(p, i): (centres[p] + spread * rng.normal(size=centres.shape[1:])).astype(np.float32) for p, i in names
    }
    keys = {name: hashlib.sha256((salt + name).encode()).digest() for name in vectors}
    kept = [name for name in vectors if name not in without_vectors]
    with StoreWriter(path) as writer:
        space = writer.space(RECIPE)
        for position, layer in enumerate(layers):
            space.declare(layer, "0", position, "float32")
        stacked = np.stack([vectors[name] for name in kept])
        space.append([keys[name] for name in kept], {(layer, "0"): stacked[:, k] for k, layer in enumerate(layers)})
        space.seal()
        records = SourceRecords(writer.catalogue, source, f"/nowhere/{source}")
        people_of = {name: name.split("/")[0] for name in vectors}
        records.save([Record(n, keys[n], rename(p), split(p), None, 1, 2, 3, 4, 5) for n, p in people_of.items()])
    return vectors
