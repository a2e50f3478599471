"""The face of an image: dlib's HOG detector and five landmarks, as something that `featcache.extract` can run.

Detection is a space of its own in the store (recipe ``dlib:hog5``, layer ``face``): a face is looked for once, whatever
networks see it afterwards. Each image has one row; where no face is found it says so and holds the box in the middle.

The order of the work:

1. an image whose longer side has more than `LONGEST` pixels is made smaller, so that the work is bounded;
2. the detector looks at the image (it finds faces from about 70 pixels on);
3. where it finds none, it looks again at the image enlarged twice (from about 35 pixels on);
4. of several faces the one that `prominence` puts first is taken;
5. five landmarks are found in its box: the outer and inner corners of both eyes, and the base of the nose.

The detector is that of N. Dalal and B. Triggs, "Histograms of Oriented Gradients for Human Detection" (CVPR 2005) in
the form of D. E. King, "Max-Margin Object Detection" (arXiv:1502.00046); the landmarks are those of V. Kazemi and
J. Sullivan, "One Millisecond Face Alignment with an Ensemble of Regression Trees" (CVPR 2014).

dlib, which only faces need: imported when it is first used, its models made once in a process.

Detections read back from a store: of one image by its hash, or of all images of a source.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image as pil

from featcache.backbones import Layer
from featcache.backbones.families.dlib_weights import FIVE_LANDMARKS, installed_path, published_bytes
from featcache.core.errors import MissingExtraError, MissingVectorsError, ShardGoneError, UnknownNameError, UsageError
from featcache.core.recipe import CustomTransform, PixelPath, Recipe
from featcache.images import decode as decoding
from featcache.images.decode import Decoded
from featcache.store import FeatureStore

if TYPE_CHECKING:
    from PIL.Image import Image


_idle_detectors: list[Any] = []


def dlib_library() -> Any:
    """The module ``dlib``.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import dlib
    except ImportError as error:
        raise MissingExtraError(
            "Faces are found and aligned by dlib, which is not installed. It comes with: pip install 'featcache[faces]'"
        ) from error
    return dlib


@contextmanager
def face_detector() -> Iterator[Any]:
    """dlib's frontal face detector, one that nobody else uses meanwhile: one that is used by two threads at once gives
    wrong boxes and raises nothing."""
    try:
        detector = _idle_detectors.pop()
    except IndexError:
        detector = dlib_library().get_frontal_face_detector()
    try:
        yield detector
    finally:
        _idle_detectors.append(detector)


@functools.cache
def landmark_predictor() -> Any:
    """dlib's predictor of five landmarks, which any number of threads may use.

    dlib opens the file by its path, after it was checked: whoever can write where pip installs packages could put
    another there in between, and could as well change the packages themselves.

    Raises:
        MissingExtraError: dlib or the predictor's file is not installed.
        WeightsError: the file is not the published one.
    """
    dlib, path = dlib_library(), installed_path(FIVE_LANDMARKS)
    published_bytes(FIVE_LANDMARKS, path)  # dlib itself reads whatever it is given
    return dlib.shape_predictor(str(path))


FACE = "face"
"""The one layer of a detection."""

FIRST_PASS, SECOND_PASS, CENTRE_BOX = 1, 2, 0
"""How a face was found; 0: it was not, and the box is the one in the middle."""

LONGEST = 1024
"""Pixels of the longer side of what the detector sees, before it is enlarged for the second pass."""

CENTRE_SHARE = 0.4
"""Side of the box in the middle, over the image's shorter side: that of the faces in images cut to 250 × 250."""

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
    """The face of one image, in pixels of the upright image from its upper left corner.

    Attributes:
        found: `FIRST_PASS`, `SECOND_PASS`, or `CENTRE_BOX` where no face was found.
        faces: how many faces that pass found.
        confidence: the detector's score of the face, above 0 and larger where it is surer; 0 where none was found.
        box: left, top, right, bottom; the pixels right and bottom belong to it. It may reach beyond the image.
        landmarks: (5, 2) float32, x and y: outer and inner corner of the eye that is right in the image, the same of
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
    quarantine_key = ""

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
        """An image file's bytes as an image.

        Raises:
            UnusableImageError, ImageMemoryError, UsageError: as for `featcache.images.decode.decode_rgb`.
        """
        return decoding.decode(data, self.recipe.pixels.decoder)

    def prepare(self, image: Image | Decoded, sha256: bytes | None = None) -> np.ndarray:
        """The row of an image, (17,) float32. All the work is done here, since many threads do it at once."""
        return self.detect(decoded_image(image)).row()

    def forward(self, batch: np.ndarray, layers: Sequence[Layer]) -> dict[str, np.ndarray]:
        """The rows (n, 17) themselves."""
        return {layer.name: batch for layer in layers}

    def reference(self) -> Detector:
        """There is none.

        Raises:
            UsageError: always.
        """
        raise UsageError("This space holds where faces were found, which no network computed. Choose another --space.")

    def detect(self, image: Image) -> Detection:
        """Find the face of an upright RGB image."""
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


def decoded_image(image: Image | Decoded) -> Image:
    """The image itself, of what a file was decoded to."""
    return image.image if isinstance(image, Decoded) else image


def prominence(box: tuple[float, float, float, float], size: tuple[int, int]) -> float:
    """How much a face is the one that its image shows: its area less twice the squared distance of its centre from
    the image's, both over the image's area, so that the image's scale does not matter.

    Args:
        box: left, top, right, bottom in pixels, the last two included.
        size: the image's width and height.
    """
    left, top, right, bottom = box
    width, height = size
    across, down = (left + right + 1 - width) / 2, (top + bottom + 1 - height) / 2
    area = (right - left + 1) * (bottom - top + 1)
    return (area - 2 * (across * across + down * down)) / (width * height)


def _bounded(image: Image) -> tuple[Image, tuple[float, float]]:
    """The image that the detector sees, and by how much it is smaller than the image, across and down."""
    longer = max(image.size)
    if longer <= LONGEST:
        return image, (1.0, 1.0)
    width, height = (max(1, round(side * LONGEST / longer)) for side in image.size)
    return image.resize((width, height), pil.Resampling.BILINEAR), (width / image.width, height / image.height)


def _scaled_back(places: np.ndarray, scale: tuple[float, float]) -> np.ndarray:
    """Middles of pixels of the smaller image, (n, 2) float64 x and y, as places in the image."""
    return places if scale == (1.0, 1.0) else (places + 0.5) / np.array(scale) - 0.5


def _centre(width: int, height: int) -> tuple[int, int, int, int]:
    side = max(1, round(CENTRE_SHARE * min(width, height)))
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side - 1, top + side - 1


class StoredDetections:
    """The detections of one space; several threads may ask at once.

    Args:
        store: the store.
        space: fingerprint of the detection.

    Raises:
        MissingVectorsError: the store holds none of that detection.
    """

    def __init__(self, store: FeatureStore, space: str) -> None:
        self._store = store
        self._reader = store.column(FACE, space)

    def __call__(self, sha256: bytes) -> Detection | None:
        """The detection of the image with this SHA-256, None where there is none."""
        return self.of([sha256]).get(sha256)

    def of(self, sha256s: Sequence[bytes]) -> dict[bytes, Detection]:
        """The detections of those of these images that have one."""
        try:
            return self._read(sha256s)
        except ShardGoneError:
            # Another process compacted the store: the rows have other places now.
            return self._read(sha256s)

    def _read(self, sha256s: Sequence[bytes]) -> dict[bytes, Detection]:
        found = self._reader.places(list(dict.fromkeys(sha256s)))
        rows = np.empty((len(found), len(COLUMNS)), np.float32)
        self._reader.gather(np.array(list(found.values()), np.int64).reshape(-1, 2), rows)
        return {sha256: Detection.of_row(row) for sha256, row in zip(found, rows, strict=True)}


def detections(
    store: str | Path | FeatureStore, source: str | None = None, *, detection: str | None = None
) -> dict[bytes, Detection]:
    """What was found in the images of a source, those without a vector included.

    Args:
        store: a store or its path.
        source: the source's name; may be left out where there is one.
        detection: fingerprint of the detection, such as a space's ``recipe.detection``; may be left out where the store
            holds one.

    Returns:
        Detections by the SHA-256 of the images' bytes. Images that could not be read have none.

    Raises:
        MissingVectorsError: faces were never looked for.
        UsageError: the store holds several detections and none was chosen.
    """
    opened = store if isinstance(store, FeatureStore) else FeatureStore.open(store)
    wanted = [item.sha256 for item in opened.items(source=source)]
    return StoredDetections(opened, _detection(opened, detection)).of(wanted)


def _detection(store: FeatureStore, wanted: str | None) -> str:
    found = [
        space.fingerprint
        for space in store.spaces
        if space.recipe.backbone == Detector.name and space.layers and wanted in (None, space.fingerprint)
    ]
    if not found:
        which = "" if wanted is None else f" by the detection {wanted[:12]}"
        raise MissingVectorsError(
            f"In {store.path} no faces were looked for{which}. Run `featcache faces extract` first."
        )
    if len(found) > 1:
        listed = ", ".join(fingerprint[:12] for fingerprint in found)
        raise UsageError(f"{store.path} holds several detections: {listed}. Choose one by its fingerprint.")
    return found[0]
