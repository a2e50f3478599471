"""What made a vector: the recipe, its canonical form and its fingerprint.

Two runs may share vectors if and only if their recipes have the same fingerprint. So all that
changes the activations of view 0 is a field here (network, weights, pixels, precision), and all
that does not is kept out (layer, view, storage dtype, device, batch size, path, time). At float32
the runtime is left out, since every runtime has to prove first that it agrees with eager torch.

Fields that are ``None`` are absent from the canonical form, so that a field added later leaves the
fingerprints of older recipes as they are. This module imports no framework.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from featcache.core.arguments import check_fields, checked
from featcache.core.errors import StoreFormatError

RECIPE_FORMAT = 1

PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True, slots=True)
class StandardTransform:
    """Resize, crop and normalize, as published with a network's weights.

    The implementation names the code that does it, with its revision: two ways to resize differ by
    a gray level, so a new one is a new recipe.
    """

    resize: tuple[int, ...]
    """``(s,)``: the shorter side becomes s pixels; ``(h, w)``: exactly that size, aspect ignored."""
    crop: tuple[int, int]
    """Height and width in pixels of the center crop."""
    interpolation: str
    """``nearest``, ``bilinear``, ``bicubic``, ``lanczos``, ``box`` or ``hamming``."""
    mean: tuple[float, float, float]
    """Subtracted for each of R, G, B after scaling to 0…1."""
    std: tuple[float, float, float]
    """Divided by for each of R, G, B."""
    implementation: str = "pillow/2"
    """Which code resizes and crops: ``pillow/1`` resizes the whole image, ``pillow/2`` no more than the crop."""

    def __post_init__(self) -> None:
        # 0 and 0.0 are one value but two texts: the canonical form must not depend on which was given.
        for name, kind in (("resize", int), ("crop", int), ("mean", float), ("std", float)):
            object.__setattr__(self, name, tuple(kind(v) for v in getattr(self, name)))

    @property
    def size_words(self) -> str:
        """What becomes of an image's size: ``whole 288 × 288``, or ``crop 224 × 224``."""
        return f"{'whole' if self.resize == self.crop else 'crop'} {self.crop[0]} × {self.crop[1]}"


@dataclass(frozen=True, slots=True)
class CustomTransform:
    """A callable given in Python. It is known by this name and version alone."""

    name: str
    version: str


@dataclass(frozen=True, slots=True)
class PixelPath:
    """How an image's bytes become the network's input."""

    transform: StandardTransform | CustomTransform
    decoder: str = "simplejpeg/1"
    """Which code makes pixels of bytes: ``pillow/1`` alone, or with ``simplejpeg/1`` for JPEG."""
    exif_orientation: str = "applied"
    alpha: str = "on white"
    sixteen_bit: str = "scaled to 8"
    chip: str | None = None
    """How an aligned face is cut out before the transform; ``None`` for the whole image."""
    scaled: str | None = None
    """How large JPEG photographs are made smaller while they are decoded (``dct/1``); None where they are not."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that turns an image's bytes into the activations of view 0.

    Attributes:
        backbone: full name, ``family:name``.
        weights: digest of the weights (see `weights_digest`), 64 hexadecimal digits.
        pixels: from bytes to the network's input.
        precision: ``float32`` or ``bfloat16``.
        runtime: name of the runtime for reduced precision, ``None`` at float32.
        detection: fingerprint of the detection that aligned the image, ``None`` without one.
        format: version of this form.
    """

    backbone: str
    weights: str
    pixels: PixelPath
    precision: str = "float32"
    runtime: str | None = None
    detection: str | None = None
    format: int = RECIPE_FORMAT

    def __post_init__(self) -> None:
        check_fields(self)

    def to_json(self) -> str:
        """The canonical JSON: sorted keys, no spaces, ASCII, absent fields left out."""
        return json.dumps(_plain(self), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the canonical JSON, 64 hexadecimal digits."""
        return hashlib.sha256(self.to_json().encode("ascii")).hexdigest()

    @classmethod
    @checked
    def from_json(cls, text: str) -> Recipe:
        """Read a recipe back.

        Raises:
            StoreFormatError: the text is no recipe, or one of a format this version does not read.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise StoreFormatError(f"This is no recipe, since it is not JSON: {error}.") from error
        if not isinstance(data, dict):
            raise StoreFormatError("This is no recipe: a JSON object was expected.")
        found = data.get("format")
        if found != RECIPE_FORMAT or isinstance(found, bool):
            raise StoreFormatError(
                f"The recipe has format {found!r}; this featcache reads format {RECIPE_FORMAT}. "
                "Upgrade featcache to read it."
            )
        try:
            recipe = _recipe_from(data)
        except (KeyError, TypeError, ValueError) as error:
            raise StoreFormatError(f"This is no recipe of format {RECIPE_FORMAT}: {error}.") from error
        # What was not understood would silently fall out of the fingerprint.
        if json.loads(recipe.to_json()) != data:
            raise StoreFormatError("The recipe holds fields or values that this featcache does not know.")
        return recipe

    @checked
    def differences(self, other: Recipe) -> list[tuple[str, Any, Any]]:
        """The fields in which two recipes differ, as ``(dotted name, mine, theirs)``."""
        mine, theirs = _flat(_plain(self)), _flat(_plain(other))
        names = sorted(mine.keys() | theirs.keys())
        return [(n, mine.get(n), theirs.get(n)) for n in names if mine.get(n) != theirs.get(n)]


def weights_digest(tensors: Iterable[tuple[str, tuple[int, ...], str, bytes | memoryview]]) -> str:
    """SHA-256 over named tensors, whatever file they came from and in whatever order.

    Args:
        tensors: ``(name, shape, dtype name, little-endian C-contiguous bytes)`` for each tensor.

    Returns:
        64 hexadecimal digits.

    Raises:
        ValueError: two tensors have the same name.
    """
    total = hashlib.sha256()
    last = None
    for name, shape, dtype, data in sorted(tensors, key=lambda tensor: tensor[0]):
        if name == last:
            raise ValueError(f"two tensors are called {name!r}")
        last = name
        header = json.dumps([name, list(shape), dtype, memoryview(data).nbytes], separators=(",", ":"))
        total.update(header.encode("ascii") + b"\n")
        total.update(data)
    return total.hexdigest()


def _plain(value: Any) -> Any:
    """Dataclasses to dicts without their absent fields, tuples to lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        pairs = ((f.name, getattr(value, f.name)) for f in dataclasses.fields(value))
        return {name: _plain(v) for name, v in pairs if v is not None}
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    return value


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in data.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _recipe_from(data: dict[str, Any]) -> Recipe:
    pixels = dict(data["pixels"])
    transform = dict(pixels.pop("transform"))
    made: StandardTransform | CustomTransform
    if "version" in transform:
        made = CustomTransform(name=_text(transform["name"]), version=_text(transform["version"]))
    else:
        made = StandardTransform(
            resize=tuple(_whole(v) for v in transform["resize"]),
            crop=(_whole(transform["crop"][0]), _whole(transform["crop"][1])),
            interpolation=_text(transform["interpolation"]),
            mean=_three(transform["mean"]),
            std=_three(transform["std"]),
            implementation=_text(transform["implementation"]),
        )
    return Recipe(
        backbone=_text(data["backbone"]),
        weights=_text(data["weights"]),
        pixels=PixelPath(transform=made, **{k: _text(v) for k, v in pixels.items()}),
        precision=_text(data["precision"]),
        runtime=None if "runtime" not in data else _text(data["runtime"]),
        detection=None if "detection" not in data else _text(data["detection"]),
        format=_whole(data["format"]),
    )


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"text was expected, not {value!r}")
    return value


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"a whole number was expected, not {value!r}")
    return value


def _three(values: Any) -> tuple[float, float, float]:
    r, g, b = (float(v) for v in values)
    if not all(math.isfinite(v) for v in (r, g, b)):
        raise ValueError("a number is not finite")
    return (r, g, b)
