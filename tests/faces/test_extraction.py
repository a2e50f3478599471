"""`faces.extract`: every image is accounted for, and nothing is done twice."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

import featcache as fc
from featcache import faces
from featcache.backbones import Backbone, tiny_backbone
from featcache.core.errors import MissingVectorsError, UnknownNameError, UnusableImageError, UsageError
from featcache.extraction import NothingUsableError
from featcache.faces.alignment import AlignedBackbone
from featcache.faces.detection import CENTRE_BOX, FIRST_PASS, SECOND_PASS, Detector

from .drawing import draw_face

if TYPE_CHECKING:
    from featcache.faces import FacesReport


@pytest.fixture(scope="module")
def base() -> Backbone:
    return tiny_backbone()


@pytest.fixture(scope="module")
def original(tmp_path_factory, draw_people: Callable[[Path], Path], base: Backbone) -> tuple[Path, FacesReport]:
    """A folder with ``people/`` and the store of their faces, and the report of the run that made it."""
    folder = tmp_path_factory.mktemp("faces")
    draw_people(folder / "people")
    time.sleep(2.1)  # from now on the times of the files vouch for them
    report = faces.extract(folder / "people", folder / "s.fcache", backbone=base, progress=False)
    return folder, report


@pytest.fixture
def store(original: tuple[Path, FacesReport], tmp_path: Path) -> Path:
    """A copy of the store."""
    return Path(shutil.copytree(original[0] / "s.fcache", tmp_path / "s.fcache"))


@pytest.fixture
def people(original: tuple[Path, FacesReport]) -> Path:
    return original[0] / "people"


def counts(report: FacesReport) -> dict[str, int]:
    names = ("items", "first_pass", "second_pass", "centre_box", "no_face", "unusable", "several_faces")
    return {name: getattr(report, name) for name in names}


def is_consistent(report: FacesReport) -> bool:
    looks = report.first_pass + report.second_pass + report.centre_box + report.no_face + report.unusable
    return (
        looks == report.items == report.computed + report.reused + report.quarantined
        and report.quarantined == report.no_face + report.unusable == len(report.quarantine)
    )


FOUND = {
    "items": 13, "first_pass": 8, "second_pass": 2, "centre_box": 0, "no_face": 2, "unusable": 1, "several_faces": 2,
}  # fmt: skip


def test_every_image_is_accounted_for(original: tuple[Path, FacesReport]) -> None:
    folder, report = original
    assert counts(report) == FOUND
    assert is_consistent(report)
    assert (report.detected, report.computed, report.reused, report.added) == (12, 10, 0, 12)
    reasons = dict(report.quarantine)
    assert reasons.keys() == {"ann/red.png", "bob/tiny.png", "bob/text.png"}
    assert "no face was found" in reasons["ann/red.png"]
    assert "not an image" in reasons["bob/text.png"]
    opened = fc.open(folder / "s.fcache")
    assert dict(opened.quarantine()) == reasons
    assert (opened.status()["items"], opened.status()["quarantined"]) == (10, 3)
    assert opened.verify().ok


def test_vectors_are_those_of_the_faces(original: tuple[Path, FacesReport], base: Backbone, detector: Detector) -> None:
    folder, report = original
    aligned = AlignedBackbone(base, detector)
    layers = aligned.resolve_layers(["pooled", "mirrored"])
    opened = fc.open(folder / "s.fcache")
    for layer in layers:
        X, y, items = opened.arrays(layers=layer.name, space=report.space)
        assert len(items) == 10
        for vector, label, item in zip(X, y, items, strict=True):
            with Image.open(folder / "people" / item.uri) as image:
                expected = aligned.forward(aligned.prepare(image.convert("RGB"))[None], layers)[layer.name][0]
            np.testing.assert_allclose(vector, expected, rtol=1e-4, atol=1e-6)
            assert label == item.uri.split("/")[0]


def test_a_second_run_does_nothing(store: Path, people: Path, base: Backbone) -> None:
    before = sorted((store / "shards").rglob("*.h5"))
    report = faces.extract(people, store, backbone=base, progress=False)
    assert counts(report) == FOUND
    assert is_consistent(report)
    assert (report.detected, report.computed, report.reused) == (0, 0, 10)
    assert sorted((store / "shards").rglob("*.h5")) == before


def test_another_backbone_looks_for_no_faces(store: Path, people: Path, original) -> None:
    report = faces.extract(people, store, backbone=tiny_backbone(seed=1), layers=["mirrored"], progress=False)
    assert (report.detected, report.computed) == (0, 10)
    assert counts(report) == FOUND
    assert report.detection == original[1].detection
    assert report.space != original[1].space
    assert len(fc.open(store).spaces) == 3


def test_a_new_layer_is_added(store: Path, people: Path, base: Backbone) -> None:
    report = faces.extract(people, store, backbone=base, layers=["body.1:mean"], progress=False)
    assert (report.detected, report.computed) == (0, 10)
    assert list(fc.open(store).space(report.space).layers) == ["body.1:mean", "pooled", "mirrored"]


def test_the_centre_will_do_afterwards(store: Path, people: Path, base: Backbone) -> None:
    """Images without a face are tried again when the middle will do, keep their vectors, and stay known as such."""
    report = faces.extract(people, store, backbone=base, centre_box=True, progress=False)
    assert counts(report) == FOUND | {"centre_box": 2, "no_face": 0}
    assert is_consistent(report)
    assert (report.detected, report.computed, report.reused, report.quarantined) == (0, 2, 10, 1)
    opened = fc.open(store)
    assert [uri for uri, _ in opened.quarantine()] == ["bob/text.png"]
    assert opened.status()["quarantined"] == 1
    assert len(opened.arrays(space=report.space)[0]) == 12
    centred = {sha256 for sha256, one in faces.detections(opened).items() if one.found == CENTRE_BOX}
    assert {item.uri for item in opened.items() if item.sha256 in centred} == {
        "ann/red.png", "bob/tiny.png",
    }  # fmt: skip
    for centre_box in (False, True):
        report = faces.extract(people, store, backbone=base, centre_box=centre_box, progress=False)
        assert (report.computed, report.reused, report.centre_box, report.no_face) == (0, 12, 2, 0)
        assert is_consistent(report)


def test_detections_tell_how_each_face_was_found(store: Path, original, people: Path, detector: Detector) -> None:
    opened = fc.open(store)
    found = faces.detections(store, "people", detection=original[1].detection)
    by_name = {item.uri: found[item.sha256] for item in opened.items() if item.uri != "bob/text.png"}
    assert len(by_name) == len(found) == 12
    assert {uri for uri, one in by_name.items() if one.found == SECOND_PASS} == {"ann/far.png", "bob/far.png"}
    assert {uri for uri, one in by_name.items() if one.faces == 2} == {"ann/two.png", "bob/two.png"}
    assert by_name["ann/near-0.png"].found == FIRST_PASS
    with Image.open(people / "bob" / "near-2.png") as image:
        np.testing.assert_array_equal(by_name["bob/near-2.png"].row(), detector.prepare(image.convert("RGB")))


def test_detections_that_are_not_there(store: Path, tmp_path: Path, photos: Path, base: Backbone) -> None:
    fc.extract(photos, tmp_path / "whole.fcache", backbone=base, progress=False)
    with pytest.raises(MissingVectorsError, match="holds no detections"):
        faces.detections(tmp_path / "whole.fcache")
    with pytest.raises(MissingVectorsError, match="no detections aaaaaaaaaaaa"):
        faces.detections(store, detection="a" * 64)


def test_changed_and_new_images_are_looked_at_and_no_others(
    tmp_path: Path, draw_people: Callable[[Path], Path], base: Backbone
) -> None:
    people = draw_people(tmp_path / "people")
    faces.extract(people, tmp_path / "s.fcache", backbone=base, progress=False)
    draw_face(165).save(people / "ann" / "red.png")
    draw_face(175, turned=5).save(people / "ann" / "new.png")
    shutil.copy(people / "ann" / "near-0.png", people / "ann" / "copy.png")
    (people / "bob" / "far.png").unlink()
    report = faces.extract(people, tmp_path / "s.fcache", backbone=base, progress=False)
    assert (report.detected, report.computed, report.reused) == (2, 2, 10)
    assert (report.added, report.changed, report.removed) == (2, 1, 1)
    assert is_consistent(report)
    assert counts(report) == FOUND | {"items": 14, "first_pass": 11, "second_pass": 1, "no_face": 1}


def test_with_a_limit_only_those_images_are_counted(store: Path, people: Path, base: Backbone) -> None:
    report = faces.extract(people, store, backbone=base, limit=4, progress=False)
    assert report.items == 4
    assert is_consistent(report)


def test_strict_names_the_image_without_a_face(people: Path, tmp_path: Path, base: Backbone) -> None:
    shutil.copytree(people / "ann", tmp_path / "ann")
    with pytest.raises(UnusableImageError, match=r"red\.png: no face was found"):
        faces.extract(
            tmp_path / "ann",
            tmp_path / "s.fcache",
            backbone=base,
            config=fc.ExtractionConfig(strict=True),
            progress=False,
        )


def test_where_nobody_has_a_face(tmp_path: Path, base: Backbone) -> None:
    (tmp_path / "walls").mkdir()
    for level in range(3):
        Image.new("RGB", (100, 100), (80 * level, 9, 9)).save(tmp_path / "walls" / f"{level}.png")
    with pytest.raises(NothingUsableError, match="no face was found"):
        faces.extract(tmp_path / "walls", tmp_path / "s.fcache", backbone=base, progress=False)
    report = faces.extract(tmp_path / "walls", tmp_path / "s.fcache", backbone=base, centre_box=True, progress=False)
    assert (report.detected, report.computed, report.centre_box) == (0, 3, 3)


def test_a_wrong_layer_is_an_error_before_the_detection(people: Path, tmp_path: Path, base: Backbone) -> None:
    with pytest.raises(UnknownNameError, match="tail"):
        faces.extract(people, tmp_path / "s.fcache", backbone=base, layers=["tail:mean"], progress=False)
    assert not (tmp_path / "s.fcache").exists()


def test_two_detections_need_a_choice(store: Path, people: Path, base: Backbone) -> None:
    """As after another release of dlib."""

    class Newer(Detector):
        @property
        def recipe(self):
            recipe = super().recipe
            return type(recipe)(recipe.backbone, "0" * 64, recipe.pixels)

    fc.extract(people, store, backbone=Newer(), layers=["face"], progress=False)
    with pytest.raises(UsageError, match="several detections"):
        faces.detections(store)
    assert len(faces.detections(store, detection=Newer().recipe.fingerprint)) == 12


def test_a_run_with_nothing_to_do_imports_no_torch(people: Path, tmp_path: Path) -> None:
    faces.extract(people, tmp_path / "s.fcache", centre_box=True, limit=3, progress=False)
    code = (
        "import sys; from featcache import faces\n"
        "report = faces.extract(sys.argv[1], sys.argv[2], centre_box=True, limit=3, progress=False)\n"
        "print(report.backbone, report.reused, 'torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(people), str(tmp_path / "s.fcache")]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert output.split() == ["dlib:face_resnet", "3", "False"]
