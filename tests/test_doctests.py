"""The examples in the docstrings of public functions run, in a folder with images, a store and a head."""

from __future__ import annotations

import doctest
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import featcache as fc

from .faces.drawing import draw_face
from .faces.identities import write_people

SLOW = {"advise", "check_live", "doctor", "finetune"}
FUNCTIONS = [name for name in fc.__all__ if name.islower() and not name.startswith("_")]
CLASSES = [name for name in fc.__all__ if not name.islower()]
# `fc.faces` is imported in the tests: what it imports should not delay collecting others.
FACES = ["aligned_backbone", "detections", "embed_faces", "evaluate", "extract", "train", "verify"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, draw_images: Callable[..., Path]) -> Path:
    folder = tmp_path_factory.mktemp("examples")
    draw_images(folder / "photos")
    fc.extract(folder / "photos", folder / "pets.fcache", progress=False)
    fc.train(folder / "pets.fcache", "ridge", progress=False).save(folder / "pets.fch")
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)


def run_examples(name: str, thing: object) -> int:
    """Run all examples of a function or class, and return how many there are."""
    parser, runner = doctest.DocTestFinder(), doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    said: list[str] = []
    for test in parser.find(thing, name, globs=vars(sys.modules[thing.__module__]) | {"fc": fc}):
        runner.run(test, out=said.append)
    assert not runner.failures, "".join(said)
    return runner.tries


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in FUNCTIONS])
def test_every_public_function_has_examples_that_run(name):
    thing = getattr(fc, name)
    if callable(thing):  # no package
        assert run_examples(name, thing), f"featcache.{name} has no example"


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", CLASSES)
def test_the_examples_of_a_public_class_run(name):
    run_examples(name, getattr(fc, name))


@pytest.mark.faces
@pytest.mark.parametrize("name", FACES)
def test_every_function_for_faces_has_examples_that_run(name, tmp_path, monkeypatch):
    for person, skin in (("ann", (224, 180, 150)), ("bob", (150, 105, 80))):
        (tmp_path / "people" / person).mkdir(parents=True)
        for i in range(2):
            draw_face(150 + 20 * i, skin=skin).save(tmp_path / "people" / person / f"{i}.png")
    write_people(tmp_path / "many.fcache")
    monkeypatch.chdir(tmp_path)
    if name in ("aligned_backbone", "detections", "embed_faces"):
        fc.faces.extract("people", "people.fcache", progress=False)
    assert run_examples(name, getattr(fc.faces, name)), f"featcache.faces.{name} has no example"


def test_these_are_the_functions_for_faces():
    assert [name for name in fc.faces.__all__ if name.islower()] == FACES
