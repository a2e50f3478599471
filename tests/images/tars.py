"""Tar files written member by member."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image


def image_bytes(seed: int, kind: str = "PNG") -> bytes:
    """The bytes of a small image file."""
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def write_tar(path: Path, members: Iterable[tuple[str, bytes | str]], layout: int = tarfile.PAX_FORMAT) -> Path:
    """Write a tar; a member given as text is a symbolic link to it."""
    with tarfile.open(path, "w", format=layout) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            if isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
                tar.addfile(member)
            else:
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path
