"""What all tests share: a cache folder of their own, a small folder of images, and a small network."""

from __future__ import annotations

import os

# One thread each for this process and those it starts, before anything reads it: the tests run in as many processes
# as there are cores, and threads that wait for each other's core take many times as long as they compute.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """No test reads or writes the cache of the person who runs it."""
    before = os.environ.get("FEATCACHE_CACHE")
    os.environ["FEATCACHE_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["FEATCACHE_CACHE"]
    else:
        os.environ["FEATCACHE_CACHE"] = before


@pytest.fixture(scope="session")
def draw_images() -> Callable[..., Path]:
    """A function that fills a folder with JPEGs, *each* a class: noise whose color tells the class."""

    def draw(folder: Path, classes: Sequence[str] = ("cats", "dogs"), each: int = 12) -> Path:
        rng = np.random.default_rng(0)
        for number, name in enumerate(classes):
            place = folder / name
            place.mkdir(parents=True)
            for i in range(each):
                pixels = rng.integers(0, 120, (48, 64, 3), dtype=np.uint8)
                pixels[..., number % 3] += 120
                Image.fromarray(pixels).save(place / f"{name[:-1]}-{i:02}.jpg", quality=90)
        return folder

    return draw


@pytest.fixture(scope="session")
def small_network() -> str:
    """The name of timm's smallest network, with random weights at the place where one puts them by hand."""
    import timm
    from safetensors.torch import save_file

    from featcache.backbones.recipe_cache import cache_folder
    from tests.backbones.making import randomised

    weights = cache_folder() / "weights" / "timm_test_efficientnet.safetensors"
    weights.parent.mkdir(parents=True, exist_ok=True)
    save_file(randomised(timm.create_model("test_efficientnet")).state_dict(), weights)
    return "timm:test_efficientnet"


@pytest.fixture
def photos(tmp_path: Path, draw_images: Callable[..., Path]) -> Path:
    """``photos/`` with 12 cats and 12 dogs, in a folder of this test's own."""
    return draw_images(tmp_path / "photos")


@pytest.fixture(scope="session")
def draw_people() -> Callable[[Path], Path]:
    """A function that fills a folder: ann and bob with faces of three kinds, and images that show none."""
    from tests.faces.drawing import beside, draw_face

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
