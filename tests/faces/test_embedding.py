"""Faces of images that are in no store have the vectors that a store would keep."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featcache import faces
from featcache.backbones import Backbone, tiny_backbone
from featcache.core.errors import RecipeMismatchError, SourceError, UnusableImageError
from featcache.core.recipe import Recipe
from featcache.faces.aligned import AlignedBackbone
from featcache.faces.detection import CENTRE_BOX, FIRST_PASS, SECOND_PASS, Detector

from .drawing import draw_face


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


def test_an_image_without_a_face_is_named(tmp_path: Path, base: Backbone, recipe: Recipe) -> None:
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


def test_without_dlib_it_is_said_what_to_install(tmp_path: Path) -> None:
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
