"""What Pillow opens is read or refused with a reason; images that are not read are counted and their classes named."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featcache.images.decode import decode_rgb
from featcache.images.formats import EXTENSIONS, NOT_READ, OTHER_IMAGES, READ
from featcache.images.sources import open_source

DENIED = {name for names in NOT_READ.values() for name in names}


def test_each_format_of_pillow_has_its_place():
    Image.init()
    assert set(Image.OPEN) - set(READ) - DENIED == set()
    assert not set(READ) & DENIED
    assert not EXTENSIONS & OTHER_IMAGES


@pytest.mark.parametrize(
    "ending", [".avif", ".jp2", ".j2k", ".pbm", ".pnm", ".pgm", ".pcx", ".qoi", ".sgi", ".tga", ".dib"]
)
def test_what_was_written_is_read(ending: str):
    rng = np.random.default_rng(0)
    rough = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)).resize((40, 32), Image.Resampling.BICUBIC)
    image = rough.convert("1") if ending == ".pbm" else rough
    format_ = Image.registered_extensions()[ending]
    lossless = {"AVIF": {"quality": 100}, "JPEG2000": {"irreversible": False}}.get(format_, {})
    file = io.BytesIO()
    image.save(file, format_, **lossless)
    found = decode_rgb(file.getvalue())
    assert ending in EXTENSIONS
    difference = np.abs(np.asarray(found, int) - np.asarray(image.convert("RGB"), int))
    assert difference.max() <= (24 if ending == ".avif" else 0)


def test_other_images_are_counted_and_their_classes_named(tmp_path: Path):
    for place in ("glass/a.png", "glass/b.heic", "paper/c.heic", "paper/d.SVG", "paper/notes.txt", "e.jxl"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_bytes(b"x")
    source = open_source(tmp_path)
    assert [entry.uri for entry in source.entries()] == ["glass/a.png"]
    (note,) = source.notes
    assert note.startswith(
        "4 images in formats that are not read (.heic 2, .jxl 1, .svg 1); the class paper has no other."
    )
    assert source.ignored == 5
