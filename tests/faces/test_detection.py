"""Detections: against dlib itself, and read back from a store."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import dlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from featcache.backbones.families.dlib_weights import FIVE_LANDMARKS, installed_path
from featcache.core.errors import UnknownNameError
from featcache.core.recipe import Recipe
from featcache.faces.detection import (
    CENTRE_BOX,
    COLUMNS,
    FACE,
    FIRST_PASS,
    LONGEST,
    SECOND_PASS,
    Detection,
    Detector,
    StoredDetections,
    prominence,
)
from featcache.store import FeatureStore, StoreWriter
from featcache.store.column import ColumnReader
from featcache.store.compact import compact
from featcache.store.sources import Record, SourceRecords
from tests.store.making import recipe

from .drawing import EYES, beside, draw_face


@pytest.fixture(scope="module")
def by_dlib():
    """What dlib itself says of the one face of an image: box, score, landmarks."""
    hog, points = dlib.get_frontal_face_detector(), dlib.shape_predictor(str(installed_path(FIVE_LANDMARKS)))

    def look(image: Image.Image, enlarged: int):
        pixels = np.array(image)
        (box,), (score,), _ = hog.run(pixels, enlarged, 0.0)
        parts = points(pixels, box).parts()
        return (box.left(), box.top(), box.right(), box.bottom()), score, [(part.x, part.y) for part in parts]

    return look


def test_the_fingerprint_never_drifts(detector: Detector) -> None:
    """Stores of faces hold it: a changed word in the recipe would have every face detected again."""
    assert detector.recipe.fingerprint == "2952c7f83c789f7ece9d2b0889920f642d4ca7aa1d330bedc66b703b72c3f989"


@pytest.mark.parametrize("turned", [0, 15])
def test_a_face_is_where_dlib_finds_it(detector: Detector, by_dlib, turned: float) -> None:
    image = draw_face(200, turned=turned)
    found = detector.detect(image)
    box, score, landmarks = by_dlib(image, 0)
    assert (found.found, found.faces) == (FIRST_PASS, 1)
    assert found.box == box
    assert found.confidence == score
    np.testing.assert_array_equal(found.landmarks, landmarks)


def test_a_small_face_is_found_in_the_second_pass(detector: Detector, by_dlib) -> None:
    image = draw_face(80)
    found = detector.detect(image)
    box, score, landmarks = by_dlib(image, 1)
    assert (found.found, found.faces, found.box, found.confidence) == (SECOND_PASS, 1, box, score)
    np.testing.assert_array_equal(found.landmarks, landmarks)


def test_the_landmarks_are_the_corners_of_the_eyes_and_the_nose(detector: Detector) -> None:
    outer_right, inner_right, outer_left, inner_left, nose = detector.detect(draw_face(200)).landmarks / 200
    assert outer_left[0] < EYES[0][0] < inner_left[0] < 0.5 < inner_right[0] < EYES[1][0] < outer_right[0]
    for corner in (outer_right, inner_right, outer_left, inner_left):
        assert corner[1] == pytest.approx(EYES[0][1], abs=0.04)
    assert nose == pytest.approx((0.5, 0.63), abs=0.05)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (1, 300), (3000, 1), (10, 10), (300, 200), (1500, 1100)])
def test_where_there_is_no_face_the_box_is_in_the_middle(detector: Detector, size: tuple[int, int]) -> None:
    found = detector.detect(Image.new("RGB", size, (20, 200, 20)))
    assert (found.found, found.faces, found.confidence) == (CENTRE_BOX, 0, 0.0)
    left, top, right, bottom = found.box
    pixel = max(1.0, max(size) / LONGEST)
    assert (left + right + 1) / 2 == pytest.approx(size[0] / 2, abs=pixel)
    assert (top + bottom + 1) / 2 == pytest.approx(size[1] / 2, abs=pixel)
    assert right - left + 1 == pytest.approx(0.4 * min(size), abs=2 * pixel)
    assert bottom - top + 1 == pytest.approx(0.4 * min(size), abs=2 * pixel)
    assert np.isfinite(found.row()).all()


@pytest.mark.parametrize(
    "image",
    [
        ImageOps.grayscale(draw_face(180)).convert("RGB"),
        draw_face(180).point(lambda level: level // 16),
        draw_face(180, turned=90),
        draw_face(180, turned=180),
        draw_face(30),
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 160, 3), dtype=np.uint8)),
    ],
    ids=["gray", "dark", "lying", "upside down", "far", "noise"],
)
def test_whatever_the_image_there_is_a_row(detector: Detector, image: Image.Image) -> None:
    row = detector.prepare(image)
    assert row.shape == (len(COLUMNS),)
    assert row.dtype == np.float32
    assert np.isfinite(row).all()
    assert (row[0] == CENTRE_BOX) == (row[1] == 0)


def test_a_gray_face_is_found(detector: Detector) -> None:
    assert detector.detect(ImageOps.grayscale(draw_face(180)).convert("RGB")).found == FIRST_PASS


def test_a_large_image_is_downscaled(detector: Detector, by_dlib) -> None:
    """The detector's pixels are of the smaller image, the places those of the large one."""
    image = Image.new("RGB", (2048, 1024), (70, 90, 120))
    image.paste(draw_face(800), (700, 100))
    found = detector.detect(image)
    smaller = image.resize((1024, 512), Image.Resampling.BILINEAR)
    box, score, landmarks = by_dlib(smaller, 0)
    assert (found.found, found.confidence) == (FIRST_PASS, score)
    np.testing.assert_allclose(found.box, 2 * np.array(box) + 0.5)
    np.testing.assert_allclose(found.landmarks, 2 * np.array(landmarks) + 0.5)
    eyes = found.landmarks[:4].mean(0)
    np.testing.assert_allclose(eyes, (700 + 0.5 * 800, 100 + EYES[0][1] * 800), atol=0.04 * 800)


def test_the_larger_of_two_faces_is_taken(detector: Detector) -> None:
    small, large = draw_face(140), draw_face(240)
    for faces in ((small, large), (large, small)):
        found = detector.detect(beside(*faces))
        assert found.faces == 2
        middle = 260 if faces[1] is large else 120
        assert (found.box[0] + found.box[2]) / 2 == pytest.approx(middle, abs=24)


def test_of_two_equal_faces_the_one_in_the_centre_is_taken(detector: Detector) -> None:
    plain = Image.new("RGB", (180, 10), (70, 90, 120))
    found = detector.detect(beside(plain, draw_face(180), draw_face(180)))
    assert found.faces == 2
    assert (found.box[0] + found.box[2]) / 2 == pytest.approx(270, abs=18)


sides = st.integers(1, 400)
boxes = st.tuples(st.integers(-50, 300), st.integers(-50, 300), sides, sides).map(
    lambda b: (b[0], b[1], b[0] + b[2] - 1, b[1] + b[3] - 1)
)


@settings(deadline=None)
@given(boxes, sides, sides, st.integers(2, 9))
def test_prominence_does_not_depend_on_the_scale(box, width: int, height: int, times: int) -> None:
    left, top, right, bottom = box
    larger = (times * left, times * top, times * (right + 1) - 1, times * (bottom + 1) - 1)
    assert prominence(larger, (times * width, times * height)) == pytest.approx(prominence(box, (width, height)))


@settings(deadline=None)
@given(boxes, sides, sides)
def test_prominence_of_a_box_is_that_of_its_mirror_image(box, width: int, height: int) -> None:
    left, top, right, bottom = box
    across = (width - 1 - right, top, width - 1 - left, bottom)
    down = (left, height - 1 - bottom, right, height - 1 - top)
    expected = pytest.approx(prominence(box, (width, height)))
    assert prominence(across, (width, height)) == expected
    assert prominence(down, (width, height)) == expected


def test_prominence_of_a_box_in_the_centre_is_its_share_of_the_image() -> None:
    assert prominence((25, 25, 74, 74), (100, 100)) == 0.25
    # A tenth of the width away: twice a hundredth less.
    assert prominence((35, 25, 84, 74), (100, 100)) == pytest.approx(0.23)


exact = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(deadline=None)
@given(
    st.sampled_from([FIRST_PASS, SECOND_PASS, CENTRE_BOX]),
    st.integers(0, 500),
    exact,
    st.tuples(exact, exact, exact, exact),
    st.lists(exact, min_size=10, max_size=10),
)
def test_a_row_reads_back_as_its_detection(found, faces, confidence, box, numbers) -> None:
    one = Detection(found, faces, confidence, box, np.array(numbers, np.float32).reshape(5, 2))
    back = Detection.of_row(one.row())
    assert (back.found, back.faces, back.confidence, back.box) == (found, faces, confidence, box)
    np.testing.assert_array_equal(back.landmarks, one.landmarks)
    assert dict(zip(COLUMNS, one.row(), strict=True))["y4"] == np.float32(numbers[9])


@pytest.mark.slow
def test_many_threads_find_what_one_finds(detector: Detector) -> None:
    """A detector of dlib that is used by two threads at once gives wrong boxes and raises nothing."""
    images = [draw_face(130 + 10 * (i % 5), turned=5 * i - 25) for i in range(10)]
    images += [beside(draw_face(130), draw_face(150 + 10 * i), height=180) for i in range(2)]
    alone = [detector.prepare(image) for image in images]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(detector.prepare, images * 4))
    np.testing.assert_array_equal(together, alone * 4)
    assert {row[0] for row in alone} == {FIRST_PASS}


def test_a_new_detector_finds_the_same(detector: Detector) -> None:
    image = draw_face(170)
    np.testing.assert_array_equal(Detector().prepare(image), detector.prepare(image))


def test_the_recipe_names_the_release_of_dlib_and_the_landmarks(detector: Detector) -> None:
    recipe = detector.recipe
    assert recipe.backbone == "dlib:hog5"
    assert recipe.weights == FIVE_LANDMARKS.sha256
    assert recipe.pixels.transform.version.endswith(f"dlib {dlib.__version__.split('.')[0]}")
    assert Recipe.from_json(recipe.to_json()) == recipe


def test_there_is_one_layer(detector: Detector) -> None:
    (layer,) = detector.resolve_layers(["face"])
    assert (layer.name, layer.shape, layer.default_dtype) == ("face", (17,), "float32")
    with pytest.raises(UnknownNameError, match="Known: face"):
        detector.resolve_layers(["pooled"])


def test_rows_that_were_moved_in_between_are_read_where_they_are(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, keys = tmp_path / "s.fcache", [bytes([i]) * 32 for i in range(6)]
    rows = np.zeros((6, len(COLUMNS)), np.float32)
    rows[:, -1] = np.arange(6)
    for half in (slice(0, 3), slice(3, 6)):
        with StoreWriter(store) as writer:
            space = writer.space(recipe(Detector.name))
            space.declare(FACE, "0", 0, "float32")
            space.append(keys[half], {(FACE, "0"): rows[half]})
            space.seal()
            records = [Record(f"{i}.jpg", key, "a", None, None, 1, 2, 3, 4, 5) for i, key in enumerate(keys)]
            SourceRecords(writer.catalogue, "people", "/nowhere").save(records)
    opened = FeatureStore.open(store)
    expected = repr(StoredDetections(opened, opened.spaces[0].fingerprint).of(keys))
    asked = []

    def places_of_before(*arguments):
        found = real(*arguments)
        asked.append(set(found.values()))
        if len(asked) == 1:
            compact(store)
        return found

    real = ColumnReader.places
    monkeypatch.setattr(ColumnReader, "places", places_of_before)
    late = FeatureStore.open(store)
    assert repr(StoredDetections(late, late.spaces[0].fingerprint).of(keys)) == expected
    assert len(asked) == 2
    assert asked[0] != asked[1]
