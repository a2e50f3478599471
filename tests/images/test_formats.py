"""What Pillow opens is read or refused with a reason; images that are not read are counted and their classes named."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featcache.core.errors import SourceError, UnusableImageError
from featcache.images.decode import decode_rgb
from featcache.images.formats import EXTENSIONS, HEIC, INSTALL_HEIC, NOT_READ, OTHER_IMAGES, READ, READS_HEIC
from featcache.images.sources import open_source
from tests.images.tars import image_bytes, write_tar

DENIED = {name for names in NOT_READ.values() for name in names}
NO_IMAGES = {".bufr", ".flc", ".fli", ".grib", ".h5", ".hdf", ".mpeg", ".mpg", ".pdf"}
"""Endings registered by Pillow of files that nobody takes for images: data, films, documents."""


def test_each_format_of_pillow_has_its_place():
    Image.init()
    assert set(Image.OPEN) - set(READ) - DENIED - {HEIC} == set()
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
    for place in ("glass/a.png", "glass/b.cr2", "paper/c.cr2", "paper/d.SVG", "paper/notes.txt", "e.jxl"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_bytes(b"x")
    source = open_source(tmp_path)
    assert [entry.uri for entry in source.entries()] == ["glass/a.png"]
    (note,) = source.notes
    assert note.startswith(
        "4 images in formats that are not read (.cr2 2, .jxl 1, .svg 1); the class paper has no other."
    )
    assert source.ignored == 5


def test_a_folder_of_other_images_alone_says_which(tmp_path: Path):
    for name in ("a.cr2", "b.cr2", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(SourceError, match=r"\(3 other files, images in formats .* among them \(\.cr2 2\)\)"):
        open_source(tmp_path).entries()


def test_other_images_in_a_tar_are_counted_and_their_classes_named(tmp_path: Path):
    members = [("a.png", image_bytes(0)), ("a.cls", b"glass"), ("b.cr2", b"x"), ("b.cls", b"paper"), ("c.xyz", b"x")]
    source = open_source(write_tar(tmp_path / "t.tar", members))
    assert [entry.label for entry in source.entries()] == ["glass"]
    (note,) = source.notes
    assert note.startswith("1 image in formats that are not read (.cr2 1); the class paper has no other.")
    assert (source.ignored, source.unread) == (2, {".cr2": 1})
    with pytest.raises(SourceError, match=r"\(1 other files, images in formats .* \(\.cr2 1\)\)"):
        open_source(write_tar(tmp_path / "u.tar", [("b.cr2", b"x")])).entries()


def test_other_images_in_a_table_are_counted_and_their_classes_named(tmp_path: Path):
    for name in ("a.png", "b.cr2", "c.svg"):
        (tmp_path / name).write_bytes(image_bytes(0) if name == "a.png" else b"x")
    (tmp_path / "t.csv").write_text("path,label\na.png,glass\nb.cr2,paper\nc.svg,glass\ngone.cr2,paper\n")
    source = open_source(tmp_path / "t.csv")
    assert len(source.entries()) == 4
    assert source.notes[0].startswith("2 images in formats that are not read (.cr2 1, .svg 1); the class paper has no ")


HERE = Path(__file__).parent / "heic"
"""A gradient, upright and turned by EXIF, 64 × 48, in 4:2:0 at quality 80."""


@pytest.mark.skipif(not READS_HEIC, reason="needs the extra `heic`")
@pytest.mark.parametrize("name", ["upright.heic", "turned.heic"])
def test_heic_is_read_with_the_extra(name: str, tmp_path: Path):
    found = np.asarray(decode_rgb((HERE / name).read_bytes()), int)
    y, x = np.mgrid[:48, :64]
    made = np.stack([x * 4, y * 5, (x + y) * 2], axis=2)
    assert np.abs(found - (made if name == "upright.heic" else np.rot90(made, -1))).max() < 24
    (tmp_path / "a.HEIC").write_bytes((HERE / name).read_bytes())
    assert [entry.uri for entry in open_source(tmp_path).entries()] == ["a.HEIC"]


@pytest.mark.skipif(not READS_HEIC, reason="needs the extra `heic`")
def test_heic_that_is_cut_off_is_refused():
    data = (HERE / "upright.heic").read_bytes()
    for damaged in (data[:12], data[:300], data[:-40]):
        with pytest.raises(UnusableImageError):
            decode_rgb(damaged)


@pytest.mark.skipif(READS_HEIC, reason="the extra `heic` is installed")
def test_heic_without_the_extra_says_what_reads_it(tmp_path: Path):
    with pytest.raises(UnusableImageError, match=r"featcache\[heic\]"):
        decode_rgb((HERE / "upright.heic").read_bytes())
    (tmp_path / "a.heic").write_bytes((HERE / "upright.heic").read_bytes())
    (tmp_path / "b.png").write_bytes(image_bytes(0))
    source = open_source(tmp_path)
    source.entries()
    assert INSTALL_HEIC in source.notes[0]
