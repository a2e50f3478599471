"""A world for each test, copied from one that is made once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.doors import World


@pytest.fixture(scope="session")
def template(tmp_path_factory, draw_images, small_network) -> Path:
    return World.make(tmp_path_factory.mktemp("world") / "w", small_network, draw_images)


@pytest.fixture(scope="session")
def template_with_faces(tmp_path_factory, template, draw_people) -> Path:
    import shutil

    folder = tmp_path_factory.mktemp("world-with-faces") / "w"
    shutil.copytree(template, folder)
    return World.make_faces(folder, draw_people)


@pytest.fixture
def world(tmp_path, template, small_network) -> World:
    """Without the faces."""
    return World(tmp_path / "w", template, small_network)


@pytest.fixture
def world_for(tmp_path, template, small_network, request) -> Callable[..., World]:
    """A function from a door to a world in which it can be called."""
    from tests.doors import FACES

    def make(door) -> World:
        with_faces = door.name in FACES or (
            door.owner and door.owner.__name__ in {"FacesReport", "PairsReport", "Match"}
        )
        found = request.getfixturevalue("template_with_faces") if with_faces else template
        return World(tmp_path / "w", found, small_network)

    return make
