"""`verify`: do two images show the same person? `embed_faces`: vectors of faces in images that are in no store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featcache import backbones
from featcache.core.arguments import checked
from featcache.core.errors import RecipeMismatchError, UnusableImageError, UsageError
from featcache.extraction.embed import ImageLike, backbone_for, check_exists, embed
from featcache.faces.alignment import DEFAULT_BACKBONE, MIRRORED, AlignedBackbone, aligned_for
from featcache.faces.detection import SECOND_PASS, Detection, Detector
from featcache.images.image_list import image_list, one_image
from featcache.metrics.verification import cosine_scores
from featcache.training.bundle import Bundle

if TYPE_CHECKING:
    from PIL.Image import Image

    from featcache.backbones import Backbone, Extractor
    from featcache.core.recipe import Recipe
    from featcache.images.decode import Decoded


class _RecordingDetector(Detector):
    """Keeps its detections, in the order of the images."""

    def __init__(self) -> None:
        super().__init__()
        self.detections: list[Detection] = []

    def detect(self, image: Image | Decoded) -> Detection:
        self.detections.append(super().detect(image))
        return self.detections[-1]


@checked
def embed_faces(
    images: Sequence[ImageLike],
    recipe: Recipe,
    layers: Sequence[str] = (MIRRORED,),
    *,
    backbone: Backbone | None = None,
    centre_box: bool = False,
) -> tuple[np.ndarray, list[Detection]]:
    """Detect and align the faces of images, and compute their vectors.

    Args:
        images: n paths, PIL images or arrays; at least one.
        recipe: of the vectors, as stored in a bundle or a store.
        layers: names of layers, which are concatenated in network order.
        backbone: needed only where the recipe's vectors were computed by a module given in Python.
        centre_box: use the center of the image where no face is found.

    Returns:
        Vectors (n, d) float32 and the n detections, in the order of the images.

    Raises:
        UnusableImageError: an image cannot be used, or has no face; the message names it.
        RecipeMismatchError: the recipe is not one of aligned faces, or has another detection, chip or backbone.
        SourceError: a path does not exist.

    Example:
        >>> recipe = fc.open("people.fcache").space("dlib:face_resnet").recipe
        >>> vectors, found = fc.faces.embed_faces(["people/ann/0.png", "people/bob/0.png"], recipe)
        >>> vectors.shape
        (2, 128)
    """
    detector = _RecordingDetector()
    aligned = aligned_for(recipe, backbone, detector=detector, centre_box=centre_box)
    return _vectors(image_list(images), aligned, layers), detector.detections


def _vectors(images: Sequence[ImageLike], extractor: Extractor, layers: Sequence[str]) -> np.ndarray:
    """Vectors (n, d) float32 of images that must all be usable."""
    for image in images:
        check_exists(image)
    rows = []
    for embedded in embed(images, extractor, layers):
        if embedded.vector is None:
            raise UnusableImageError(f"{embedded.name}: {embedded.reason}.")
        rows.append(embedded.vector)
    return np.stack(rows)


@dataclass(frozen=True, slots=True)
class Match:
    """What two images say about being of the same person.

    Attributes:
        distance: 1 - cosine similarity of the two vectors, from 0 to 2.
        calibrated: whether a calibrated head was given. If not, the fields from ``decision`` to ``threshold`` are
            None.
        decision: whether they show the same person, by the threshold that was set for ``far_target``. In the command
            line's ``--json`` it is ``"same"``, ``"different"`` or ``"uncalibrated"``.
        probability: that they show the same person, given ``prior``.
        prior: the probability of a match before looking at the images.
        far_target: the false accept rate that the threshold was set for.
        threshold: distances up to this are accepted.
        second_pass: in how many of the two images the face was found only after enlarging.
        several_faces: in how many of the two images more than one face was found.
    """

    distance: float
    calibrated: bool
    decision: bool | None = None
    probability: float | None = None
    prior: float | None = None
    far_target: float | None = None
    threshold: float | None = None
    second_pass: int = 0
    several_faces: int = 0

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values."""
        return asdict(self)


@checked
def verify(
    a: ImageLike,
    b: ImageLike,
    *,
    head: str | Path | Bundle | None = None,
    prior: float = 0.5,
    backbone: Backbone | None = None,
) -> Match:
    """Compare the faces of two images; or the whole images, if the head was trained on vectors of whole images.

    Args:
        a, b: paths, PIL images or arrays.
        head: a head trained by `featcache.faces.train`, or its path. Without one the distance is that of
            ``dlib:face_resnet``, layer ``mirrored``, and nothing is decided.
        prior: the probability that two such images show the same person, before looking at them; strictly between 0
            and 1.
        backbone: needed only where the head's vectors were computed by a module given in Python.

    Raises:
        UnusableImageError: an image cannot be used, or has no face; the message names it.
        UsageError: the head is not one for matching, or the prior is not between 0 and 1.
        RecipeMismatchError: the backbone does not follow the recipe of the head.
        MissingExtraError: dlib or its files are not installed.

    Example:
        >>> match = fc.faces.verify("people/ann/0.png", "people/ann/1.png")
        >>> match.distance < 0.05
        True
    """
    if not 0 < prior < 1:
        raise UsageError(f"The prior probability of a match must lie strictly between 0 and 1, not be {prior}.")
    bundle = head if head is None or isinstance(head, Bundle) else Bundle.load(head)
    if bundle is None:
        recipe, layers = AlignedBackbone(backbones.get(DEFAULT_BACKBONE), Detector()).recipe, [MIRRORED]
    else:
        predictor = bundle.matching
        if bundle.recipe is None:
            raise RecipeMismatchError("This head was trained on vectors without a recipe, so it cannot compare images.")
        recipe, layers = bundle.recipe, [use.name for use in bundle.layers]
    detections: list[Detection] = []
    if recipe.detection is None:
        vectors = _vectors([one_image(a, 0), one_image(b, 1)], backbone_for(recipe, backbone), layers)
    else:
        vectors, detections = embed_faces([a, b], recipe, layers, backbone=backbone)
    if bundle is None:
        scores, calibration = cosine_scores(vectors, np.array([[0, 1]])), None
    else:
        scaled = bundle.scaled(vectors)
        scores, calibration = predictor.scores(scaled[:1], scaled[1:]), predictor.calibration
    match = Match(
        distance=1 - float(scores[0]),
        calibrated=calibration is not None,
        second_pass=sum(face.found == SECOND_PASS for face in detections),
        several_faces=sum(face.faces > 1 for face in detections),
    )
    if calibration is None:
        return match
    return replace(
        match,
        decision=bool(calibration.decide(scores)[0]),
        probability=float(calibration.probability(scores, prior)[0]),
        prior=prior,
        far_target=calibration.far,
        threshold=1 - calibration.threshold,
    )
