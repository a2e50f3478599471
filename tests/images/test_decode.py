"""From bytes to RGB: what has a defined reading is read to the gray level, the rest is refused."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps

from featcache.core.errors import UnusableImageError, UsageError
from featcache.images import decode
from featcache.images.decode import decode_rgb, rgb_from, rgb_from_array

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (37, 53, 3), dtype=np.uint8)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def pixels(data: bytes) -> np.ndarray:
    image = decode_rgb(data)
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP"])
def test_lossless_formats_come_back_as_they_were(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    np.testing.assert_array_equal(pixels(encoded(Image.fromarray(NOISE), kind, **options)), NOISE)


def test_a_jpeg_is_as_pillow_reads_it() -> None:
    data = encoded(Image.fromarray(NOISE), "JPEG", quality=80)
    np.testing.assert_array_equal(pixels(data), np.asarray(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize(
    "data", [b"", b"x", b"This is text, not an image.\n" * 50, b"%PDF-1.7\n", b"\xff\xd8", b"GIF89a"]
)
def test_what_is_no_image(data: bytes) -> None:
    with pytest.raises(UnusableImageError, match=r"not an image|cannot be decoded|cut off"):
        decode_rgb(data)


def test_text_is_told_so() -> None:
    with pytest.raises(UnusableImageError, match=r"not an image that can be read \(JPEG"):
        decode_rgb(b"Just text in photo.jpg\n")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "BMP", "WEBP"])
@pytest.mark.parametrize("part", [0.3, 0.5, 0.95])
def test_what_is_cut_off_is_refused(kind: str, part: float) -> None:
    data = encoded(Image.fromarray(NOISE), kind)
    with pytest.raises(UnusableImageError):
        decode_rgb(data[: int(len(data) * part)])


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_the_reason_is_that_it_is_cut_off(kind: str) -> None:
    data = encoded(Image.fromarray(NOISE), kind)
    with pytest.raises(UnusableImageError, match="the file is cut off"):
        decode_rgb(data[: len(data) // 2])


def test_filling_up_files_that_are_cut_off_is_not_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(UsageError, match="LOAD_TRUNCATED_IMAGES"):
        decode_rgb(encoded(Image.fromarray(NOISE), "PNG"))


def test_formats_that_are_not_listed_are_not_opened() -> None:
    with pytest.raises(UnusableImageError, match="not an image"):
        decode_rgb(encoded(Image.fromarray(NOISE), "EPS"))


def test_cmyk() -> None:
    plain = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    got = pixels(encoded(plain, "JPEG", quality=100))
    assert np.abs(got.astype(int) - (0, 255, 255)).max() <= 3
    np.testing.assert_array_equal(pixels(encoded(plain, "TIFF")), np.full((8, 8, 3), (0, 255, 255)))


def test_a_palette_without_and_with_transparency() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([0, 1])
    assert pixels(encoded(image, "PNG")).tolist() == [[[10, 20, 30], [200, 100, 50]]]
    assert pixels(encoded(image, "PNG", transparency=0)).tolist() == [[[255] * 3, [200, 100, 50]]]
    half = pixels(encoded(image, "PNG", transparency=bytes([51, 255])))
    assert half.tolist() == [[[206, 208, 210], [200, 100, 50]]]


def test_alpha_is_laid_on_white() -> None:
    image = Image.new("RGBA", (3, 1))
    image.putdata([(0, 100, 200, 0), (0, 100, 200, 51), (0, 100, 200, 255)])
    assert pixels(encoded(image, "PNG")).tolist() == [[[255] * 3, [204, 224, 244], [0, 100, 200]]]
    gray = Image.new("LA", (3, 1))
    gray.putdata([(0, 0), (0, 51), (70, 255)])
    assert pixels(encoded(gray, "PNG")).tolist() == [[[255] * 3, [204] * 3, [70] * 3]]


@pytest.mark.parametrize(("mode", "value", "clear"), [("L", 7, 7), ("RGB", (1, 2, 3), (1, 2, 3)), ("1", 0, 0)])
def test_one_transparent_colour(mode: str, value: Any, clear: Any) -> None:
    data = encoded(Image.new(mode, (2, 2), value), "PNG", transparency=clear)
    np.testing.assert_array_equal(pixels(data), np.full((2, 2, 3), 255))


def test_one_bit() -> None:
    bits = RNG.integers(0, 2, (5, 9), dtype=np.uint8) * 255
    for kind in ("PNG", "TIFF"):
        got = pixels(encoded(Image.fromarray(bits).convert("1"), kind))
        np.testing.assert_array_equal(got, np.repeat(bits[..., None], 3, 2))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_gray_is_scaled(kind: str) -> None:
    levels = np.array([[0, 1, 128, 129, 256, 257, 32767, 32768, 65406, 65407, 65534, 65535]], np.uint16)
    expected = np.rint(levels / 65535 * 255).astype(np.uint8)
    got = pixels(encoded(Image.fromarray(levels), kind))
    np.testing.assert_array_equal(got, np.repeat(expected[..., None], 3, 2))
    every = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    np.testing.assert_array_equal(
        pixels(encoded(Image.fromarray(every), kind))[..., 0], np.rint(every / 65535 * 255).astype(np.uint8)
    )


def png(width: int, height: int, depth: int, kind: int, rows: bytes, *, transparent: bytes = b"") -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    parts = [b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", head)]
    parts += [chunk(b"tRNS", transparent)] if transparent else []
    return b"".join([*parts, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")])


def test_one_transparent_level_of_sixteen_bits() -> None:
    data = png(3, 1, 16, 0, b"\0" + struct.pack(">3H", 300, 301, 0), transparent=struct.pack(">H", 300))
    assert pixels(data)[0, :, 0].tolist() == [255, 1, 0]


def test_sixteen_bit_colour_is_within_one_level() -> None:
    levels = RNG.integers(0, 65536, (50, 3))
    data = png(50, 1, 16, 2, b"\0" + levels.astype(">u2").tobytes())
    assert np.abs(pixels(data)[0] - levels / 257).max() <= 1


@pytest.mark.parametrize("most", [4095, 65535])
def test_a_pgm_says_which_level_is_white(most: int) -> None:
    levels = np.array([0, 1, most // 2, most])
    data = b"P5 4 1 %d\n" % most + levels.astype(">u2").tobytes()
    assert np.abs(pixels(data)[0, :, 0] - levels / most * 255).max() <= 0.51


def test_sixteen_bit_tiff_of_the_other_byte_order() -> None:
    levels = np.array([[0, 257, 65535]], np.uint16)
    # One strip, uncompressed, one sample of 16 bits, big-endian.
    tags = [(256, 3), (257, 1), (258, 16), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, 6)]
    data = b"MM\0*" + struct.pack(">I", 14) + levels.astype(">u2").tobytes() + struct.pack(">H", len(tags))
    data += b"".join(struct.pack(">HHIHH", tag, 3, 1, value, 0) for tag, value in tags) + struct.pack(">I", 0)
    assert pixels(data)[0, :, 0].tolist() == [0, 1, 255]


@pytest.mark.parametrize(("mode", "dtype"), [("I", np.int32), ("F", np.float32)])
def test_numbers_without_a_range_are_refused(mode: str, dtype: type) -> None:
    image = Image.fromarray(np.array([[0, 70000]], dtype))
    assert image.mode == mode
    with pytest.raises(UnusableImageError, match=f"mode {mode}"):
        rgb_from(image)
    with pytest.raises(UnusableImageError, match=f"mode {mode}"):
        decode_rgb(encoded(image, "TIFF"))


def stored(upright: np.ndarray, orientation: int) -> np.ndarray:
    """The pixels as a camera stores them that says *orientation* (EXIF 2.3, tag 274)."""
    return {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: np.rot90(upright.transpose(1, 0, 2), 2),
        8: np.rot90(upright, -1),
    }[orientation]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_gives_the_same_upright_image(orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    image = Image.fromarray(np.ascontiguousarray(stored(NOISE, orientation)))
    for kind, options in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})):
        np.testing.assert_array_equal(pixels(encoded(image, kind, exif=exif, **options)), NOISE)
    flat = np.kron(np.array([[0, 250], [90, 160]], np.uint8), np.ones((16, 24), np.uint8))
    flat = np.repeat(flat[..., None], 3, 2)
    image = Image.fromarray(np.ascontiguousarray(stored(flat, orientation)))
    got = pixels(encoded(image, "JPEG", exif=exif, quality=100)).astype(int)
    assert got.shape == flat.shape
    assert np.abs(got - flat).max() <= 3


def with_exif(data: bytes, exif: bytes) -> bytes:
    """A JPEG with *exif* in front of all else."""
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:]


def exif_fields(*fields: tuple[int, int, int, bytes]) -> bytes:
    """EXIF data of fields (tag, type, count, four bytes of value), little-endian."""
    listed = b"".join(struct.pack("<HHI", *field[:3]) + field[3] for field in fields)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(fields)) + listed + b"\0" * 44


@pytest.mark.parametrize(
    "damaged",
    [(273, 4, 1, b"\xff" * 4), (282, 1, 2, b"\1\2\0\0"), (306, 11, 1, b"\0" * 4), (34665, 6, 2, b"\xff" * 4)],
    ids=["offset", "resolution", "date", "pointer"],
)
def test_a_damaged_field_beside_it_does_not_hide_the_orientation(damaged: tuple[int, int, int, bytes]) -> None:
    """Pillow's own `exif_transpose` fails on these; the image must not lie on its side."""
    data = encoded(Image.fromarray(NOISE), "JPEG")
    turned = with_exif(data, exif_fields((274, 3, 1, struct.pack("<HH", 6, 0)), damaged))
    np.testing.assert_array_equal(pixels(turned), np.rot90(pixels(data), -1))


def test_what_was_turned_once_is_not_turned_again() -> None:
    exif = Image.Exif()
    exif[274] = 6
    for kind in ("JPEG", "PNG", "TIFF", "WEBP"):
        once = decode_rgb(encoded(Image.fromarray(NOISE), kind, exif=exif))
        assert once.size == (37, 53)
        np.testing.assert_array_equal(np.asarray(rgb_from(once)), np.asarray(once))
        np.testing.assert_array_equal(np.asarray(ImageOps.exif_transpose(once)), np.asarray(once))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0",
        b"Exif\0\0garbage garbage",
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff",
        b"Exif\0\0MM\0*\xff\xff\xff\xff\0\x01",
    ],
)
def test_broken_exif_leaves_the_image(exif: bytes) -> None:
    data = encoded(Image.fromarray(NOISE), "JPEG")
    np.testing.assert_array_equal(pixels(with_exif(data, exif)), pixels(data))


def test_an_orientation_that_is_none_is_passed_over() -> None:
    exif = Image.Exif()
    exif[274] = 77
    np.testing.assert_array_equal(pixels(encoded(Image.fromarray(NOISE), "PNG", exif=exif)), NOISE)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF"])
def test_the_first_frame_of_an_animation(kind: str) -> None:
    frames = [Image.new("RGB", (6, 4), color) for color in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert getattr(Image.open(io.BytesIO(data)), "n_frames", 1) == 3
    np.testing.assert_array_equal(pixels(data), np.full((4, 6, 3), (255, 0, 0)))


def test_of_a_file_with_several_images_the_first() -> None:
    frames = [Image.new("RGB", (16, 16), color) for color in ((255, 0, 0), (0, 0, 255))]
    data = encoded(frames[0], "MPO", save_all=True, append_images=frames[1:])
    assert np.abs(pixels(data).astype(int) - (255, 0, 0)).max() <= 3


def header_of_a_huge_png(width: int, height: int) -> bytes:
    return png(width, height, 8, 2, b"\0" * 1000)


@pytest.mark.parametrize("size", [(60000, 60000), (2**31 - 1, 2), (14000, 14000)])
def test_a_decompression_bomb_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(UnusableImageError, match="pixels"):
        decode_rgb(header_of_a_huge_png(*size))


# Its own peak: ru_maxrss begins at the size of the process that started it, and then nothing shows.
KILOBYTES = """
def kilobytes():
    lines = open('/proc/self/status').read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith('VmHWM'))
"""


def test_a_bomb_is_refused_before_memory_is_taken_even_without_the_limit_of_pillow() -> None:
    """In a process that may take 1 GiB: the image would need 10."""
    code = (
        "import sys; from PIL import Image; from featcache.images.decode import decode_rgb\n"
        "from featcache.core.errors import UnusableImageError\n"
        f"{KILOBYTES}"
        "Image.MAX_IMAGE_PIXELS = None\n"
        "before = kilobytes()\n"
        "try: decode_rgb(bytes.fromhex(sys.argv[1]))\n"
        "except UnusableImageError as error: print(error)\n"
        "assert kilobytes() - before < 100_000\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, header_of_a_huge_png(60000, 60000).hex()],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "60000 × 60000 pixels, more than 178,956,970" in done.stdout


def test_memory_that_is_short_is_told_from_an_image_that_is_bad(tmp_path: Path) -> None:
    """In a process that may take 300 MB more: as RGB the image needs 576."""
    Image.new("1", (12000, 12000)).save(tmp_path / "a.png")
    code = (
        "import resource, sys; from featcache.images.decode import decode_rgb\n"
        "from featcache.core.errors import ImageMemoryError\n"
        "pages = int(open('/proc/self/statm').read().split()[0])\n"
        "most = pages * resource.getpagesize() + 300_000_000\n"
        "resource.setrlimit(resource.RLIMIT_AS, (most, most))\n"
        "try: decode_rgb(open(sys.argv[1], 'rb').read())\n"
        "except ImageMemoryError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.png")], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "there is not enough memory to decode it\n", done.stderr


def test_the_limit_on_pixels_is_the_last_size_that_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(Image.fromarray(NOISE), "PNG")
    monkeypatch.setattr(decode, "MAX_PIXELS", 37 * 53)
    assert pixels(data).shape == NOISE.shape
    monkeypatch.setattr(decode, "MAX_PIXELS", 37 * 53 - 1)
    with pytest.raises(UnusableImageError, match="53 × 37 pixels"):
        decode_rgb(data)


def test_a_lower_limit_of_pillow_is_not_the_fault_of_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.raises(UsageError, match="MAX_IMAGE_PIXELS is 500"):
        decode_rgb(encoded(Image.fromarray(NOISE), "PNG"))


def test_many_threads_read_what_one_reads() -> None:
    exif = Image.Exif()
    exif[274] = 6
    files = []
    for i in range(60):
        image = Image.fromarray(RNG.integers(0, 256, (40 + i, 80, 3), dtype=np.uint8))
        kind = ("JPEG", "PNG", "WEBP", "GIF", "TIFF")[i % 5]
        files.append(encoded(image, kind, **({} if kind == "GIF" else {"exif": exif})))
    alone = [pixels(data) for data in files]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            for got, expected in zip(pool.map(pixels, files), alone, strict=True):
                np.testing.assert_array_equal(got, expected)


def test_an_open_image_is_read_as_its_file() -> None:
    exif = Image.Exif()
    exif[274] = 6
    rgba = Image.fromarray(RNG.integers(0, 256, (9, 7, 4), dtype=np.uint8))
    for image in (rgba, rgba.convert("L"), rgba.convert("LA"), Image.fromarray(NOISE).convert("P")):
        data = encoded(image, "PNG", exif=exif)
        np.testing.assert_array_equal(np.asarray(rgb_from(Image.open(io.BytesIO(data)))), pixels(data))
    with pytest.raises(UnusableImageError, match="no pixels"):
        rgb_from(Image.new("RGB", (0, 5)))


@pytest.mark.parametrize("mode", ["1", "L", "La", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr", "I;16"])
def test_an_open_image_of_any_mode_is_read_or_refused_and_left_as_it_is(mode: str) -> None:
    image = Image.new(mode, (3, 2))
    before = image.tobytes()
    got = rgb_from(image)
    assert (got.mode, got.size) == ("RGB", (3, 2))
    got.putpixel((0, 0), (1, 2, 3))
    assert (image.mode, image.tobytes()) == (mode, before)


def test_premultiplied_gray_on_white() -> None:
    image = Image.new("LA", (1, 1), (0, 51)).convert("La")
    assert rgb_from(image).getpixel((0, 0)) == (204, 204, 204)


def test_an_open_image_that_cannot_be_loaded() -> None:
    data = encoded(Image.fromarray(NOISE), "JPEG")
    with pytest.raises(UnusableImageError, match="cut off") as caught:
        rgb_from(Image.open(io.BytesIO(data[: len(data) // 2])))
    assert isinstance(caught.value.__cause__, OSError)
    closed = Image.open(io.BytesIO(data))
    closed.close()
    with pytest.raises(UnusableImageError, match="cannot be decoded"):
        rgb_from(closed)


def images_of_all_modes_with_alpha(width: int, height: int) -> dict[str, Image.Image]:
    """Noise in every mode that is laid on white or scaled, by a telling name."""
    rng = np.random.default_rng(width)
    rgba = Image.fromarray(rng.integers(0, 256, (height, width, 4), dtype=np.uint8))
    gray, deep = rgba.getchannel(0), Image.fromarray(rng.integers(0, 65536, (height, width), dtype=np.uint16))
    made = {mode: rgba.convert(mode) for mode in ("RGBA", "LA", "RGBa")}
    made["La"] = made["LA"].convert("La")
    made["I;16"] = deep
    for name, image, clear in (
        ("L", gray, gray.getpixel((0, 0))),
        ("1", gray.convert("1"), 0),
        ("RGB", rgba.convert("RGB"), rgba.getpixel((0, 0))[:3]),
        ("P", rgba.convert("RGB").quantize(64), 3),
        ("P with alphas", rgba.convert("RGB").quantize(64), bytes(range(64))),
        ("I;16 with one clear level", deep.copy(), deep.getpixel((0, 0))),
    ):
        image.info["transparency"] = clear
        made[name] = image
    made["PA"] = made["P"].convert("PA")
    return made


@pytest.mark.parametrize("size", [(53, 37), (500, 3), (3, 500), (1, 1)])
def test_tile_by_tile_is_as_all_at_once(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, image in images_of_all_modes_with_alpha(*size).items():
        monkeypatch.setattr(decode, "_TILE_PIXELS", 97)
        tiles = np.asarray(rgb_from(image))
        monkeypatch.setattr(decode, "_TILE_PIXELS", 1 << 40)
        np.testing.assert_array_equal(tiles, np.asarray(rgb_from(image)), err_msg=name)
        if name in ("RGBA", "LA", "P", "P with alphas", "L", "RGB", "1", "La", "RGBa"):
            flat = (image.convert("LA") if name == "La" else image).convert("RGBA")
            white = Image.new("RGBA", image.size, (255, 255, 255, 255))
            np.testing.assert_array_equal(tiles, np.asarray(Image.alpha_composite(white, flat).convert("RGB")), name)


PEAK = f"""
import sys
from pathlib import Path
from featcache.images.decode import decode_rgb
{KILOBYTES}
data = Path(sys.argv[1]).read_bytes()
before = kilobytes()
decode_rgb(data)
print((kilobytes() - before) / 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "bytes_a_pixel"), [("RGBA", 4), ("LA", 4), ("P", 1), ("I;16", 2)])
def test_the_largest_images_take_one_copy_as_read_and_one_as_rgb(mode: str, bytes_a_pixel: int, tmp_path: Path) -> None:
    """40 megapixels, turned; RGB takes 4 bytes a pixel in memory. All at once would be two or three copies more."""
    exif = Image.Exif()
    exif[274] = 6
    image = Image.new(mode, (8000, 5000))
    options: dict[str, Any] = {"compress_level": 1, "exif": exif}
    if mode == "P":
        image.putpalette(bytes(768))
        options["transparency"] = 0
    image.save(tmp_path / "large.png", "PNG", **options)
    command = [sys.executable, "-c", PEAK, str(tmp_path / "large.png")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    # While it is turned there are two copies as RGB, where the one as read is gone.
    copies = 8000 * 5000 * (max(bytes_a_pixel, 4) + 4) / 2**20
    assert float(done.stdout) < copies + 60


@pytest.mark.slow
def test_a_large_jpeg_takes_two_copies_as_rgb(tmp_path: Path) -> None:
    """40 megapixels, turned: as decoded and as Pillow's, or as Pillow's and turned."""
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (8000, 5000)).save(tmp_path / "large.jpg", exif=exif)
    command = [sys.executable, "-c", PEAK, str(tmp_path / "large.jpg")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert float(done.stdout) < 8000 * 5000 * 8 / 2**20 + 60


def test_arrays() -> None:
    np.testing.assert_array_equal(np.asarray(rgb_from_array(NOISE)), NOISE)
    np.testing.assert_array_equal(np.asarray(rgb_from_array(NOISE[::-1, ::2])), NOISE[::-1, ::2])
    gray = np.repeat(NOISE[..., :1], 3, 2)
    np.testing.assert_array_equal(np.asarray(rgb_from_array(NOISE[..., 0])), gray)
    np.testing.assert_array_equal(np.asarray(rgb_from_array(NOISE[..., :1])), gray)
    alpha = np.array([[[0, 100, 200, 51]]], np.uint8)
    assert np.asarray(rgb_from_array(alpha)).tolist() == [[[204, 224, 244]]]
    deep = np.array([[[0, 257, 65535], [128, 129, 32768]]], np.uint16)
    np.testing.assert_array_equal(np.asarray(rgb_from_array(deep)), np.rint(deep / 65535 * 255).astype(np.uint8))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 2), np.uint8), np.zeros((4,), np.uint8), np.zeros((3, 4, 5), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((4, 4), np.int64),
        np.zeros((0, 4, 3), np.uint8), np.zeros((4, 0), np.uint8),
    ],
)  # fmt: skip
def test_arrays_that_are_refused(array: np.ndarray) -> None:
    with pytest.raises(UsageError, match="An image array has shape"):
        rgb_from_array(array)
