"""Values that people and files hand to a door by mistake, by name so that a failure can be read."""

from __future__ import annotations

import io
import math
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

import featcache as fc

if TYPE_CHECKING:
    from tests.doors import Door, Parameter, World


class Placed(os.PathLike):
    """A path that is neither text nor a `Path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __fspath__(self) -> str:
        return str(self.path)


def _damaged(path: Path, made: Path, seed: int) -> Path:
    """A copy of a file with one byte changed, or cut off."""
    rng, data = random.Random(seed), bytearray(path.read_bytes())
    if seed % 2:
        del data[rng.randrange(len(data)) :]
    else:
        data[rng.randrange(min(len(data), 4096))] ^= 1 << rng.randrange(8)
    made.parent.mkdir(parents=True, exist_ok=True)
    made.write_bytes(data)
    return made


def _damaged_store(world: World) -> Path:
    made = world.new_file(".fcache")
    shutil.copytree(world["pets.fcache"], made)
    _damaged(world["pets.fcache"] / "catalog.sqlite", made / "catalog.sqlite", world.seed)
    return made


def _damaged_shard(world: World) -> Path:
    made = world.new_file(".fcache")
    shutil.copytree(world["pets.fcache"], made)
    shard = min(made.rglob("*.h5"))
    _damaged(shard, shard, world.seed)
    return made


def _written(suffix: str, data: bytes) -> Callable[[World], Path]:
    def make(world: World) -> Path:
        path = world.new_file(suffix)
        path.write_bytes(data)
        return path

    return make


def _array_file(suffix: str, **arrays: Any) -> Callable[[World], Path]:
    def make(world: World) -> Path:
        path = world.new_file(suffix)
        with path.open("wb") as file:
            np.savez(file, **arrays)
        return path

    return make


def _linked(world: World) -> Path:
    path = world.new_file(".csv")
    path.symlink_to(path)
    return path


def _frame(_: World) -> Any:
    import pandas

    return pandas.DataFrame({"path": ["a.png"], "label": ["cat"]})


def _ridge(_: World) -> Any:
    from sklearn.linear_model import Ridge

    return Ridge()


def _half(_: World) -> Any:
    from torch import nn

    return nn.Linear(3, 2).half()


WORDS: dict[str, Callable[[World], Any]] = {
    "empty text": lambda _: "",
    "text": lambda _: "nothing-of-that-name",
    "markup": lambda _: "[red]\x1b[31m\u202e",
    "formula": lambda _: "=1+1",
    "option": lambda _: "--force",
    "dots": lambda _: "../..",
    "url": lambda _: "https://example.org/a.png",
    "long": lambda _: "x" * 5000,
    "glob": lambda _: "blocks.*:[",
    "colons": lambda _: "a:b:c(d=1)",
    "digits": lambda _: "-3",
    "missing": lambda world: world.new_file(".png"),
    "folder": lambda world: world["photos"],
    "empty folder": lambda world: (world.folder / "empty").mkdir(exist_ok=True) or world.folder / "empty",
    "text file": _written(".txt", b"no image, no table\n"),
    "empty image": _written(".jpg", b""),
    "damaged image": lambda w: _damaged(w["photos"] / "cats" / "cat-01.jpg", w.new_file(".jpg"), w.seed),
    "table": lambda world: world["labels.csv"],
    "table of bytes": _written(".csv", b"path,label\n\xff\xfe,a\n"),
    "table without lines": _written(".csv", b"path,label\n"),
    "table with NUL": _written(".csv", b"path,label\na\0b,c\n"),
    "table of others": _written(".csv", b"path,label,split\nno.png,a,train\n,,\n"),
    "empty table": _written(".csv", b""),
    "looped link": _linked,
    "head": lambda world: world["pets.fch"],
    "damaged head": lambda w: _damaged(w["pets.fch"], w.new_file(".fch"), w.seed),
    "store": lambda world: world["pets.fcache"],
    "damaged store": _damaged_store,
    "store with a damaged shard": _damaged_shard,
    "npz": _array_file(".npz", features=np.zeros((4, 3), np.float32), labels=np.array(["a", "b", "a", "b"])),
    "npz of none": _array_file(".npz", features=np.zeros((0, 3)), labels=np.zeros(0)),
    "npz of others": _array_file(".npz", X=np.zeros(3)),
    "npz of objects": _array_file(".npz", features=np.array([{}], object), labels=np.array(["a"])),
    "npz unlike": _array_file(".npz", features=np.full((4, 3), np.nan), labels=np.arange(5)),
    "no npz": _written(".npz", b"PK\x03\x04no"),
    "no hdf5": _written(".h5", b"\x89HDF\r\n\x1a\n" + bytes(100)),
    "no tar": _written(".tar", b"x" * 700),
    "device": lambda _: Path("/dev/null"),
    "no rights": lambda _: Path("/proc/1/mem"),
    "minus one": lambda _: -1,
    "nought": lambda _: 0,
    "two": lambda _: 2,
    "a half": lambda _: 0.5,
    "nan": lambda _: math.nan,
    "infinite": lambda _: math.inf,
    "large": lambda _: 2**70,
}
"""Those that a command line can say too."""

OBJECTS: dict[str, Callable[[World], Any]] = {
    "None": lambda _: None,
    "True": lambda _: True,
    "text with NUL": lambda _: "a\0b",
    "surrogate": lambda _: "caf\udce9.png",
    "bytes": lambda _: b"abc",
    "bytes of an image": lambda world: (world["photos"] / "cats" / "cat-00.jpg").read_bytes(),
    "BytesIO": lambda world: io.BytesIO((world["photos"] / "cats" / "cat-00.jpg").read_bytes()),
    "open file": lambda world: io.StringIO("path,label\n"),
    "PathLike": lambda world: Placed(world["photos"]),
    "list": lambda _: [],
    "list of None": lambda _: [None],
    "list of numbers": lambda _: [1, 2.5],
    "list of text": lambda _: ["", "pooled"],
    "nested list": lambda _: [["a"], ["b", "c"]],
    "tuple": lambda _: ("a", 1),
    "set": lambda _: {"a"},
    "dict": lambda _: {"a": "b"},
    "dict of numbers": lambda _: {1: 2},
    "generator": lambda _: (n for n in "ab"),
    "object": lambda _: object(),
    "class": lambda _: dict,
    "function": lambda _: len,
    "complex": lambda _: 1j,
    "numpy whole number": lambda _: np.int64(3),
    "numpy number": lambda _: np.float32(0.5),
    "DataFrame": _frame,
    "paths": lambda world: np.array([str(world["photos"] / "cats" / "cat-00.jpg")] * 2),
    "image": lambda _: Image.new("RGB", (40, 30), (9, 8, 7)),
    "image of a palette": lambda _: Image.new("P", (40, 30)),
    "image of CMYK": lambda _: Image.new("CMYK", (40, 30)),
    "image of floats": lambda _: Image.new("F", (40, 30)),
    "image of one pixel": lambda _: Image.new("1", (1, 1)),
    "one array": lambda _: np.zeros((30, 40, 3), np.uint8),
    "images": lambda _: np.zeros((2, 30, 40, 3), np.uint8),
    "images first channel": lambda _: np.zeros((2, 3, 30, 40), np.float32),
    "five axes": lambda _: np.zeros((1, 1, 1, 1, 1)),
    "no rows": lambda _: np.zeros((0, 8), np.float32),
    "no columns": lambda _: np.zeros((3, 0), np.float32),
    "nan array": lambda _: np.full((4, 8), np.nan, np.float32),
    "objects": lambda _: np.array([None, {}], object),
    "texts": lambda _: np.array(["a", "b"]),
    "dates": lambda _: np.array(["2026-01-01"], "datetime64[D]"),
    "Ridge": _ridge,
    "half module": _half,
    "open store": lambda world: fc.open(world["pets.fcache"]),
    "open head": lambda world: fc.load(world["pets.fch"]),
    "backbone": lambda world: fc.backbones.get(world.network),
    "recipe": lambda world: fc.backbones.get(world.network).recipe,
}
"""Those of Python alone."""


def names_for(door: Door) -> list[str]:
    """The odd values that can be given at a door."""
    return [*WORDS, *(() if door.is_command else OBJECTS)]


def odd(name: str, parameter: Parameter, world: World, seed: int) -> Any:
    """The value of that name; a number that would only ask for days of honest work is a smaller one.

    Args:
        name: of the value.
        parameter: what it is for.
        world: where files are made.
        seed: of the damage, where it is a damaged file.
    """
    world.seed = seed
    value = (WORDS | OBJECTS)[name](world)
    return 10 if name == "large" and parameter.name in _HONEST else value


_HONEST = {"epochs", "budget"}
