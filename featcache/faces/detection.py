"""The face of an image: dlib's HOG detector and five landmarks, as something that `featcache.extract` can run.

Detection is a space of its own in the store (recipe ``dlib:hog5``, layer ``face``): a face is looked for once, whatever
networks see it afterwards. Each image has one row; where no face is found it says so and holds the box in the middle.

The order of the work:

1. a picture whose longer side has more than `LONGEST` pixels is made smaller, so that the work is bounded;
2. the detector looks at the picture (it finds faces from about 70 pixels on);
3. where it finds none, it looks again at the picture enlarged twice (from about 35 pixels on);
4. of several faces the one that `prominence` puts first is taken;
5. five landmarks are found in its box: the outer and inner corners of both eyes, and the base of the nose.

The detector is that of N. Dalal and B. Triggs, "Histograms of Oriented Gradients for Human Detection" (CVPR 2005) in
the form of D. E. King, "Max-Margin Object Detection" (arXiv:1502.00046); the landmarks are those of V. Kazemi and
J. Sullivan, "One Millisecond Face Alignment with an Ensemble of Regression Trees" (CVPR 2014).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image as pil

from featcache.backbones import Layer
from featcache.backbones.dlib_files import FIVE_LANDMARKS, installed_path
from featcache.core.errors import UnknownNameError
from featcache.core.recipe import CustomTransform, PixelPath, Recipe
from featcache.faces.dlib_library import dlib_library, face_detector, landmark_predictor
from featcache.images import decode as decoding
from featcache.images.decode import Decoded

if TYPE_CHECKING:
    from PIL.Image import Image

FACE = "face"
"""The one layer of a detection."""

FIRST_PASS, SECOND_PASS, CENTRE_BOX = 1, 2, 0
"""How a face was found; 0: it was not, and the box is the one in the middle."""

LONGEST = 1024
"""Pixels of the longer side of what the detector sees, before it is enlarged for the second pass."""

CENTRE_SHARE = 0.4
"""Side of the box in the middle, over the picture's shorter side: that of the faces in pictures cut to 250 × 250."""

COLUMNS = (
    "found", "faces", "confidence", "left", "top", "right", "bottom",
    "x0", "y0", "x1", "y1", "x2", "y2", "x3", "y3", "x4", "y4",
)  # fmt: skip
"""What the numbers of a row are."""

# All that decides the numbers of a row; whoever changes what is done must change this.
_STEPS = CustomTransform(
    name=(
        f"dlib hog+5 landmarks; rgb; longest side {LONGEST} by pillow bilinear; second pass x2; "
        f"largest area less twice squared distance; else centre {CENTRE_SHARE}"
    ),
    version="1",
)


@dataclass(frozen=True, slots=True)
class Detection:
    """The face of one image, in pixels of the upright picture from its upper left corner.

    Attributes:
        found: `FIRST_PASS`, `SECOND_PASS`, or `CENTRE_BOX` where no face was found.
        faces: how many faces that pass found.
        confidence: the detector's score of the face, above 0 and larger where it is surer; 0 where none was found.
        box: left, top, right, bottom; the pixels right and bottom belong to it. It may reach beyond the picture.
        landmarks: (5, 2) float32, x and y: outer and inner corner of the eye that is right in the picture, the same of
            the left one, base of the nose. Of a centre box they are where they would be if it held a face.
    """

    found: int
    faces: int
    confidence: float
    box: tuple[float, float, float, float]
    landmarks: np.ndarray

    @classmethod
    def of_row(cls, row: np.ndarray) -> Detection:
        """Read a row (17,) back, see `COLUMNS`."""
        left, top, right, bottom = (float(v) for v in row[3:7])
        points = np.array(row[7:], np.float32).reshape(5, 2)
        return cls(int(row[0]), int(row[1]), float(row[2]), (left, top, right, bottom), points)

    def row(self) -> np.ndarray:
        """The numbers to be stored, (17,) float32, see `COLUMNS`."""
        return np.array([self.found, self.faces, self.confidence, *self.box, *self.landmarks.flat], np.float32)


class Detector:
    """Finds the face of an image; an `Extractor`, whose vectors are the rows of `Detection`.

    Raises:
        MissingExtraError: dlib or the file of the landmarks is not installed.
    """

    name = "dlib:hog5"
    conditions = ""

    def __init__(self) -> None:
        self._dlib = dlib_library()
        installed_path(FIVE_LANDMARKS)  # so that what is missing is said at once

    @property
    def recipe(self) -> Recipe:
        """What identifies the rows. The detector's own weights are part of dlib, so its release is named too."""
        major = str(self._dlib.__version__).partition(".")[0]
        steps = CustomTransform(_STEPS.name, f"{_STEPS.version}; dlib {major}")
        return Recipe(self.name, FIVE_LANDMARKS.sha256, PixelPath(steps))

    def resolve_layers(self, layers: Sequence[str]) -> list[Layer]:
        """The one layer there is.

        Raises:
            UnknownNameError: another one is asked for.
        """
        for name in layers:
            if name != FACE:
                raise UnknownNameError.among("layer of a detection", name, [FACE])
        return [Layer(FACE, 0, (len(COLUMNS),))]

    def load(self) -> None:
        """Load the predictor of the landmarks.

        Raises:
            WeightsError: its file is not the published one.
        """
        landmark_predictor()

    def decode(self, data: bytes) -> Decoded:
        """An image file's bytes as a picture.

        Raises:
            UnusableImageError, ImageMemoryError, UsageError: as for `featcache.images.decode.decode_rgb`.
        """
        return decoding.decode(data, self.recipe.pixels.decoder)

    def prepare(self, image: Image | Decoded, sha256: bytes | None = None) -> np.ndarray:
        """The row of an image, (17,) float32. All the work is done here, since many threads do it at once."""
        return self.detect(picture_in(image)).row()

    def forward(self, batch: np.ndarray, layers: Sequence[Layer]) -> dict[str, np.ndarray]:
        """The rows (n, 17) themselves."""
        return {layer.name: batch for layer in layers}

    def detect(self, image: Image) -> Detection:
        """Find the face of an upright RGB picture."""
        seen, scale = _bounded(image)
        pixels = np.asarray(seen)
        found, faces = self._faces(pixels)
        if faces:
            box, confidence = max(faces, key=lambda face: (prominence(face[0], seen.size), face[1], face[0]))
        else:
            box, confidence = _centre(*seen.size), 0.0
        points = landmark_predictor()(pixels, self._dlib.rectangle(*box)).parts()
        landmarks = _scaled_back(np.array([(point.x, point.y) for point in points], np.float64), scale)
        (left, top), (right, bottom) = _scaled_back(np.array(box, np.float64).reshape(2, 2), scale).tolist()
        return Detection(found, len(faces), confidence, (left, top, right, bottom), landmarks.astype(np.float32))

    def _faces(self, pixels: np.ndarray) -> tuple[int, list[tuple[tuple[int, int, int, int], float]]]:
        """By which pass faces were found in (h, w, 3) uint8, and all of them: box and score."""
        for found, enlarged in ((FIRST_PASS, 0), (SECOND_PASS, 1)):
            with face_detector() as hog:
                boxes, scores, _ = hog.run(pixels, enlarged, 0.0)
            if boxes:
                sides = [(box.left(), box.top(), box.right(), box.bottom()) for box in boxes]
                return found, list(zip(sides, map(float, scores), strict=True))
        return CENTRE_BOX, []


def picture_in(image: Image | Decoded) -> Image:
    """The picture itself, of what a file was decoded to."""
    return image.image if isinstance(image, Decoded) else image


def prominence(box: tuple[float, float, float, float], size: tuple[int, int]) -> float:
    """How much a face is the one that its picture shows: its area less twice the squared distance of its centre from
    the picture's, both over the picture's area, so that the picture's scale does not matter.

    Args:
        box: left, top, right, bottom in pixels, the last two included.
        size: the picture's width and height.
    """
    left, top, right, bottom = box
    width, height = size
    across, down = (left + right + 1 - width) / 2, (top + bottom + 1 - height) / 2
    area = (right - left + 1) * (bottom - top + 1)
    return (area - 2 * (across * across + down * down)) / (width * height)


def _bounded(image: Image) -> tuple[Image, tuple[float, float]]:
    """The picture that the detector sees, and by how much it is smaller than the image, across and down."""
    longer = max(image.size)
    if longer <= LONGEST:
        return image, (1.0, 1.0)
    width, height = (max(1, round(side * LONGEST / longer)) for side in image.size)
    return image.resize((width, height), pil.Resampling.BILINEAR), (width / image.width, height / image.height)


def _scaled_back(places: np.ndarray, scale: tuple[float, float]) -> np.ndarray:
    """Middles of pixels of the smaller picture, (n, 2) float64 x and y, as places in the image."""
    return places if scale == (1.0, 1.0) else (places + 0.5) / np.array(scale) - 0.5


def _centre(width: int, height: int) -> tuple[int, int, int, int]:
    side = max(1, round(CENTRE_SHARE * min(width, height)))
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side - 1, top + side - 1
