"""What Pillow opens is read or refused with a reason; images that are not read are counted and their classes named."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featcache.core.errors import SourceError
from featcache.images.decode import decode_rgb
from featcache.images.formats import EXTENSIONS, NOT_READ, OTHER_IMAGES, READ
from featcache.images.sources import open_source
from tests.images.tars import image_bytes, write_tar

DENIED = {name for names in NOT_READ.values() for name in names}
NO_IMAGES = {".bufr", ".flc", ".fli", ".grib", ".h5", ".hdf", ".mpeg", ".mpg", ".pdf"}
"""Endings registered by Pillow of files that nobody takes for images: data, films, documents."""


def test_each_format_of_pillow_has_its_place():
    Image.init()
    assert set(Image.OPEN) - set(READ) - DENIED == set()
    assert not set(READ) & DENIED
    assert not EXTENSIONS & OTHER_IMAGES


def test_each_ending_of_pillow_has_its_place():
    Image.init()
    endings = Image.registered_extensions()
    read = {ending for ending, format_ in endings.items() if format_ in {*READ, "MPO"}} - {".pfm"}  # floats: no range
    assert read - EXTENSIONS == set()
    assert endings.keys() - EXTENSIONS - OTHER_IMAGES == NO_IMAGES


@pytest.mark.parametrize(
    "ending", [".avif", ".jp2", ".j2k", ".pbm", ".pnm", ".pgm", ".pcx", ".qoi", ".sgi", ".tga", ".dib", ".dds"]
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


def test_the_largest_picture_of_an_icon_is_read():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    for kind in ("png", "bmp"):
        file = io.BytesIO()
        image.save(file, "ICO", sizes=[(16, 16), (32, 32)], bitmap_format=kind)
        assert decode_rgb(file.getvalue()) == image
    file = io.BytesIO()
    image.resize((1024, 1024), Image.Resampling.NEAREST).save(file, "ICNS")
    assert decode_rgb(file.getvalue()).resize((32, 32), Image.Resampling.NEAREST) == image


def test_the_first_page_of_a_dcx_is_read():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    file = io.BytesIO()
    image.save(file, "PCX")
    assert decode_rgb(struct.pack("<III", 0x3ADE68B1, 12, 0) + file.getvalue()) == image


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


def test_a_folder_of_other_images_alone_says_which(tmp_path: Path):
    for name in ("a.heic", "b.heic", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(SourceError, match=r"\(3 other files, images in formats .* among them \(\.heic 2\)\)"):
        open_source(tmp_path).entries()


def test_other_images_in_a_tar_are_counted_and_their_classes_named(tmp_path: Path):
    members = [("a.png", image_bytes(0)), ("a.cls", b"glass"), ("b.heic", b"x"), ("b.cls", b"paper"), ("c.xyz", b"x")]
    source = open_source(write_tar(tmp_path / "t.tar", members))
    assert [entry.label for entry in source.entries()] == ["glass"]
    (note,) = source.notes
    assert note.startswith("1 image in formats that are not read (.heic 1); the class paper has no other.")
    assert (source.ignored, source.unread) == (2, {".heic": 1})
    with pytest.raises(SourceError, match=r"\(1 other files, images in formats .* \(\.heic 1\)\)"):
        open_source(write_tar(tmp_path / "u.tar", [("b.heic", b"x")])).entries()
