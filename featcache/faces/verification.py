"""`verify`: do two images show one person?

`embed_faces`: the faces of images that are in no store.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featcache.core.errors import RecipeMismatchError, UnusableImageError, UsageError
from featcache.core.recipe import Recipe
from featcache.extraction.embed import BATCH, ImageLike, backbone_for, embed, upright_image
from featcache.faces.alignment import CHIP, MIRRORED, AlignedBackbone
from featcache.faces.detection import SECOND_PASS, Detection, Detector, decoded_image
from featcache.faces.extraction import DEFAULT_BACKBONE
from featcache.metrics.verification import cosine_scores
from featcache.training.bundle import Bundle

if TYPE_CHECKING:
    from featcache.backbones import Backbone


def aligned_for(recipe: Recipe, backbone: Backbone | None = None, *, centre_box: bool = False) -> AlignedBackbone:
    """The backbone on aligned faces that follows this recipe.

    Args:
        recipe: as kept in a store or a bundle.
        backbone: what turns an aligned face into a vector; by default it is found by its name, with the weights that
            were last used for it on this machine.
        centre_box: use the middle of the image where no face is found.

    Raises:
        RecipeMismatchError: the recipe is not one of aligned faces, or of another detection, chip or backbone.
        MissingExtraError: dlib or its files are not installed.
    """
    if recipe.detection is None or recipe.pixels.chip is None:
        raise RecipeMismatchError(
            f"The vectors of {recipe.backbone} were made of whole images, not of faces. "
            "`featcache faces extract` makes those of faces."
        )
    detector = Detector()
    whole = replace(recipe, detection=None, pixels=replace(recipe.pixels, chip=None))
    aligned = AlignedBackbone(backbone_for(whole, backbone), detector, centre_box=centre_box)
    if aligned.recipe != recipe:
        raise RecipeMismatchError(
            f"The vectors were made of faces that were found by the detection {recipe.detection[:12]} and cut out as "
            f"{recipe.pixels.chip!r}. This featcache, with the dlib that is installed, finds them by "
            f"{detector.recipe.fingerprint[:12]} and cuts out {CHIP!r}. "
            "Install the dlib of that time, or extract and train again."
        )
    return aligned


def embed_faces(
    images: Sequence[ImageLike],
    recipe: Recipe,
    layers: Sequence[str] = (MIRRORED,),
    *,
    backbone: Backbone | None = None,
    centre_box: bool = False,
) -> tuple[np.ndarray, list[Detection]]:
    """Find the faces of images, align them, and compute their vectors.

    Args:
        images: n paths, PIL images or arrays; at least one.
        recipe: of the vectors, as kept in a store or a bundle.
        layers: names of layers, which are put one after another.
        backbone: as for `aligned_for`.
        centre_box: use the middle of the image where no face is found.

    Returns:
        Vectors (n, d) float32 and the n detections, in the order given.

    Raises:
        UnusableImageError: an image cannot be used, or shows no face; it is named.
        RecipeMismatchError: as for `aligned_for`.
        SourceError: a path does not exist.
    """
    aligned = aligned_for(recipe, backbone, centre_box=centre_box)
    chosen = aligned.resolve_layers(layers)
    found, parts = [], []
    for start in range(0, len(images), BATCH):
        inputs = []
        for place, image in enumerate(images[start : start + BATCH], start):
            try:
                picture = decoded_image(upright_image(image, aligned))
                found.append(aligned.detector.detect(picture))
                inputs.append(aligned.prepare_face(picture, found[-1]))
            except UnusableImageError as error:
                name = str(image) if isinstance(image, (str, Path)) else f"image {place}"
                raise UnusableImageError(f"{name}: {error}.") from error
        arrays = aligned.forward(np.stack(inputs), chosen)
        parts.append(np.concatenate([arrays[layer.name].reshape(len(inputs), -1) for layer in chosen], axis=1))
    return np.concatenate(parts), found


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
    """Compare the faces of two images; or, with a head that was trained on whole images, the images.

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
    predictor = bundle.matching
    if bundle.recipe is None:
        raise RecipeMismatchError("This head was trained on vectors of unknown origin, so it cannot look at images.")
    vectors, seen = _vectors([a, b], bundle.recipe, [use.name for use in bundle.layers], backbone)
    scaled = bundle.scaled(vectors)
    scores = predictor.scores(scaled[:1], scaled[1:])
    calibration = predictor.calibration
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
