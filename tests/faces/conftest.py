"""What the tests of faces share: a detector, which takes a moment to make, and folders of drawn faces."""

from __future__ import annotations

from pathlib import Path

import pytest

from featcache.faces.detection import Detector


@pytest.fixture(scope="session")
def detector() -> Detector:
    return Detector()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.faces)
