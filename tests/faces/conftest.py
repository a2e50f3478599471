"""What the tests of faces share: a detector, which takes a moment to make, and folders of drawn faces."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from featcache.faces.detection import Detector

from .drawing import beside, draw_face


@pytest.fixture(scope="session")
def detector() -> Detector:
    return Detector()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.faces)


@pytest.fixture(scope="session")
def draw_people() -> Callable[[Path], Path]:
    """A function that fills a folder: ann and bob with faces of three kinds, and images that show none."""

    def draw(root: Path) -> Path:
        for name, skin in (("ann", (224, 180, 150)), ("bob", (150, 105, 80))):
            (root / name).mkdir(parents=True)
            for number in range(3):
                draw_face(150 + 20 * number, skin=skin).save(root / name / f"near-{number}.png")
            draw_face(80, skin=skin).save(root / name / "far.png")
            beside(draw_face(150, skin=skin), draw_face(200)).save(root / name / "two.png")
        Image.new("RGB", (120, 90), (200, 30, 30)).save(root / "ann" / "red.png")
        Image.new("L", (5, 4), 9).save(root / "bob" / "tiny.png")
        (root / "bob" / "text.png").write_text("this is no image")
        return root

    return draw
