"""JPEG by simplejpeg: Pillow's pixels, the same files refused for the same reasons, and smaller where asked for."""

from __future__ import annotations

import io
import itertools
import math
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from featcache.core.errors import UnusableImageError
from featcache.core.recipe import PixelPath, StandardTransform
from featcache.images import decode as decoding
from featcache.images import decode as jpeg
from featcache.images.decode import DECODERS, Decoded, decode, decode_rgb
from featcache.images.transforms import PixelTransform
from tests.images.mutations import damaged

HALF = (0.5, 0.5, 0.5)
SMALL = PixelTransform(StandardTransform((32,), (28, 28), "bicubic", HALF, HALF))


def noise(width: int, height: int, channels: int = 3) -> Image.Image:
    rng = np.random.default_rng(width * 10_000 + height)
    return Image.fromarray(rng.integers(0, 256, (height, width, channels), dtype=np.uint8).squeeze())


def smooth(width: int, height: int) -> Image.Image:
    """Large soft patches, no two quarters of them alike."""
    return noise(5, 4).resize((width, height), Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(3))


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def adobe(data: bytes, transform: int) -> bytes:
    """A CMYK JPEG whose Adobe marker says that its pixels are CMYK (0) or YCCK (2)."""
    at = data.index(b"\xff\xee\x00\x0eAdobe")
    return data[: at + 15] + bytes([transform]) + data[at + 16 :]


def turned(image: Image.Image, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[274] = orientation
    return encoded(image, exif=exif, quality=95)


def files() -> dict[str, bytes]:
    made = {
        "gray": encoded(noise(53, 37, 1)),
        "best quality": encoded(noise(53, 37), quality=100),
        "worst quality": encoded(noise(53, 37), quality=1),
        "progressive": encoded(noise(53, 37), progressive=True),
        "progressive gray": encoded(noise(53, 37, 1), progressive=True),
        "optimised": encoded(noise(53, 37), optimize=True),
        "restart markers": encoded(noise(53, 37), restart_marker_blocks=2),
        "RGB that was not transformed": encoded(noise(53, 37), keep_rgb=True),
        "CMYK": adobe(encoded(noise(53, 37, 4).convert("CMYK")), 0),
        "YCCK": adobe(encoded(noise(53, 37, 4).convert("CMYK")), 2),
        "several images": encoded(noise(53, 37), "MPO", save_all=True, append_images=[noise(37, 53)]),
        "profile and comment": encoded(noise(53, 37), icc_profile=b"x" * 70_000, comment=b"a comment"),
        "bytes after the end": encoded(noise(53, 37)) + b"\0" * 999,
    }
    made |= {f"subsampling {kind}": encoded(noise(53, 37), subsampling=kind) for kind in range(3)}
    made |= {f"turned {number}": turned(noise(53, 37), number) for number in range(1, 9)}
    sizes = [(1, 1), (1, 7), (7, 1), (1, 999), (999, 1), (2, 3000), (8, 8), (16, 17), (65_500, 1), (1, 65_500)]
    made |= {f"{width} × {height}": encoded(noise(width, height)) for width, height in sizes}
    return made


FILES = files()


@pytest.mark.parametrize("name", FILES)
def test_both_decoders_give_the_same_image(name: str) -> None:
    plain, quick = (
        np.asarray(decode_rgb(FILES[name], decoder)).astype(int) for decoder in ("pillow/1", "simplejpeg/1")
    )
    assert plain.shape == quick.shape
    assert np.abs(plain - quick).max() <= 1


def test_all_that_is_gray_or_colour_is_read_by_simplejpeg_itself() -> None:
    """And what is CMYK by Pillow: otherwise the test before would compare Pillow with itself."""
    for name, data in FILES.items():
        header = Image.open(io.BytesIO(data))
        if name in ("CMYK", "YCCK"):
            assert header.mode == "CMYK"
            continue
        image = jpeg.decoded(data, header.size)
        assert image is not None, name
        assert (image.mode, image.size) == ("RGB", header.size)


def test_the_decoders_are_those_that_recipes_name() -> None:
    assert PixelPath(SMALL.transform).decoder == DECODERS[0] == "simplejpeg/1"
    assert set(DECODERS) == {"simplejpeg/1", "pillow/1"}


def became(data: bytes, decoder: str, resized: Any = None) -> np.ndarray | str:
    try:
        return np.asarray(decode(data, decoder, resized).image)
    except UnusableImageError as error:
        return str(error)


def assert_same(data: bytes, name: object) -> str:
    plain, quick = became(data, "pillow/1"), became(data, "simplejpeg/1")
    if isinstance(plain, str) or isinstance(quick, str):
        assert isinstance(plain, str), (name, quick)
        assert isinstance(quick, str), (name, plain)
        assert plain == quick, name
        smaller = became(data, "simplejpeg/1", lambda width, height: (1, 1))
        assert isinstance(smaller, str), name  # libjpeg reads all of the file for a smaller image too
        return plain
    assert plain.shape == quick.shape, name
    assert np.abs(plain.astype(int) - quick).max() <= 1, name
    return ""


@pytest.mark.parametrize("name", ["gray", "progressive", "restart markers", "subsampling 2", "turned 6", "YCCK"])
def test_cut_off_at_any_place(name: str) -> None:
    """In the headers, in the tables, in the scan, in its very last bytes; what cannot be seen to be cut is whole."""
    data = FILES[name]
    places = sorted({*range(0, len(data), max(1, len(data) // 60)), *range(len(data) - 12, len(data))})
    reasons = [assert_same(data[:place], place) for place in places]
    assert reasons.count("the file is cut off") > len(places) / 2
    assert "" not in reasons[: len(places) * 9 // 10]


def test_damage_of_every_kind_is_judged_alike() -> None:
    """Also what Pillow reads although it is damaged, of which simplejpeg alone would refuse much."""
    reasons, by_pillow = [], 0
    for number in itertools.islice((n for n in range(10_000) if damaged(n)[0].startswith("jpeg ")), 250):
        name, data = damaged(number)
        reasons.append(assert_same(data, name))
        if reasons[-1] == "" and "cmyk" not in name:
            by_pillow += jpeg.decoded(data, Image.open(io.BytesIO(data)).size) is None
    assert by_pillow > 5
    assert 50 < reasons.count("") < 200
    assert len(set(reasons)) > 3


def with_size(data: bytes, width: int, height: int) -> bytes:
    """The JPEG with other numbers in its header."""
    at = data.index(b"\xff\xc0")
    return data[: at + 5] + struct.pack(">HH", height, width) + data[at + 9 :]


def test_a_header_that_promises_more_than_there_is() -> None:
    assert_same(with_size(FILES["best quality"], 53, 99), "more rows")
    assert_same(with_size(FILES["best quality"], 99, 37), "more columns")
    with pytest.raises(UnusableImageError, match="more than 178,956,970"):
        decode_rgb(with_size(FILES["best quality"], 60_000, 60_000))


def test_a_size_other_than_the_one_that_was_judged_is_not_read() -> None:
    assert jpeg.decoded(FILES["gray"], (37, 53)) is None


def test_a_bomb_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    (tmp_path / "bomb.jpg").write_bytes(with_size(FILES["best quality"], 65_000, 65_000))
    code = (
        "import sys, resource; from pathlib import Path; from PIL import Image\n"
        "from featcache.images.decode import decode_rgb; from featcache.core.errors import UnusableImageError\n"
        "Image.MAX_IMAGE_PIXELS = None\n"
        "pages = int(open('/proc/self/statm').read().split()[0])\n"
        "most = pages * resource.getpagesize() + 100_000_000\n"
        "resource.setrlimit(resource.RLIMIT_AS, (most, most))\n"
        "try: decode_rgb(Path(sys.argv[1]).read_bytes())\n"
        "except UnusableImageError as error: print(error)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "bomb.jpg")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert "65000 × 65000 pixels, more than 178,956,970" in done.stdout, done.stderr


def test_memory_that_is_short_is_told_from_an_image_that_is_bad(tmp_path: Path) -> None:
    """In a process that may take 150 MB more: the image needs 256."""
    Image.new("L", (8000, 8000)).save(tmp_path / "large.jpg")
    code = (
        "import sys, resource; from pathlib import Path\n"
        "from featcache.images.decode import decode_rgb; from featcache.core.errors import ImageMemoryError\n"
        "pages = int(open('/proc/self/statm').read().split()[0])\n"
        "most = pages * resource.getpagesize() + 150_000_000\n"
        "resource.setrlimit(resource.RLIMIT_AS, (most, most))\n"
        "try: decode_rgb(Path(sys.argv[1]).read_bytes())\n"
        "except ImageMemoryError as error: print(error)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "large.jpg")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout == "there is not enough memory to decode it\n", done.stderr


sides = st.integers(1, 20_000)


@given(st.tuples(sides, sides), st.tuples(st.integers(1, 700), st.integers(1, 700)))
def test_the_reduction_is_the_largest_that_leaves_twice_the_image(
    size: tuple[int, int], resized: tuple[int, int]
) -> None:
    by = jpeg.reduction(size, resized)
    fits = [n for n in (1, 2, 4, 8) if min(s / n / r for s, r in zip(size, resized, strict=True)) >= 2]
    assert by == max(fits, default=1)


SIZES = [(301, 222), (222, 301), (128, 131), (513, 700), (1030, 517)]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_smaller_version_lies_where_the_image_does(orientation: int) -> None:
    """Sides that 2, 4 and 8 do not divide, so that its last pixels lie over the border, which may be left or on top."""
    for width, height in SIZES:
        data = turned(smooth(width, height), orientation)
        full, less = decode(data), decode(data, resized=SMALL.resized)
        assert full.image.size == full.size == less.size
        by = math.ceil(max(full.size) / max(less.image.size))
        assert by == jpeg.reduction(full.size, SMALL.resized(*full.size)) > 1
        left, top, right, bottom = less.box
        assert (right - left, bottom - top) == (full.size[0] / by, full.size[1] / by)
        assert 0 <= left < 1
        assert 0 <= top < 1
        assert right <= less.image.width < right + 1
        assert bottom <= less.image.height < bottom + 1
        assert np.abs(SMALL(full).astype(int) - SMALL(less)).max() <= 3, (width, height, by)


def test_taken_for_the_image_itself_a_smaller_version_would_lie_beside_it() -> None:
    """What the box is for: the error that the test before must be able to see."""
    data = turned(smooth(513, 700), 3)
    full, less = SMALL(decode(data)).astype(int), decode(data, resized=SMALL.resized)
    assert np.abs(full - SMALL(Decoded.whole(less.image))).max() > 6
    assert np.abs(full - SMALL(less)).max() <= 3


def test_two_numbers_of_a_transform_are_height_and_width_of_the_upright_image() -> None:
    made = PixelTransform(StandardTransform((20, 80), (20, 80), "bilinear", HALF, HALF))
    assert decode(turned(smooth(320, 160), 1), resized=made.resized).image.size == (160, 80)
    assert decode(turned(smooth(160, 320), 6), resized=made.resized).image.size == (160, 80)
    assert decode(turned(smooth(320, 160), 6), resized=made.resized).image.size == (160, 320)


@pytest.mark.parametrize("name", ["CMYK", "turned 1", "1 × 999"])
def test_what_is_small_or_not_for_simplejpeg_stays_whole(name: str) -> None:
    decoded = decode(FILES[name], resized=SMALL.resized)
    assert decoded.size == decoded.image.size
    assert decoded.box == (0, 0, *decoded.size)
    png = encoded(smooth(400, 300), "PNG")
    assert decode(png, resized=SMALL.resized).image.size == (400, 300)
    large = encoded(smooth(400, 300))
    assert decode(large, "pillow/1", SMALL.resized).image.size == (400, 300)
    assert decode(large, "simplejpeg/1", SMALL.resized).image.size == (100, 75)


def test_whole_images_are_turned_by_the_same_table() -> None:
    assert {*decoding._LYING, *decoding._FROM_RIGHT, *decoding._FROM_BELOW} == set(decoding._TO_UPRIGHT)
