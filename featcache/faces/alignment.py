"""Aligned faces: `AlignedBackbone`, a backbone that sees the aligned face of each image in place of the whole image.

`aligned_chip` cuts out the face: a square, by the similarity transform that puts the five landmarks where those of the
mean face lie. For integer landmarks it equals dlib's ``get_face_chip(…, size=150, padding=0.25)`` to the pixel; it also
takes fractional ones (of an image that was downscaled for detection).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image as pil

from featcache import backbones
from featcache.backbones import Backbone, Extractor, Layer
from featcache.backbones.extractor import held
from featcache.backbones.layers import POOLED
from featcache.backbones.runtimes import passes_for
from featcache.core.arguments import checked
from featcache.core.errors import (
    MissingVectorsError,
    RecipeMismatchError,
    TransientImageError,
    UnknownNameError,
    UnusableImageError,
    UsageError,
)
from featcache.core.recipe import Recipe, StandardTransform
from featcache.extraction.embed import backbone_for
from featcache.faces.detection import CENTRE_BOX, Detection, Detector, StoredDetections, dlib_library
from featcache.images import decode as decoding
from featcache.images.pixels import decoded_image
from featcache.store import FeatureStore

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from PIL.Image import Image

    from featcache.backbones.runtimes.passes import Passes
    from featcache.images.decode import Decoded

DEFAULT_BACKBONE = "dlib:face_resnet"

MIRRORED = "mirrored"
"""The layer that is the mean of ``pooled`` of the face and ``pooled`` of its mirror image, L2-normalized."""

SIDE = 150
PADDING = 0.25
CHIP = f"dlib/1: 5 landmarks, {SIDE} x {SIDE}, padding {PADDING}"
"""The chip's name in a recipe."""

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
    """Cut out the face, upright.

    Args:
        image: upright RGB.
        landmarks: (5, 2) float, x and y in pixels, in the order of `Detection.landmarks`.

    Returns:
        RGB, 150 × 150 pixels; black outside the image.

    Raises:
        MissingExtraError: dlib is not installed.
    """
    dlib = dlib_library()
    shape = dlib.chip_dims(SIDE, SIDE)
    # The least-squares similarity between the landmarks and the mean face, after S. Umeyama (IEEE Transactions on
    # Pattern Analysis and Machine Intelligence 13, 1991, 376-380).
    chip = dlib.chip_details(_points(dlib, _WHERE), _points(dlib, landmarks), shape)
    rect, angle = chip.rect, chip.angle
    # Only this part of a large image becomes an array. It holds everything that dlib's image pyramid reads, and the
    # levels of the pyramid begin at the same pixels.
    reach = 0.75 * rect.width() + 4 * rect.width() / SIDE + 8
    centre = rect.center()
    left, right = _within(centre.x - reach, centre.x + reach, image.width)
    top, bottom = _within(centre.y - reach, centre.y + reach, image.height)
    part = np.asarray(image.crop((left, top, right, bottom)))
    moved = dlib.drectangle(rect.left() - left, rect.top() - top, rect.right() - left, rect.bottom() - top)
    return pil.fromarray(dlib.extract_image_chip(part, dlib.chip_details(moved, shape, angle)))


def _points(dlib: Any, points: np.ndarray) -> Any:
    return dlib.dpoints([dlib.dpoint(x, y) for x, y in points.tolist()])


def _within(low: float, high: float, side: int) -> tuple[int, int]:
    """The range of pixels from *low* to *high* within an axis; at least one pixel."""
    first = min(max(0, int(np.floor(low))), side - 1)
    return first, max(first + 1, min(side, int(np.ceil(high)) + 1))


class AlignedBackbone:
    """A backbone on aligned faces; an `Extractor`.

    Its layers are those of the backbone and `MIRRORED`. An image without a detected face cannot be used, unless
    *centre_box* is on: then the center of the image is taken, and the detection records it.

    Args:
        base: any backbone.
        detector: finds the faces.
        centre_box: use the center of the image where no face is found.
        detections: returns the stored detection of an image by its SHA-256, or None if there is none; by default
            faces are detected in each image.
    """

    def __init__(
        self,
        base: Extractor,
        detector: Detector,
        *,
        centre_box: bool = False,
        detections: Callable[[bytes], Detection | None] | None = None,
    ) -> None:
        self.base, self.detector, self.centre_box = base, detector, centre_box
        self.quarantine_key = "; ".join(filter(None, [base.quarantine_key, "centre box" if centre_box else ""]))
        self._detections = detections

    @property
    def name(self) -> str:
        """The backbone's own name."""
        return self.base.name

    @property
    def recipe(self) -> Recipe:
        """The backbone's recipe with the chip and the fingerprint of the detection."""
        base = self.base.recipe
        return replace(
            base, pixels=replace(base.pixels, chip=CHIP, scaled=None), detection=self.detector.recipe.fingerprint
        )

    def resolve_layers(self, layers: Sequence[str]) -> list[Layer]:
        """Resolve layers as the backbone does, with `MIRRORED` last."""
        names = [part.strip() for text in layers for part in text.split("+")]
        others = [name for name in names if name != MIRRORED]
        chosen = self.base.resolve_layers(others) if others else []
        if len(others) < len(names):
            (pooled,) = self.base.resolve_layers([POOLED])
            chosen.append(Layer(MIRRORED, pooled.position + 1, pooled.shape))
        return chosen

    def held(self) -> AbstractContextManager[None]:
        """As `featcache.backbones.extractor.held`, of the backbone."""
        return held(self.base)

    def load(self) -> None:
        """Load the backbone."""
        self.base.load()

    @functools.cached_property
    def _decoder(self) -> str:
        return self.base.recipe.pixels.decoder  # asked once: a recipe digests the weights, and each image asks

    def decode(self, data: bytes) -> Decoded:
        """Decode an image file's bytes at full size, with the decoder of the recipe.

        Raises:
            UnusableImageError, ImageMemoryError, UsageError: as for `featcache.images.decode.decode_rgb`.
        """
        return decoding.decode(data, self._decoder)

    def prepare(self, image: Image | Decoded, sha256: bytes | None = None) -> np.ndarray:
        """Turn the face of an image into the backbone's input.

        Args:
            image: any PIL image, or the result of `decode`.
            sha256: of the image's bytes, the key of its stored detection.

        Raises:
            UnusableImageError: no face was found, or the backbone cannot use the chip.
            TransientImageError: the store has no detection of the image.
        """
        upright = decoded_image(image).image
        if self._detections is None or sha256 is None:
            detection = self.detector.detect(upright)
        elif (stored := self._detections(sha256)) is not None:
            detection = stored
        else:
            raise TransientImageError("no detection is stored, since the image could not be used at that time")
        if detection.found == CENTRE_BOX and not self.centre_box:
            raise UnusableImageError("no face was found (in the image as it is and enlarged twice)")
        return self.base.prepare(aligned_chip(upright, detection.landmarks))

    def forward(self, batch: np.ndarray, layers: Sequence[Layer]) -> dict[str, np.ndarray]:
        """Run the faces through the backbone, and for `MIRRORED` their mirror images too.

        Args:
            batch: (n, …) of what `prepare` returned for n images.
            layers: from `resolve_layers`.

        Returns:
            Activations (n, …) float32 by layer name.
        """
        return self._with_mirror(self.base.forward, batch, layers)

    def reference(self) -> AlignedBackbone:
        """The same faces in eager torch at float32; aligned faces have no published transform.

        Where no face was found the center of the image is used: the store has vectors only of images that it used.
        """
        base = self.base
        if isinstance(base, Backbone):
            base = base.with_runtime(runtime="torch", precision="float32")
        return AlignedBackbone(base, self.detector, centre_box=True, detections=self._detections)

    def passes(self, **options: Any) -> Passes:
        """Passes on the backbone's runtime; the arguments are those of `featcache.backbones.runtimes.passes_for`."""
        return _AlignedPasses(self, passes_for(self.base, **options))

    def layers_of_base(self, layers: Sequence[Layer]) -> list[Layer]:
        """The backbone's layers that these layers are computed from."""
        wanted = {layer.name: layer for layer in layers}
        mirrored = wanted.pop(MIRRORED, None)
        if mirrored is not None:
            wanted[POOLED] = Layer(POOLED, mirrored.position - 1, mirrored.shape)
        return list(wanted.values())

    def _with_mirror(
        self,
        run: Callable[[np.ndarray, Sequence[Layer]], dict[str, np.ndarray]],
        batch: np.ndarray,
        layers: Sequence[Layer],
    ) -> dict[str, np.ndarray]:
        names = [layer.name for layer in layers]
        activations = run(batch, self.layers_of_base(layers))
        if MIRRORED in names:
            pooled = [layer for layer in self.layers_of_base(layers) if layer.name == POOLED]
            # Images are (n, h, w, 3); the tensors of a callable transform are (n, 3, h, w).
            width_axis = 2 if isinstance(self.base.recipe.pixels.transform, StandardTransform) else 3
            mirror_images = run(np.ascontiguousarray(np.flip(batch, width_axis)), pooled)[POOLED]
            mean = _normalized(activations[POOLED].astype(np.float64) + mirror_images)
            activations = activations | {MIRRORED: mean.astype(np.float32)}
        return {name: activations[name] for name in names}


class _AlignedPasses:
    """Passes of faces on the backbone's runtime."""

    def __init__(self, aligned: AlignedBackbone, base: Passes) -> None:
        self._aligned, self._base = aligned, base

    @property
    def runtime(self) -> str:
        return self._base.runtime

    @property
    def parallel(self) -> bool:
        return self._base.parallel

    @property
    def batch_size(self) -> int:
        return self._base.batch_size

    @property
    def notes(self) -> list[str]:
        return self._base.notes

    def ready(self, batch: np.ndarray, layers: Sequence[Layer]) -> None:
        # The mirror images need a pass of `pooled` alone, which is a separate graph.
        wanted = self._aligned.layers_of_base(layers)
        self._base.ready(batch, wanted)
        if any(layer.name == MIRRORED for layer in layers):
            self._base.ready(batch, [layer for layer in wanted if layer.name == POOLED])

    def forward(self, batch: np.ndarray, layers: Sequence[Layer]) -> dict[str, np.ndarray]:
        return self._aligned._with_mirror(self._base.forward, batch, layers)


def _normalized(rows: np.ndarray) -> np.ndarray:
    """Scale rows (n, d) to length 1; zero rows stay zero."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms > 0, norms, 1.0)


def aligned_for(
    recipe: Recipe,
    backbone: Backbone | None = None,
    *,
    detector: Detector | None = None,
    centre_box: bool = False,
) -> AlignedBackbone:
    """The backbone on aligned faces that follows a recipe.

    Args:
        recipe: as stored in a bundle or a store.
        backbone: computes the vector of an aligned face; by default it is found by name, with the weights that were
            last used for this recipe on this machine.
        detector: finds the faces.
        centre_box: use the center of the image where no face is found.

    Raises:
        RecipeMismatchError: the recipe is not one of aligned faces, or has another detection, chip or backbone.
        MissingExtraError: dlib or its files are not installed.
    """
    if recipe.detection is None or recipe.pixels.chip is None:
        raise RecipeMismatchError(
            f"The vectors of {recipe.backbone} are those of whole images, not of faces. "
            "`featcache faces extract` computes those of faces."
        )
    whole = replace(recipe, detection=None, pixels=replace(recipe.pixels, chip=None))
    aligned = AlignedBackbone(backbone_for(whole, backbone), detector or Detector(), centre_box=centre_box)
    if aligned.recipe != recipe:
        raise RecipeMismatchError(
            f"The faces of these vectors were found by the detection {recipe.detection[:12]} and cut out as "
            f"{recipe.pixels.chip!r}. This featcache, with the installed dlib, uses the detection "
            f"{str(aligned.recipe.detection)[:12]} and cuts out {CHIP!r}. "
            "Install the dlib of that time, or extract and train again."
        )
    return aligned


@checked
def aligned_backbone(
    store: str | Path | FeatureStore,
    space: str | None = None,
    *,
    backbone: Backbone | None = None,
    weights: str | Path | None = None,
) -> AlignedBackbone:
    """What computed the face vectors of a space, with the detections that the store holds.

    Args:
        store: a store or its path.
        space: start of the space's fingerprint; needed only where the store holds several.
        backbone: needed only where the vectors were computed by a module given in Python.
        weights: a file of weights for the backbone; by default the one that was last used for this recipe on this
            machine, or the published ones.

    Raises:
        MissingVectorsError: the detections are not in the store.
        UsageError: the space holds no aligned faces, or a backbone and weights are given.

    Example:
        >>> fc.check_live("people.fcache", backbone=fc.faces.aligned_backbone("people.fcache")).failed
        0
    """
    opened = FeatureStore.open(store)
    recipe = opened.space(space).recipe
    detector = Detector()
    if recipe.backbone == detector.name:
        detector.reference()
    if recipe.detection is None:
        raise UsageError(f"The vectors of {recipe.backbone} are those of whole images, not of aligned faces.")
    if backbone is not None and weights is not None:
        raise UsageError("A backbone brings its weights. Give one of the two, backbone or weights.")
    if backbone is None:
        backbone = backbones.for_recipe(recipe, weights=weights)
    stored = StoredDetections(opened, recipe.detection)
    return AlignedBackbone(backbone.with_pixels(recipe.pixels), detector, centre_box=True, detections=stored)


def preferred_layer(store: FeatureStore, source: str | Sequence[str] | None = None, space: str | None = None) -> str:
    """The layer to compare if none is named: ``mirrored`` or ``pooled``, whichever more images of the source have.

    Args:
        store: the store.
        source: the source's name; needed only where there are several.
        space: the space's fingerprint; needed only where there are several.

    Raises:
        UnknownNameError: the space has neither layer, or there is no such source or space.
        MissingVectorsError: no image of the source has either.
    """
    stored = store.space(space).layers
    candidates = [name for name in (MIRRORED, POOLED) if name in stored]
    if not candidates:
        raise UnknownNameError.among("stored layer", POOLED, list(stored), "Name one of the stored layers.")
    contents = [item.sha256 for item in store.items(source=source)]
    counts = {layer: rows_having(store, layer, contents, space) for layer in candidates}
    best = max(candidates, key=lambda layer: counts[layer])  # `mirrored` if both are equal
    if not counts[best]:
        raise MissingVectorsError(
            f"No image of source {', '.join(map(repr, store.source_names(source)))} has vectors of "
            f"{' or '.join(candidates)} in this space. Run `featcache faces extract` on it (or `featcache extract` for "
            "whole images), or name another layer."
        )
    return best


def rows_having(store: FeatureStore, layer: str, sha256s: Sequence[bytes], space: str | None = None) -> int:
    """How many of these contents have a vector of a stored layer."""
    return int(store.has(list(dict.fromkeys(sha256s)), layer, space=space).sum())
