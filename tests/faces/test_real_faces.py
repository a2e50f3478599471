"""Faces of people on photographs that stand outside the project, where ``FEATCACHE_DATA`` says."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dlib
import numpy as np
import pytest
from PIL import Image

import featcache as fc
from featcache import faces
from featcache.backbones.families.dlib_weights import FACE_NETWORK, installed_path
from featcache.faces.alignment import aligned_chip
from featcache.faces.detection import FIRST_PASS, Detector

pytestmark = [pytest.mark.real, pytest.mark.slow]


@pytest.fixture(scope="module")
def lfw() -> Path:
    data = os.environ.get("FEATCACHE_DATA")
    if not data:
        pytest.skip("FEATCACHE_DATA is unset: it names a folder with lfw-158/")
    folder = Path(data, "lfw-158")
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    return folder


@pytest.fixture(scope="module")
def images(lfw: Path) -> list[Image.Image]:
    """40 photographs, one a person."""
    found = []
    for folder in sorted(lfw.iterdir())[::4]:
        with Image.open(min(folder.iterdir())) as image:
            found.append(image.convert("RGB"))
    return found


def test_faces_of_photographs_and_dlibs_chips_of_them(detector: Detector, images: list[Image.Image]) -> None:
    found = [detector.detect(image) for image in images]
    assert sum(one.found == FIRST_PASS for one in found) >= 38
    for image, one in zip(images, found, strict=True):
        points = [dlib.point(int(x), int(y)) for x, y in one.landmarks]
        face = dlib.full_object_detection(dlib.rectangle(0, 0, 9, 9), points)
        expected = dlib.get_face_chip(np.array(image), face, size=150, padding=0.25)
        np.testing.assert_array_equal(aligned_chip(image, one.landmarks), expected)


def test_threads_find_the_same_in_photographs(detector: Detector, images: list[Image.Image]) -> None:
    alone = [detector.prepare(image) for image in images]
    with ThreadPoolExecutor(4) as pool:
        np.testing.assert_array_equal(list(pool.map(detector.prepare, images * 2)), alone * 2)


def test_an_enlarged_photograph_shows_the_same_face(detector: Detector, images: list[Image.Image]) -> None:
    """Of 1500 pixels it is looked at with 1024, and the landmarks come back in its own pixels."""
    for image in images[::8]:
        large = detector.detect(image.resize((1500, 1500), Image.Resampling.BICUBIC))
        apart = np.linalg.norm(large.landmarks / 6 - detector.detect(image).landmarks, axis=1)
        assert apart.mean() < 2


def test_vectors_are_dlibs_descriptors_and_tell_people_apart(lfw: Path, tmp_path: Path) -> None:
    people = sorted(lfw.iterdir())[::20]
    for folder in people:
        (tmp_path / "some" / folder.name).mkdir(parents=True)
        for path in sorted(folder.iterdir())[:4]:
            shutil.copy(path, tmp_path / "some" / folder.name)
    report = faces.extract(tmp_path / "some", tmp_path / "s.fcache", centre_box=True, progress=False)
    assert (report.items, report.computed, report.quarantined) == (32, 32, 0)
    opened = fc.open(tmp_path / "s.fcache")
    X, y, items = opened.arrays(layers="pooled", space=report.space)
    found = faces.detections(opened)
    network = dlib.face_recognition_model_v1(str(installed_path(FACE_NETWORK)))
    for vector, item in list(zip(X, items, strict=True))[::4]:
        with Image.open(lfw / item.uri) as image:
            chip = aligned_chip(image.convert("RGB"), found[item.sha256].landmarks)
        expected = np.array(network.compute_face_descriptor(np.array(chip)))
        assert np.linalg.norm(vector - expected) <= 1e-4 * np.linalg.norm(expected), item.uri
    M, _, _ = opened.arrays(layers="mirrored", space=report.space)
    scores = M @ M.T
    one, other = np.triu_indices(len(M), 1)
    same = y[one] == y[other]
    alike, unlike = scores[one, other][same], scores[one, other][~same]
    # The share of pairs of pairs in the right order, which is the area under the ROC curve.
    assert (alike[:, None] > unlike).mean() > 0.98
