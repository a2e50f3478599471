"""One door to the pixels: an odd image has the same vector wherever it is given, and the pixels that its file means."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import featcache as fc
from featcache.backbones import tiny_backbone
from featcache.extraction.embed import embed
from featcache.images.decode import decode, decode_rgb, rgb_from, rgb_from_array

RNG = np.random.default_rng(3)
SMOOTH = np.asarray(Image.fromarray(RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((64, 48)))
GRAY = SMOOTH[..., 0]


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(depth: int, color: int, samples: np.ndarray, *extra: tuple[bytes, bytes]) -> bytes:
    """A PNG of samples (h, w) or (h, w, c) at any depth, with other chunks before the pixels."""
    height, width = samples.shape[:2]
    if depth == 16:
        rows = [row.astype(">u2").tobytes() for row in samples]
    elif depth == 8:
        rows = [row.astype(np.uint8).tobytes() for row in samples]
    else:
        bits = (samples[..., None] >> np.arange(depth - 1, -1, -1)) & 1
        rows = [np.packbits(row.ravel()).tobytes() for row in bits.reshape(height, -1)]
    head = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    chunks = [(b"IHDR", head), *extra, (b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in chunks)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def bmp_without_alpha() -> bytes:
    rows = np.dstack([SMOOTH[..., ::-1], np.zeros(SMOOTH.shape[:2], np.uint8)])[::-1].tobytes()
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    head = struct.pack("<IiiHHIIiiII", 108, 64, 48, 1, 32, 3, len(rows), 2835, 2835, 0, 0) + masks + b"BGRs" + bytes(48)
    return b"BM" + struct.pack("<IHHI", 14 + len(head) + len(rows), 0, 0, 14 + len(head)) + head + rows


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x112] = 6
    return encoded(Image.fromarray(SMOOTH), "PNG", exif=exif)


def with_alpha() -> Image.Image:
    image = Image.fromarray(SMOOTH)
    image.putalpha(200)
    return image


def transparent(depth: int, *, color: bool = False) -> bytes:
    """A PNG whose darkest sample, a quarter of the image, is transparent."""
    most = (1 << depth) - 1
    samples = np.maximum((SMOOTH if color else GRAY).astype(np.uint32) * most // 255, 1 if depth > 1 else 0)
    samples[:24, :32] = 0
    if depth > 2:
        samples[:24, :32] = 5
        samples[24:, 32:][samples[24:, 32:] == 5] = 6
    clear = struct.pack(">H", 0 if depth <= 2 else 5) * (3 if color else 1)
    return png(depth, 2 if color else 0, samples, (b"tRNS", clear))


ODD: dict[str, Callable[[], bytes]] = {
    "plain.png": lambda: encoded(Image.fromarray(SMOOTH), "PNG"),
    "alpha-zero.bmp": bmp_without_alpha,
    "alpha-zero.tga": lambda: encoded(Image.fromarray(np.dstack([SMOOTH, np.zeros_like(GRAY)])), "TGA"),
    "turned.png": turned,
    "palette.png": lambda: encoded(Image.fromarray(SMOOTH).quantize(64), "PNG"),
    "gray.png": lambda: encoded(Image.fromarray(GRAY), "PNG"),
    "alpha.png": lambda: encoded(with_alpha(), "PNG"),
    "cmyk.tif": lambda: encoded(Image.fromarray(SMOOTH).convert("CMYK"), "TIFF"),
    "12-bit.png": lambda: png(16, 0, GRAY.astype(np.uint32) * 16 + 5, (b"sBIT", b"\x0c")),
    "12-bit-color.png": lambda: png(16, 2, SMOOTH.astype(np.uint32) * 16 + 5, (b"sBIT", b"\x0c" * 3)),
    **{f"clear-{depth}.png": lambda depth=depth: transparent(depth) for depth in (1, 2, 4, 8, 16)},
    **{f"clear-color-{depth}.png": lambda depth=depth: transparent(depth, color=True) for depth in (8, 16)},
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, draw_images: Any) -> tuple[fc.Bundle, Path]:
    root = tmp_path_factory.mktemp("pixels")
    fc.extract(draw_images(root / "photos"), root / "s.fcache", backbone=tiny_backbone(), progress=False)
    return fc.train(root / "s.fcache", head="ridge", progress=False), root


def vectors_at_doors(path: Path, store: Path) -> dict[str, np.ndarray]:
    """The vector of one file at every door that turns an image into pixels."""
    backbone = tiny_backbone()
    layers = backbone.resolve_layers(["pooled"])

    def of(image: Any) -> np.ndarray:
        (found,) = embed([image], backbone, ["pooled"])
        assert found.vector is not None, found.reason
        return found.vector

    fc.extract(path.parent, store, backbone=backbone, progress=False)
    loaded = Image.open(path)
    loaded.load()
    embedder = fc.CachedEmbedder(backbone, store.with_suffix(".2"), progress=False)
    prepared = backbone.prepare(Image.open(path))[None]
    return {
        "extract": fc.open(store).arrays(layers="pooled")[0][0],
        "embed path": of(path),
        "embed image": of(Image.open(path)),
        "embedder path": embedder.transform([path])[0],
        "embedder image": embedder.transform([Image.open(path)])[0],
        "embedder array": embedder.transform([np.asarray(rgb_from(Image.open(path)))])[0],
        "prepare": backbone.forward(prepared, layers)["pooled"][0],
    }


@pytest.mark.parametrize("name", sorted(ODD))
def test_every_door_sees_the_same_pixels(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    (folder / name).write_bytes(ODD[name]())
    found = vectors_at_doors(folder / name, tmp_path / "s.fcache")
    for door, vector in found.items():
        np.testing.assert_allclose(vector, found["extract"], rtol=1e-3, atol=1e-4, err_msg=door)


@pytest.mark.parametrize("name", sorted(ODD))
def test_a_module_reads_images_as_predict_does(name: str, bundle: tuple[fc.Bundle, Path], tmp_path: Path) -> None:
    head, _ = bundle
    (tmp_path / name).write_bytes(ODD[name]())
    module = head.to_torch(backbone=tiny_backbone())
    (asked,) = head.predict([tmp_path / name], backbone=tiny_backbone(), progress=False)
    for image in (tmp_path / name, Image.open(tmp_path / name)):
        with torch.no_grad():
            logits = module(module.transform(image)[None])[0]  # type: ignore[operator]
        shares = torch.softmax(logits, 0).numpy()
        for label, probability in dict(asked.labels).items():
            assert abs(shares[list(module.classes).index(label)] - probability) < 1e-3  # type: ignore[arg-type]


def close(data: bytes, expected: np.ndarray, within: int = 1) -> None:
    got = np.asarray(decode_rgb(data)).astype(int)
    assert np.abs(got - expected).max() <= within


def test_an_alpha_that_is_zero_everywhere_is_not_used() -> None:
    close(bmp_without_alpha(), SMOOTH, 0)
    close(encoded(Image.fromarray(np.dstack([SMOOTH, np.zeros_like(GRAY)])), "PNG"), np.full_like(SMOOTH, 255), 0)


@pytest.mark.parametrize(
    ("depth", "color"), [(1, False), (2, False), (4, False), (8, False), (16, False), (8, True), (16, True)]
)
def test_the_transparent_sample_becomes_white_at_every_depth(depth: int, color: bool) -> None:
    got = np.asarray(decode_rgb(transparent(depth, color=color)))
    assert (got[:24, :32] == 255).all()
    most = (1 << depth) - 1
    if depth > 1:
        expected = np.maximum((SMOOTH if color else GRAY[..., None]).astype(np.uint32) * most // 255, 1) / most * 255
        assert np.abs(got[24:, 32:].astype(float) - expected[24:, 32:]).max() < 18


@pytest.mark.parametrize(("depth", "clear"), [(d, c) for d in (1, 2, 4, 8) for c in (b"\0", b"\xff\x33")])
def test_transparent_palettes_at_every_depth(depth: int, clear: bytes) -> None:
    palette = bytes([10, 20, 30, 200, 100, 50])
    data = png(depth, 3, np.array([[0, 1] * 4]), (b"PLTE", palette), (b"tRNS", clear))
    half = [244, 224, 214] if len(clear) == 2 else [200, 100, 50]
    first = [255] * 3 if len(clear) == 1 else [10, 20, 30]
    assert np.asarray(decode_rgb(data))[0, :2].tolist() == [first, half]


def test_twelve_bits_that_the_file_tells_of_are_the_whole_range() -> None:
    levels = GRAY.astype(np.uint32) * 4095 // 255
    wide = np.repeat(GRAY[..., None], 3, axis=2)
    close(png(16, 0, levels, (b"sBIT", b"\x0c")), wide)
    close(png(16, 2, SMOOTH.astype(np.uint32) * 4095 // 255, (b"sBIT", b"\x0c" * 3)), SMOOTH)
    deep = Image.fromarray(levels.astype(np.uint16))
    close(encoded(deep, "TIFF", tiffinfo={281: 4095}), wide)
    assert not decode(png(16, 0, levels, (b"sBIT", b"\x0c"))).is_narrow


def test_a_range_that_the_samples_exceed_is_not_believed() -> None:
    """By the standard, the samples of a PNG with sBIT fill 16 bits; these were right before, and stay equal."""
    for levels, color in ((GRAY.astype(np.uint32) * 257, 0), (SMOOTH.astype(np.uint32) * 257, 2)):
        told = np.asarray(decode_rgb(png(16, color, levels, (b"sBIT", b"\x0c" * (3 if color else 1)))))
        np.testing.assert_array_equal(told, np.asarray(decode_rgb(png(16, color, levels))))
    brightest = encoded(Image.fromarray(GRAY.astype(np.uint16) * 100), "TIFF", tiffinfo={281: 25000})
    plain = encoded(Image.fromarray(GRAY.astype(np.uint16) * 100), "TIFF")
    np.testing.assert_array_equal(np.asarray(decode_rgb(brightest)), np.asarray(decode_rgb(plain)))


@pytest.mark.parametrize("bits", [10, 12, 14])
@pytest.mark.parametrize("color", [False, True])
@pytest.mark.parametrize("scaled", ["shifted", "repeated", "rounded"])
def test_dark_samples_that_the_standard_scales_are_as_dark_as_they_are(bits: int, color: bool, scaled: str) -> None:
    """A dark frame is read as the bright one beside it is, though its samples would fit into the fewer bits too."""
    most, shift = (1 << bits) - 1, 16 - bits
    drawn = (SMOOTH if color else GRAY).astype(np.uint32)
    for brightest in (most, most >> shift, 7):
        before = drawn * brightest // 255
        levels = {
            "shifted": before << shift,
            "repeated": before << shift | before >> (2 * bits - 16),
            "rounded": (before * 65535 + most // 2) // most,
        }[scaled]
        told = decode(png(16, 2 if color else 0, levels, (b"sBIT", bytes([bits]) * (3 if color else 1))))
        assert not told.is_narrow
        np.testing.assert_array_equal(
            np.asarray(told.image), np.asarray(decode_rgb(png(16, 2 if color else 0, levels)))
        )


def test_twelve_bits_that_no_file_tells_of_are_told(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    for i in range(3):
        (tmp_path / "p" / f"{i}.png").write_bytes(png(16, 0, np.roll(GRAY, i, 1).astype(np.uint32) * 16))
    (tmp_path / "p" / "full.png").write_bytes(png(16, 0, GRAY.astype(np.uint32) * 257))
    (tmp_path / "p" / "black.png").write_bytes(png(16, 0, np.zeros_like(GRAY)))
    report = fc.extract(tmp_path / "p", tmp_path / "s.fcache", backbone=tiny_backbone(), progress=False)
    assert [note for note in report.notes if "16-bit range" in note and note.startswith("3 images")]
    assert rgb_from_array(GRAY.astype(np.uint16) * 16).info
    assert decode(png(16, 2, SMOOTH.astype(np.uint32) * 16)).is_narrow
