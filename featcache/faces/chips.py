"""The aligned face: a square cut out of an image by a similarity transform that puts five landmarks where they belong.

It is what dlib's ``get_face_chip(…, size=150, padding=0.25)`` gives for landmarks that are whole numbers, to the pixel,
but takes fractions as well (those of an image that was made smaller to be looked at).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image as pil

from featcache.faces.dlib_library import dlib_library

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE = 150
PADDING = 0.25
CHIP = f"dlib/1: 5 landmarks, {SIDE} x {SIDE}, padding {PADDING}"
"""As the recipe calls it."""

# The landmarks of the mean face in a square of side 1, from dlib's get_face_chip_details.
_MEAN_FACE = np.array(
    [
        (0.8595674595992, 0.2134981538014),
        (0.6460604764104, 0.2289674387677),
        (0.1205750620789, 0.2137274526848),
        (0.3340850613712, 0.2290642403242),
        (0.4901123135679, 0.6277975316475),
    ]
)
_WHERE = (_MEAN_FACE + PADDING) / (1 + 2 * PADDING) * SIDE


def aligned_chip(image: Image, landmarks: np.ndarray) -> Image:
    """Cut the face out, upright.

    Args:
        image: upright RGB.
        landmarks: (5, 2) float, x and y in pixels, in the order of `Detection.landmarks`.

    Returns:
        RGB, 150 × 150; black where it reaches beyond the image.

    Raises:
        MissingExtraError: dlib is not installed.
    """
    dlib = dlib_library()
    shape = dlib.chip_dims(SIDE, SIDE)
    # The least-squares similarity between the landmarks and the mean face, after S. Umeyama (IEEE Transactions on
    # Pattern Analysis and Machine Intelligence 13, 1991, 376-380).
    chip = dlib.chip_details(_points(dlib, _WHERE), _points(dlib, landmarks), shape)
    rect, angle = chip.rect, chip.angle
    # Only this part of a large image becomes an array. It holds all that dlib's image pyramid looks at, whose levels
    # begin at the same pixels.
    reach = 0.75 * rect.width() + 4 * rect.width() / SIDE + 8
    centre = rect.center()
    left, right = _within(centre.x - reach, centre.x + reach, image.width)
    top, bottom = _within(centre.y - reach, centre.y + reach, image.height)
    part = np.asarray(image.crop((left, top, right, bottom)))
    moved = dlib.drectangle(rect.left() - left, rect.top() - top, rect.right() - left, rect.bottom() - top)
    return pil.fromarray(dlib.extract_image_chip(part, dlib.chip_details(moved, shape, angle)))


def _points(dlib: Any, places: np.ndarray) -> Any:
    return dlib.dpoints([dlib.dpoint(x, y) for x, y in places.tolist()])


def _within(low: float, high: float, side: int) -> tuple[int, int]:
    """The pixels from *low* to *high* that an axis has, at least one."""
    first = min(max(0, int(np.floor(low))), side - 1)
    return first, max(first + 1, min(side, int(np.ceil(high)) + 1))
