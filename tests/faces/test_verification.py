"""`faces.verify`, and the vectors of images that are in no store."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

import featcache as fc
from featcache import faces
from featcache.backbones import Backbone, tiny_backbone
from featcache.core.errors import RecipeMismatchError, SourceError, UnusableImageError, UsageError
from featcache.faces.alignment import AlignedBackbone
from featcache.faces.detection import CENTRE_BOX, FIRST_PASS, SECOND_PASS, Detector

from .drawing import beside, draw_face

if TYPE_CHECKING:
    from featcache.core.recipe import Recipe
    from featcache.training.bundle import Bundle


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return tiny_backbone()


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory, backbone: Backbone) -> tuple[Path, Bundle]:
    """Images of 24 things of one color each, and a head that was calibrated on them as whole images."""
    root = tmp_path_factory.mktemp("things") / "things"
    rng = np.random.default_rng(0)
    for thing in range(24):
        (root / f"thing-{thing:02}").mkdir(parents=True)
        colour = rng.integers(0, 256, 3)
        for number in range(4):
            pixels = np.clip(colour + rng.normal(0, 25, (40, 40, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / f"thing-{thing:02}" / f"{number}.png")
    fc.extract(root, root.parent / "s.fcache", backbone=backbone, progress=False)
    return root, faces.train(root.parent / "s.fcache", far=0.05, progress=False)


def test_without_a_head_nothing_is_decided():
    match = faces.verify(draw_face(180), draw_face(180))
    assert match.distance == pytest.approx(0, abs=1e-6)
    assert (match.calibrated, match.decision, match.probability, match.far_target) == (False, None, None, None)
    other = faces.verify(draw_face(180), draw_face(190, skin=(120, 80, 60)))
    assert other.distance > match.distance


def test_how_the_faces_were_found_is_reported():
    match = faces.verify(draw_face(80), beside(draw_face(150), draw_face(200)))
    assert (match.second_pass, match.several_faces) == (1, 1)


def test_with_a_head_the_answer_is_calibrated(things, backbone):
    root, head = things
    a, b = (root / "thing-03" / f"{number}.png" for number in (0, 1))
    match = faces.verify(a, b, head=head, backbone=backbone, prior=0.2)
    inputs = np.stack([backbone.prepare(Image.open(path).convert("RGB")) for path in (a, b)])
    layers = backbone.resolve_layers(["pooled"])
    one, two = backbone.forward(inputs, layers)["pooled"].astype(np.float64)
    score = one @ two / np.sqrt((one @ one) * (two @ two))
    calibration = head.matching.calibration
    assert match.distance == pytest.approx(1 - score, abs=1e-6)
    # These scores lie so near to each other that the slope is steep: the odds follow from the distance itself.
    odds = math.exp(calibration.slope * (1 - match.distance) + calibration.offset) * 0.2 / 0.8
    assert match.probability == pytest.approx(odds / (1 + odds), rel=1e-9)
    assert match.decision == (score >= calibration.threshold)
    assert (match.calibrated, match.prior, match.far_target) == (True, 0.2, 0.05)
    assert match.threshold == pytest.approx(1 - calibration.threshold)


def test_a_saved_head_answers_the_same(things, backbone, tmp_path):
    root, head = things
    head.save(tmp_path / "h.fch")
    a, b = root / "thing-00" / "0.png", root / "thing-09" / "0.png"
    assert faces.verify(a, b, head=tmp_path / "h.fch", backbone=backbone) == faces.verify(
        a, b, head=head, backbone=backbone
    )


def test_a_higher_prior_is_a_higher_probability(things, backbone):
    root, head = things
    pair = root / "thing-00" / "0.png", root / "thing-01" / "0.png"
    found = [faces.verify(*pair, head=head, backbone=backbone, prior=prior).probability for prior in (0.01, 0.5, 0.99)]
    assert found == sorted(found)
    assert found[0] < found[2]


def test_an_image_without_a_face_is_named(tmp_path):
    Image.new("RGB", (90, 80), (10, 200, 30)).save(tmp_path / "green.png")
    draw_face(160).save(tmp_path / "face.png")
    with pytest.raises(UnusableImageError, match=r"green\.png.*no face"):
        faces.verify(tmp_path / "face.png", tmp_path / "green.png")


@pytest.mark.parametrize("prior", [0.0, 1.0, -1.0, math.nan])
def test_a_prior_lies_between_0_and_1(prior: float):
    with pytest.raises(UsageError, match="prior"):
        faces.verify(draw_face(), draw_face(), prior=prior)


def test_a_head_that_names_labels_is_refused(things, backbone):
    root, _ = things
    labels = fc.train(root.parent / "s.fcache", "centroid", progress=False)
    with pytest.raises(UsageError, match="predicts labels"):
        faces.verify(root / "thing-00" / "0.png", root / "thing-01" / "0.png", head=labels, backbone=backbone)


def test_the_head_wants_its_own_backbone(things):
    root, head = things
    with pytest.raises(fc.FeatcacheError, match="recipe"):
        faces.verify(
            root / "thing-00" / "0.png", root / "thing-01" / "0.png", head=head, backbone=tiny_backbone(seed=1)
        )


@pytest.fixture(scope="module")
def base() -> Backbone:
    return tiny_backbone()


@pytest.fixture(scope="module")
def recipe(base: Backbone, detector: Detector) -> Recipe:
    return AlignedBackbone(base, detector).recipe


def test_vectors_come_in_the_order_given(tmp_path: Path, base: Backbone, detector: Detector, recipe: Recipe) -> None:
    draw_face(150).save(tmp_path / "a.png")
    images = [tmp_path / "a.png", draw_face(80), np.asarray(draw_face(170, skin=(150, 105, 80)))] * 6
    vectors, found = faces.embed_faces(images, recipe, ["pooled", "mirrored"], backbone=base)
    assert vectors.shape == (18, 32)
    assert [one.found for one in found] == [FIRST_PASS, SECOND_PASS, FIRST_PASS] * 6
    aligned = AlignedBackbone(base, detector)
    layers = aligned.resolve_layers(["pooled", "mirrored"])
    for row, image in enumerate((draw_face(150), draw_face(80), draw_face(170, skin=(150, 105, 80)))):
        arrays = aligned.forward(aligned.prepare(image)[None], layers)
        np.testing.assert_allclose(vectors[row], np.concatenate([arrays["pooled"][0], arrays["mirrored"][0]]), 1e-4)
    np.testing.assert_allclose(vectors[15:], vectors[:3], rtol=1e-4)


def test_embedding_an_image_without_a_face_names_it(tmp_path: Path, base: Backbone, recipe: Recipe) -> None:
    Image.new("RGB", (80, 80)).save(tmp_path / "wall.png")
    with pytest.raises(UnusableImageError, match=r"wall\.png: no face was found"):
        faces.embed_faces([draw_face(150), tmp_path / "wall.png"], recipe, backbone=base)
    with pytest.raises(UnusableImageError, match="image 1: no face was found"):
        faces.embed_faces([draw_face(150), Image.new("RGB", (80, 80))], recipe, backbone=base)
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(UnusableImageError, match=r"text\.png: it is not an image"):
        faces.embed_faces([tmp_path / "text.png"], recipe, backbone=base)
    with pytest.raises(SourceError, match="nowhere"):
        faces.embed_faces([tmp_path / "nowhere.png"], recipe, backbone=base)
    vectors, (found,) = faces.embed_faces([tmp_path / "wall.png"], recipe, backbone=base, centre_box=True)
    assert found.found == CENTRE_BOX
    assert vectors.shape == (1, 16)


def test_a_recipe_of_something_else_is_refused(base: Backbone, recipe: Recipe) -> None:
    with pytest.raises(RecipeMismatchError, match="whole images"):
        faces.embed_faces([draw_face(150)], base.recipe, backbone=base)
    with pytest.raises(RecipeMismatchError, match="by the detection aaaaaaaaaaaa"):
        faces.embed_faces([draw_face(150)], replace(recipe, detection="a" * 64), backbone=base)
    other = replace(recipe, pixels=replace(recipe.pixels, chip="another/1"))
    with pytest.raises(RecipeMismatchError, match="another/1"):
        faces.embed_faces([draw_face(150)], other, backbone=base)
    with pytest.raises(RecipeMismatchError, match="weights"):
        faces.embed_faces([draw_face(150)], replace(recipe, weights="0" * 64), backbone=base)


def test_without_dlib_the_error_says_what_to_install(tmp_path: Path) -> None:
    """In a Python that finds no dlib."""
    code = (
        "import sys; sys.modules['dlib'] = None\n"
        "from featcache import faces\n"
        "from featcache.core.errors import MissingExtraError\n"
        "try: faces.extract(sys.argv[1], sys.argv[1] + '/s.fcache')\n"
        "except MissingExtraError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert "pip install 'featcache[faces]'" in done.stdout
    assert not list(tmp_path.iterdir())
