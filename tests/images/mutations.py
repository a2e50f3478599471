"""Damaged images, each made from a number: the same number gives the same bytes with the same Pillow.

Small sound images of all formats (`sound_images`) are damaged as disks, networks and attackers do it: bits and
runs of bytes, cut off or repeated parts, sizes no image has, chunks in another order. Checksums of PNG chunks
are mended half of the time, since otherwise nothing behind them would ever be read.
"""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

ABSURD = (0, 1, 2, 255, 256, 0x7FFF, 0x8000, 0xFFFF, 13_000, 60_000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)
_PNG_HEAD = b"\x89PNG\r\n\x1a\n"


def damaged(number: int) -> tuple[str, bytes]:
    """The image of this number: the name of the sound one and what was done to it, and its bytes."""
    rng = random.Random(number)
    name, data = rng.choice(sorted(sound_images().items()))
    done = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        change = rng.choice(CHANGES)
        data = change(bytearray(data), rng)
        done.append(change.__name__)
    return f"{name}: {', '.join(done)}", data


@cache
def sound_images() -> dict[str, bytes]:
    """Sound images by name, a few kilobytes each."""
    rng = np.random.default_rng(0)
    fine = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
    rgb = Image.fromarray(np.kron(fine[:12, :16], np.ones((4, 4, 1), np.uint8)))
    gray, deep = rgb.convert("L"), Image.fromarray(fine[..., 0].astype(np.uint16) * 257)
    rgba = rgb.copy()
    rgba.putalpha(gray)
    palette = rgb.quantize(16)
    frames = [Image.fromarray(np.roll(fine, i, axis=1)) for i in range(3)]
    exif = Image.Exif()
    exif[274], exif[305] = 6, "a camera"

    def film() -> dict[str, Any]:
        return {"save_all": True, "append_images": [frame.copy() for frame in frames[1:]]}

    def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
        out = io.BytesIO()
        image.copy().save(out, kind, **options)  # saving leaves settings behind that confuse the next format
        return out.getvalue()

    made = {
        "jpeg": encoded(rgb, "JPEG", quality=80),
        "jpeg gray": encoded(gray, "JPEG"),
        "jpeg progressive": encoded(rgb, "JPEG", progressive=True, restart_marker_blocks=2),
        "jpeg cmyk": encoded(rgb.convert("CMYK"), "JPEG"),
        "jpeg turned": encoded(rgb, "JPEG", exif=exif),
        "jpeg several": encoded(frames[0], "MPO", **film()),
        "png": encoded(rgb, "PNG", exif=exif, dpi=(72, 72)),
        "png rgba": encoded(rgba, "PNG"),
        "png 16 bit": encoded(deep, "PNG"),
        "png palette": encoded(palette, "PNG", transparency=3),
        "png 1 bit": encoded(gray.convert("1"), "PNG"),
        "png interlaced": _interlaced(fine[..., 0]),
        "png animated": encoded(frames[0], "PNG", **film()),
        "gif": encoded(palette, "GIF", transparency=2),
        "gif animated": encoded(frames[0], "GIF", **film(), duration=50, disposal=2),
        "webp": encoded(rgb, "WEBP", quality=60, exif=exif),
        "webp lossless": encoded(rgba, "WEBP", lossless=True),
        "webp animated": encoded(frames[0], "WEBP", **film()),
        "bmp": encoded(rgb, "BMP"),
        "bmp palette": encoded(palette, "BMP"),
        "bmp 1 bit": encoded(gray.convert("1"), "BMP"),
        "tiff pages": encoded(frames[0], "TIFF", **film()),
        "tiff 16 bit": encoded(deep, "TIFF"),
        "tiff cmyk": encoded(rgb.convert("CMYK"), "TIFF"),
        "ppm": encoded(rgb, "PPM"),
        "avif": encoded(rgb, "AVIF", quality=60),
        "jpeg 2000": encoded(rgb, "JPEG2000"),
        **{name.lower(): encoded(rgb, name) for name in ("DDS", "DIB", "ICNS", "ICO", "PCX", "QOI", "SGI", "TGA")},
        "ppm text": b"P3 8 8 255\n" + b" ".join(b"%d" % level for level in fine.ravel()[:192]) + b"\n",
    }
    for method in ("raw", "tiff_lzw", "tiff_deflate", "packbits", "jpeg"):
        made[f"tiff {method}"] = encoded(rgb, "TIFF", compression=method)
    made["tiff group4"] = encoded(gray.convert("1"), "TIFF", compression="group4")
    return made


def _interlaced(gray: np.ndarray) -> bytes:
    """An interlaced PNG (Adam7), which Pillow reads but does not write."""
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    rows = b"".join(
        b"\0" + row.tobytes() for x, y, across, down in passes for row in gray[y::down, x::across] if row.size
    )
    head = struct.pack(">IIBBBBB", gray.shape[1], gray.shape[0], 8, 0, 0, 0, 1)
    return _png([(b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")])


def _png(chunks: list[tuple[bytes, bytes]]) -> bytes:
    return _PNG_HEAD + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )


def _png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    chunks, at = [], len(_PNG_HEAD)
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        chunks.append((bytes(data[at + 4 : at + 8]), bytes(data[at + 8 : at + 8 + length])))
        at += 12 + length
    return chunks


def _mended(data: bytearray, rng: random.Random) -> bytes:
    """The data, for a PNG half of the time with lengths and checksums that fit."""
    if data.startswith(_PNG_HEAD) and rng.random() < 0.5:
        return _png(_png_chunks(bytes(data)))
    return bytes(data)


def flip_bits(data: bytearray, rng: random.Random) -> bytes:
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        if data:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return _mended(data, rng)


def overwrite_run(data: bytearray, rng: random.Random) -> bytes:
    at, length = rng.randrange(len(data) + 1), rng.choice((1, 2, 4, 16, 200))
    filling = rng.choice((b"\0" * length, b"\xff" * length, rng.randbytes(length)))
    data[at : at + length] = filling[: len(data) - at]
    return _mended(data, rng)


def cut_off(data: bytearray, rng: random.Random) -> bytes:
    return bytes(data[: rng.randrange(len(data) + 1)])


def repeat_block(data: bytearray, rng: random.Random) -> bytes:
    at, length = rng.randrange(len(data) + 1), rng.choice((1, 8, 64, 512))
    to = rng.choice((at, rng.randrange(len(data) + 1)))
    data[to:to] = data[at : at + length] * rng.choice((1, 2, 50))
    return bytes(data)


def remove_block(data: bytearray, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    del data[at : at + rng.choice((1, 2, 8, 64))]
    return _mended(data, rng)


def append_garbage(data: bytearray, rng: random.Random) -> bytes:
    return bytes(data) + rng.choice((rng.randbytes(300), b"\0" * 5000, bytes(data)))


def absurd_field(data: bytearray, rng: random.Random) -> bytes:
    """A number of the header set to one that is far too large, or just at a limit."""
    places = _size_fields(data)
    if not places or rng.random() < 0.3:
        places = [(rng.randrange(max(1, min(len(data), 200))), rng.choice((1, 2, 4)), rng.choice(("little", "big")))]
    for at, width, order in rng.sample(places, rng.randint(1, min(2, len(places)))):
        value = rng.choice(ABSURD) % (1 << 8 * width)
        if at + width <= len(data):
            data[at : at + width] = value.to_bytes(width, order)  # type: ignore[arg-type]
    return _mended(data, rng)


def shuffle_parts(data: bytearray, rng: random.Random) -> bytes:
    """Chunks, segments or tags in another order, twice, or missing."""
    head, parts, tail = _parts(bytes(data))
    if len(parts) < 2:
        return repeat_block(data, rng)
    for _ in range(rng.choice((1, 1, 3))):
        one, other = rng.randrange(len(parts)), rng.randrange(len(parts))
        match rng.randrange(3):
            case 0:
                parts[one], parts[other] = parts[other], parts[one]
            case 1:
                parts.insert(other, parts[one])
            case 2 if len(parts) > 1:
                del parts[one]
                one = other = 0
    return head + b"".join(parts) + tail


CHANGES: tuple[Callable[[bytearray, random.Random], bytes], ...] = (
    flip_bits, flip_bits, overwrite_run, overwrite_run, cut_off, repeat_block, remove_block, append_garbage,
    absurd_field, absurd_field, absurd_field, shuffle_parts, shuffle_parts,
)  # fmt: skip


def _size_fields(data: bytearray) -> list[tuple[int, int, str]]:
    """Where a file's header tells sizes and counts: place, bytes, byte order."""
    if data.startswith(_PNG_HEAD):
        return [(16, 4, "big"), (20, 4, "big"), (24, 1, "big"), (25, 1, "big"), (28, 1, "big")]
    if data.startswith(b"\xff\xd8"):
        fields = []
        for marker in (b"\xff\xc0", b"\xff\xc2"):
            at = data.find(marker)
            if at >= 0:
                fields += [(at + 4, 1, "big"), (at + 5, 2, "big"), (at + 7, 2, "big"), (at + 9, 1, "big")]
        return fields
    if data.startswith(b"GIF8"):
        at = data.find(b"\x2c", 13)
        frame = [(at + 5, 2, "little"), (at + 7, 2, "little")] if at >= 0 else []
        return [(6, 2, "little"), (8, 2, "little"), *frame, (10, 1, "little")]
    if data.startswith(b"BM"):
        return [(at, 4, "little") for at in (10, 14, 18, 22, 30, 46)] + [(28, 2, "little")]
    if data.startswith(b"RIFF"):
        return [(4, 4, "little"), (16, 4, "little"), (24, 3, "little"), (27, 3, "little"), (26, 2, "little")]
    if data.startswith(b"II*\0") and len(data) >= 8:
        (start,) = struct.unpack_from("<I", data, 4)
        return [(at + part, 4, "little") for at in range(start + 2, min(len(data), start + 150), 12) for part in (4, 8)]
    return [(at, 1, "big") for at in range(2, min(len(data), 12))]


def _parts(data: bytes) -> tuple[bytes, list[bytes], bytes]:
    """A file as head, parts and tail; no parts where it has none that are easily told."""
    if data.startswith(_PNG_HEAD):
        return _PNG_HEAD, [_png([chunk])[len(_PNG_HEAD) :] for chunk in _png_chunks(data)], b""
    at, parts = 0, []
    if data.startswith(b"\xff\xd8"):
        at = 2
        while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
            end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
            parts.append(data[at:end])
            at = end
        return data[:2], parts, data[at:]
    if data.startswith(b"RIFF"):
        at = 12
        while at + 8 <= len(data):
            length = int.from_bytes(data[at + 4 : at + 8], "little")
            end = at + 8 + length + length % 2
            parts.append(data[at:end])
            at = end
        return data[:12], parts, b""
    if data.startswith(b"II*\0") and len(data) >= 8:
        start = int.from_bytes(data[4:8], "little") + 2
        count = int.from_bytes(data[start - 2 : start], "little")
        ends = start + 12 * min(count, 40)
        return data[:start], [data[i : i + 12] for i in range(start, ends, 12)], data[ends:]
    if data.startswith(b"GIF8"):
        blocks = data[13:].split(b"\x2c")
        return data[:13], [blocks[0], *(b"\x2c" + block for block in blocks[1:])], b""
    return data, [], b""
