"""`verify`: do two images show one person?"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featcache.core.errors import RecipeMismatchError, UnusableImageError, UsageError
from featcache.core.recipe import Recipe
from featcache.extraction.embed import ImageLike, backbone_for, embed
from featcache.faces.aligned import MIRRORED, AlignedBackbone
from featcache.faces.detection import SECOND_PASS, Detector
from featcache.faces.embedding import embed_faces
from featcache.faces.extraction import DEFAULT_BACKBONE
from featcache.metrics.verification import cosine_scores
from featcache.training.bundle import Bundle

if TYPE_CHECKING:
    from featcache.backbones import Backbone


@dataclass(frozen=True, slots=True)
class Match:
    """What is known of two images.

    Attributes:
        distance: 1 less the cosine of the two vectors, from 0 to 2; 0 means the same direction.
        calibrated: whether a calibrated head was given. Without one nothing below is known.
        decision: whether they show one person, by a threshold that was set for `far_target`; else None. The command
            line's ``--json`` has ``"same"``, ``"different"`` or ``"uncalibrated"`` in its place.
        probability: that they show one person, given *prior*; else None.
        prior: the probability before the images were looked at; None where it was not used.
        far_target: the false accept rate that the threshold was set for; else None.
        threshold: distances up to this are accepted; else None.
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


def verify(
    a: ImageLike,
    b: ImageLike,
    *,
    head: str | Path | Bundle | None = None,
    prior: float = 0.5,
    backbone: Backbone | None = None,
) -> Match:
    """Compare the faces of two images; or, with a head that was trained on whole pictures, the pictures.

    Args:
        a, b: paths, PIL images or arrays.
        head: a head that `featcache.faces.train` made, or its path. Without one the vectors are those of
            ``dlib:face_resnet``, layer ``mirrored``, and nothing is decided.
        prior: the probability that two such images show one person, before they are looked at; strictly between 0
            and 1.
        backbone: needed only where the head's vectors were made by a module given in Python.

    Raises:
        UnusableImageError: an image cannot be used, or no face is found in it; it is named.
        UsageError: the head is none for matching, or the prior is not between 0 and 1.
        RecipeMismatchError: the backbone does not follow the recipe of the head.
        MissingExtraError: dlib or its files are not installed.
    """
    if not 0 < prior < 1:
        raise UsageError(f"The prior probability of a match must lie between 0 and 1; {prior} does not.")
    if head is None:
        from featcache import backbones

        recipe = AlignedBackbone(backbones.get(DEFAULT_BACKBONE), Detector()).recipe
        vectors, seen = _vectors([a, b], recipe, [MIRRORED], backbone)
        return Match(
            1 - float(cosine_scores(vectors, np.array([[0, 1]]))[0]), False, second_pass=seen[0], several_faces=seen[1]
        )
    bundle = head if isinstance(head, Bundle) else Bundle.load(head)
    form = bundle.matching
    if bundle.recipe is None:
        raise RecipeMismatchError("This head was trained on vectors of unknown origin, so it cannot look at images.")
    vectors, seen = _vectors([a, b], bundle.recipe, [use.name for use in bundle.layers], backbone)
    scaled = bundle.scaled(vectors)
    scores = form.scores(scaled[:1], scaled[1:])
    calibration = form.calibration
    if calibration is None:
        return Match(1 - float(scores[0]), False, second_pass=seen[0], several_faces=seen[1])
    return Match(
        distance=1 - float(scores[0]),
        calibrated=True,
        decision=bool(calibration.decide(scores)[0]),
        probability=float(calibration.probability(scores, prior)[0]),
        prior=prior,
        far_target=calibration.far,
        threshold=1 - calibration.threshold,
        second_pass=seen[0],
        several_faces=seen[1],
    )


def _vectors(
    images: list[ImageLike], recipe: Recipe, layers: list[str], backbone: Backbone | None
) -> tuple[np.ndarray, tuple[int, int]]:
    """Vectors (2, d), and in how many images the face was found in the second pass, or was one of several."""
    if recipe.detection is not None:
        vectors, found = embed_faces(images, recipe, layers, backbone=backbone)
        return vectors, (sum(face.found == SECOND_PASS for face in found), sum(face.faces > 1 for face in found))
    rows = []
    for embedded in embed(images, backbone_for(recipe, backbone), layers):
        if embedded.vector is None:
            raise UnusableImageError(f"{embedded.name}: {embedded.reason}.")
        rows.append(embedded.vector)
    return np.stack(rows), (0, 0)
