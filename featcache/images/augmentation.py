"""Views: random augmentations of an image that are the same whenever they are made.

A view is a random-resized crop (Szegedy et al. 2015, section 6, with the arithmetic of torchvision's
``RandomResizedCrop``), with a random horizontal flip and color jitter. Its random numbers come from (seed, SHA-256 of
the image, index of the view) alone, so they do not depend on the order of images, batches or threads. They are read off
SHAKE-256 (FIPS 202), as the streams of random generators may change between releases of their library.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from featcache.core.names import view_name

if TYPE_CHECKING:
    from featcache.core.recipe import StandardTransform

_TRIES = 10
"""Crops that are drawn before the center one is taken."""

_FILTERS = {name.lower(): value for name, value in Image.Resampling.__members__.items()}


@dataclass(frozen=True, slots=True)
class Augmentation:
    """The policy: the distributions that views are drawn from.

    Attributes:
        scale: smallest and largest area of the crop, as a share of the image's.
        ratio: smallest and largest aspect ratio of the crop, width over height; its logarithm is uniform.
        flip: probability of a horizontal flip.
        brightness, contrast, saturation: each is multiplied by a factor uniform in 1 ± this.
        implementation: the code that makes it.
    """

    scale: tuple[float, float] = (0.4, 1.0)
    ratio: tuple[float, float] = (0.75, 4 / 3)
    flip: float = 0.5
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    implementation: str = "pillow/1"

    def to_json(self) -> str:
        """The canonical JSON: sorted keys, no spaces, ASCII."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON, 64 hexadecimal digits."""
        return hashlib.sha256(self.to_json().encode("ascii")).hexdigest()


@dataclass(frozen=True, slots=True)
class AugmentedView:
    """One view other than view 0.

    Attributes:
        policy: the distributions it is drawn from.
        seed: from 0 on.
        index: from 1 on.
    """

    policy: Augmentation
    seed: int
    index: int

    @property
    def name(self) -> str:
        """The view's part of a vector's address, see `featcache.core.names`."""
        return view_name(self.policy.digest, self.seed, self.index)

    def pixels(
        self,
        image: Image.Image,
        transform: StandardTransform,
        sha256: bytes,
        box: tuple[float, float, float, float] | None = None,
    ) -> np.ndarray:
        """The network's input.

        Args:
            image: RGB, loaded and upright.
            transform: its crop size and interpolation are used, its resize is not.
            sha256: of the image's bytes, 32 bytes.
            box: left, top, right and bottom of the image within *image*; all of it by default.

        Returns:
            (h, w, 3) uint8, of the size of ``transform.crop``.
        """
        policy, draw = self.policy, _Numbers(self.seed, sha256, self.index)
        left, top, right, bottom = box or (0.0, 0.0, float(image.width), float(image.height))
        part = _part(policy, right - left, bottom - top, draw)
        height, width = transform.crop
        cut = (left + part[0], top + part[1], min(right, left + part[2]), min(bottom, top + part[3]))
        resized = image.resize((width, height), _FILTERS[transform.interpolation], box=cut)
        if draw.at(_FLIP) < policy.flip:
            resized = resized.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        changes = (policy.brightness, policy.contrast, policy.saturation)
        factors = [1 + change * (2 * draw.at(_COLOUR + i) - 1) for i, change in enumerate(changes)]
        return _coloured(resized, *factors)


# The index of each random number: adding a kind must not move the others.
_AREA, _RATIO = 0, _TRIES
_X, _Y, _FLIP, _COLOUR = range(2 * _TRIES, 2 * _TRIES + 4)
_COUNT = _COLOUR + 3


class _Numbers:
    """Random numbers of one view of one image, uniform in [0, 1), by index."""

    def __init__(self, seed: int, sha256: bytes, index: int) -> None:
        stream = hashlib.shake_256(f"featcache view {seed} {sha256.hex()} {index}".encode()).digest(8 * _COUNT)
        # 53 bits, as many as a double holds.
        self._numbers = ((np.frombuffer(stream, dtype="<u8") >> np.uint64(11)) * 2.0**-53).tolist()

    def at(self, place: int) -> float:
        """The number at this index."""
        return float(self._numbers[place])


def _part(policy: Augmentation, width: float, height: float, draw: _Numbers) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of the crop."""
    w: float
    h: float
    low, high = (math.log(ratio) for ratio in policy.ratio)
    for i in range(_TRIES):
        area = width * height * (policy.scale[0] + draw.at(_AREA + i) * (policy.scale[1] - policy.scale[0]))
        ratio = math.exp(low + draw.at(_RATIO + i) * (high - low))
        w, h = max(1, round(math.sqrt(area * ratio))), max(1, round(math.sqrt(area / ratio)))
        if w <= width and h <= height:
            x, y = int(draw.at(_X) * (int(width) - w + 1)), int(draw.at(_Y) * (int(height) - h + 1))
            return x, y, x + w, y + h
    # The image is too wide or too tall: the largest center crop.
    w, h = width, height
    if width / height < policy.ratio[0]:
        h = min(height, max(1, round(width / policy.ratio[0])))
    elif width / height > policy.ratio[1]:
        w = min(width, max(1, round(height * policy.ratio[1])))
    x, y = int((width - w) / 2), int((height - h) / 2)
    return x, y, x + w, y + h


def _coloured(image: Image.Image, brightness: float, contrast: float, saturation: float) -> np.ndarray:
    """Brightness, then contrast about the mean gray, then saturation about each pixel's gray.

    The three are one map x → s·c·b·x + (1 - s)·c·b·grey(x) + (1 - c)·b·(mean gray), rounded and clipped to 0…255 once,
    at the end. Gray is that of ITU-R BT.601.
    """
    grey = np.asarray(image.convert("L"))
    mean = int(grey.sum(dtype=np.int64)) / grey.size
    own, from_grey = saturation * contrast * brightness, (1 - saturation) * contrast * brightness
    flat = grey * np.float32(from_grey) + np.float32((1 - contrast) * brightness * mean)
    mixed = np.asarray(image) * np.float32(own) + flat[..., None]
    return np.clip(np.rint(mixed, out=mixed), 0, 255, out=mixed).astype(np.uint8)


def views_beside(count: int, seed: int, policy: Augmentation | None = None) -> list[AugmentedView]:
    """The views 1 to *count* - 1 of a seed: with view 0, *count* of each image."""
    chosen = policy or Augmentation()
    return [AugmentedView(chosen, seed, index) for index in range(1, count)]
