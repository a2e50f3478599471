"""Aligned faces: the chip that is cut out, and a backbone that sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import dlib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from featcache.backbones import Backbone, tiny_backbone
from featcache.core.errors import TransientImageError, UnknownNameError, UnusableImageError
from featcache.core.recipe import Recipe
from featcache.extraction.embed import embed
from featcache.faces.alignment import AlignedBackbone, aligned_chip

from .drawing import EYES, draw_face

if TYPE_CHECKING:
    from featcache.faces.detection import Detector

FACE = np.array([(0.86, 0.21), (0.65, 0.23), (0.12, 0.21), (0.33, 0.23), (0.49, 0.63)])
"""About where the landmarks of a face are in a square of side 1."""

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (700, 900, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def base() -> Backbone:
    return tiny_backbone()


@pytest.fixture(scope="module")
def faces() -> list[Image.Image]:
    return [draw_face(140, turned=8), draw_face(200, skin=(150, 105, 80)), draw_face(80)]


def dlibs_chip(image: Image.Image, landmarks: np.ndarray) -> Image.Image:
    points = [dlib.point(int(x), int(y)) for x, y in landmarks]
    face = dlib.full_object_detection(dlib.rectangle(0, 0, 9, 9), points)
    return Image.fromarray(dlib.get_face_chip(np.array(image), face, size=150, padding=0.25))


def plain_torch(base: Backbone, chips: list[Image.Image]) -> np.ndarray:
    """The vectors (n, d) as the tiny backbone's definition gives them, in float64."""
    resized = [np.asarray(chip.resize((32, 32), Image.Resampling.BILINEAR), np.float64) for chip in chips]
    x = (torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
    with torch.inference_mode():
        return base.module.double()(x).float().numpy()


@pytest.fixture
def expected(base: Backbone, detector: Detector, faces: list[Image.Image]) -> tuple[np.ndarray, np.ndarray]:
    """``pooled`` and ``mirrored``."""
    chips = [dlibs_chip(face, detector.detect(face).landmarks) for face in faces]
    mirrors = [chip.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for chip in chips]
    twin = tiny_backbone()
    pooled, seen = plain_torch(twin, chips), plain_torch(twin, mirrors)
    mean = (pooled.astype(np.float64) + seen) / 2
    return pooled, mean / np.linalg.norm(mean, axis=1, keepdims=True)


@pytest.mark.parametrize("names", [["pooled"], ["mirrored"], ["mirrored", "pooled"], ["pooled+mirrored"]])
def test_vectors_are_those_of_the_chips(base, detector, faces, expected, names: list[str]) -> None:
    aligned = AlignedBackbone(base, detector)
    layers = aligned.resolve_layers(names)
    wanted = {"pooled": expected[0], "mirrored": expected[1]}
    assert [layer.name for layer in layers] == [name for name in wanted if name in "+".join(names)]
    found = aligned.forward(np.stack([aligned.prepare(face) for face in faces]), layers)
    assert found.keys() == {layer.name for layer in layers}
    for layer in layers:
        assert found[layer.name].dtype == np.float32
        assert found[layer.name].shape[1:] == layer.shape
        np.testing.assert_allclose(found[layer.name], wanted[layer.name], rtol=1e-4, atol=1e-5)


def test_a_mirrored_vector_has_length_1_and_is_that_of_the_mirror_image_too(base, detector, faces) -> None:
    aligned = AlignedBackbone(base, detector)
    layers = aligned.resolve_layers(["mirrored"])
    inputs = np.stack([aligned.prepare(face) for face in faces])
    found = aligned.forward(inputs, layers)["mirrored"]
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(aligned.forward(inputs[:, :, ::-1], layers)["mirrored"], found, atol=1e-6)


def test_the_other_layers_of_the_backbone_come_along(base, detector, faces) -> None:
    aligned = AlignedBackbone(base, detector)
    layers = aligned.resolve_layers(["mirrored", "body.*:mean", "stem:none"])
    assert [layer.name for layer in layers] == ["stem:none", "body.0:mean", "body.1:mean", "mirrored"]
    assert [layer.position for layer in layers] == sorted(layer.position for layer in layers)
    inputs = np.stack([aligned.prepare(face) for face in faces])
    found = aligned.forward(inputs, layers)
    own = base.forward(inputs, layers[:3])
    assert list(found) == [layer.name for layer in layers]
    for name, array in own.items():
        np.testing.assert_array_equal(found[name], array)
    with pytest.raises(UnknownNameError, match="tail"):
        aligned.resolve_layers(["tail:mean", "mirrored"])


def test_the_mirror_of_what_a_callable_makes(detector: Detector) -> None:
    """A network that looks at the left half alone sees the right half in the mirror."""

    class LeftHalf(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[..., : x.shape[-1] // 2].mean((2, 3))

    def tensor(image: Image.Image) -> torch.Tensor:
        return torch.from_numpy(np.asarray(image, np.float32)).permute(2, 0, 1)

    base = Backbone.from_module(LeftHalf(), transform=tensor, name="left", version="1", input_size=(150, 150))
    aligned = AlignedBackbone(base, detector)
    face = draw_face(160, turned=12)
    found = aligned.forward(aligned.prepare(face)[None], aligned.resolve_layers(["mirrored"]))["mirrored"][0]
    whole = np.asarray(dlibs_chip(face, detector.detect(face).landmarks), np.float64).mean((0, 1))
    np.testing.assert_allclose(found, whole / np.linalg.norm(whole), rtol=1e-5)


def test_a_vector_of_zeros_stays_one(detector: Detector) -> None:
    class Nothing(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.zeros(len(x), 4)

    transform = tiny_backbone().recipe.pixels.transform
    aligned = AlignedBackbone(Backbone.from_module(Nothing(), transform=transform, name="zero"), detector)  # type: ignore[arg-type]
    batch = aligned.prepare(draw_face(150))[None]
    assert not aligned.forward(batch, aligned.resolve_layers(["mirrored"]))["mirrored"].any()


def test_without_a_face_an_image_cannot_be_used_unless_the_centre_will_do(base, detector) -> None:
    blank = Image.new("RGB", (90, 70), (1, 2, 3))
    with pytest.raises(UnusableImageError, match="no face was found"):
        AlignedBackbone(base, detector).prepare(blank)
    given = AlignedBackbone(base, detector, centre_box=True).prepare(blank)
    np.testing.assert_array_equal(given, base.prepare(dlibs_chip(blank, detector.detect(blank).landmarks)))


def test_known_detections_are_taken(base, detector) -> None:
    face = draw_face(150)
    moved = draw_face(150).transpose(Image.Transpose.ROTATE_180)
    known = {b"a" * 32: detector.detect(face)}
    aligned = AlignedBackbone(base, detector, detections=known.get)
    here = aligned.prepare(moved, b"a" * 32)
    np.testing.assert_array_equal(here, base.prepare(aligned_chip(moved, known[b"a" * 32].landmarks)))
    assert (here != base.prepare(moved)).any()
    with pytest.raises(TransientImageError, match="no detection is stored"):
        aligned.prepare(face, b"b" * 32)
    np.testing.assert_array_equal(aligned.prepare(face), aligned.prepare(face, b"a" * 32))


def test_the_recipe_tells_the_chip_and_the_detection(base, detector) -> None:
    recipe = AlignedBackbone(base, detector).recipe
    assert recipe.detection == detector.recipe.fingerprint
    assert Recipe.from_json(recipe.to_json()) == recipe
    assert {name for name, _, _ in recipe.differences(base.recipe)} == {"detection", "pixels.chip"}
    # Whether the middle will do is no matter of the vectors.
    middle = AlignedBackbone(base, detector, centre_box=True)
    assert middle.recipe == recipe
    assert middle.quarantine_key != AlignedBackbone(base, detector).quarantine_key


def test_what_is_built_for_backbones_takes_it_too(base, detector, faces, expected) -> None:
    aligned = AlignedBackbone(base, detector)
    blank = Image.new("RGB", (90, 70), (1, 2, 3))
    found = list(embed([*faces, blank], aligned, ["mirrored"]))
    np.testing.assert_allclose([one.vector for one in found[:3]], expected[1], rtol=1e-4, atol=1e-5)
    assert found[3].vector is None
    assert "no face" in str(found[3].reason)


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(-100, 1000), st.integers(-100, 800)),
    st.integers(2, 900),
    st.floats(-180, 180),
    st.integers(0, 2**32 - 1),
)
def test_a_chip_is_that_of_dlib(corner: tuple[int, int], side: int, degrees: float, seed: int) -> None:
    turn = np.deg2rad(degrees)
    turned = (FACE - 0.5) @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    rough = side / 30 * np.random.default_rng(seed).normal(size=(5, 2))
    landmarks = np.round(np.array(corner) + side * turned + rough)
    ours = np.asarray(aligned_chip(NOISE, landmarks)).astype(int)
    theirs = np.asarray(dlibs_chip(NOISE, landmarks)).astype(int)
    # A place that falls on the middle between two pixels can be rounded to either.
    assert np.abs(ours - theirs).max() <= 1
    assert (ours != theirs).mean() < 1e-3


@pytest.mark.parametrize("turned", [0, 25])
@pytest.mark.parametrize("side", [130, 300, 1000])
def test_the_eyes_come_to_one_place(detector: Detector, side: int, turned: float) -> None:
    """The pupils are the darkest of the eyes: they lie at one height and apart by about a third of the chip."""
    image = draw_face(side, turned=turned)
    chip = np.asarray(aligned_chip(image, detector.detect(image).landmarks)).sum(2).astype(float)
    assert chip.shape == (150, 150)
    pupils = []
    for half in (chip[40:80, 30:75], chip[40:80, 75:120]):
        y, x = np.unravel_index(half.argmin(), half.shape)
        pupils.append((x, y))
    (x0, y0), (x1, y1) = pupils
    assert abs(y0 - y1) <= 6
    apart = (x1 + 45 - x0) / 150
    assert apart == pytest.approx(0.33, abs=0.07)
    assert EYES[0][1] == EYES[1][1]


def test_fractions_of_pixels_count() -> None:
    landmarks = 100.4 + 200 * FACE
    whole = np.asarray(aligned_chip(NOISE, np.round(landmarks)))
    assert (np.asarray(aligned_chip(NOISE, landmarks)) != whole).any()


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (3000, 2)])
def test_five_landmarks_in_one_place_do_not_fail(size: tuple[int, int]) -> None:
    chip = aligned_chip(Image.new("RGB", size, (9, 9, 9)), np.zeros((5, 2)))
    assert (chip.size, chip.mode) == ((150, 150), "RGB")


def test_outside_the_image_the_chip_is_black() -> None:
    white = Image.new("RGB", (60, 60), (255, 255, 255))
    chip = np.asarray(aligned_chip(white, 60 * FACE))
    assert (chip[0] == 0).all()
    assert (chip[75, 75] == 255).all()
    assert not np.asarray(aligned_chip(white, 5000 + 60 * FACE)).any()
