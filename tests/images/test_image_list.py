"""What is given as images is one list of images, or refused by its name."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas
import pytest
from PIL import Image

from featcache.core.errors import UsageError
from featcache.images.image_list import image_list

GRAY = np.zeros((4, 5), np.uint8)
IMAGE = Image.new("RGB", (3, 2))


class Placed:
    def __fspath__(self) -> str:
        return "a.png"


@pytest.mark.parametrize(
    ("given", "count"),
    [
        ("a.png", 1), (Path("a.png"), 1), (Placed(), 1), (IMAGE, 1), (GRAY, 1), (np.zeros((4, 5, 3), np.uint8), 1),
        (["a.png", IMAGE, GRAY], 3), (np.array(["a.png", "b.png"]), 2), (np.array([IMAGE, "a"], object), 2),
        (np.zeros((6, 4, 5, 3), np.uint8), 6), (pandas.Series(["a.png", "b.png"]), 2), (iter(["a.png"]), 1), ([], 0),
    ],
)  # fmt: skip
def test_one_or_several(given, count):
    found = image_list(given)
    assert len(found) == count
    assert all(isinstance(one, (str, Path, Image.Image, np.ndarray)) for one in found)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (None, "NoneType."), (3, "not 3"), (b"\x89PNG", "bytes"), (io.BytesIO(b""), "BytesIO"), ([None], "Image 0"),
        (["a", b"b"], "Image 1 is bytes"), (pandas.DataFrame({"path": ["a"]}), "DataFrame of shape (1, 1)"),
        ({"a": 1}, "a dict of str, which is a table"), (np.zeros((2, 2, 2, 2, 2)), "(2, 2, 2, 2, 2)"),
        ("a\0b", "NUL"), ("https://example.org/a.png", "Download the image"),
        ("x" * 300, "too long"), (["a", "\ud800"], "Image 1 is a path with letters"),
        (np.array(3), "not"), ([[1, 2]], "a list of int"),
    ],
)  # fmt: skip
def test_what_is_no_image_is_named(given, named):
    with pytest.raises(UsageError) as refused:
        image_list(given)
    assert named in str(refused.value)
