"""The aligned face is dlib's, to the pixel, whatever the place, size and turn of the face."""

from __future__ import annotations

import dlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from featcache.faces.aligned import aligned_chip
from featcache.faces.detection import Detector

from .drawing import EYES, draw_face

FACE = np.array([(0.86, 0.21), (0.65, 0.23), (0.12, 0.21), (0.33, 0.23), (0.49, 0.63)])
"""About where the landmarks of a face are in a square of side 1."""

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (700, 900, 3), dtype=np.uint8))


def dlibs_chip(image: Image.Image, landmarks: np.ndarray) -> np.ndarray:
    points = [dlib.point(int(x), int(y)) for x, y in landmarks]
    face = dlib.full_object_detection(dlib.rectangle(0, 0, 9, 9), points)
    return dlib.get_face_chip(np.array(image), face, size=150, padding=0.25)


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
    theirs = dlibs_chip(NOISE, landmarks).astype(int)
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
