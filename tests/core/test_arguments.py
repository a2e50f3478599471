"""Arguments are checked by the annotations that stand in the code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PosixPath

import numpy as np
import pytest

import featcache as fc
from featcache.core.arguments import check, check_fields, checked
from featcache.core.errors import UsageError
from tests.doors import table

GOOD = [
    ("int", 3), ("int", np.int64(3)), ("float", 2), ("float", np.float32(0.5)), ("str", ""), ("bool", np.True_),
    ("str | Path", "a"), ("str | Path", PosixPath("a")), ("str | None", None), ("Sequence[str]", ["a", "b"]),
    ("Sequence[str]", np.array(["a"])), ("tuple[int, ...]", (1, 2)), ("Callable[[int | str], None] | None", len),
    ("Mapping[str, int]", {}),
]  # fmt: skip
BAD = [
    ("int", True, "n is a whole number, not True."),
    ("int", "3", "n is a whole number, not '3'."),
    ("float | None", "x", "n is a number or None, not 'x'."),
    ("str", None, "n is text, not None."),
    ("str | Path", b"a", "n is text or a path, not b'a'."),
    ("str | Path", "a\0b", "none has a NUL character in it"),
    ("Sequence[str]", "ab", "n is a list of texts, not 'ab'."),
    ("Sequence[str]", ["a", 1], "n is a list of texts, not a list of str."),
    ("np.ndarray", [1], "n is an array, not a list of int."),
    ("Bundle | str", np.zeros((2, 3)), "n is a Bundle or text, not a ndarray of shape (2, 3)."),
    ("Sequence[Any] | None", "softmax", "n is a list or None, not 'softmax'."),
    ("str", int, "n is text, not a int itself."),
    ("str", "x" * 500 and 1j, "n is text, not a complex."),
]  # fmt: skip


@pytest.mark.parametrize(("annotation", "value"), GOOD)
def test_what_fits_passes(annotation, value):
    check("n", value, annotation)


@pytest.mark.parametrize(("annotation", "value", "message"), BAD)
def test_what_does_not_fit_is_named(annotation, value, message):
    with pytest.raises(UsageError) as refused:
        check("n", value, annotation)
    assert message in str(refused.value)


def test_a_wrong_signature_stays_a_type_error():
    @checked
    def draw(n: int, *, seed: int = 0) -> int:
        return n + seed

    assert draw(1, seed=2) == 3
    with pytest.raises(TypeError, match=r"^draw\(\) has no argument 'sed'\. Did you mean 'seed'\?$"):
        draw(1, sed=2)
    with pytest.raises(TypeError, match=r"^draw\(\) has no argument 'colour'\. It has: n, seed\.$"):
        draw(1, colour=2)
    with pytest.raises(TypeError, match="multiple values for argument 'n'"):
        draw(1, n=2)
    with pytest.raises(UsageError, match="seed is a whole number"):
        draw(1, seed="2")


def test_a_seed_is_not_below_nought():
    @checked
    def draw(seed: int = 0) -> int:
        return seed

    assert type(draw(seed=np.int64(3))) is int
    with pytest.raises(UsageError, match="seed is a whole number from 0 on, not -1"):
        draw(-1)


def test_an_array_given_for_a_list_arrives_as_one():
    @checked
    def draw(names: Sequence[str] | None, X: np.ndarray) -> tuple[object, object]:
        return names, X

    names, X = draw(np.array(["a", "b"]), np.zeros(2))
    assert names == ["a", "b"]
    assert type(names[0]) is str
    assert isinstance(X, np.ndarray)


def test_the_fields_of_a_dataclass():
    @dataclass
    class Box:
        path: str | Path
        n: int = 0

        def __post_init__(self) -> None:
            check_fields(self)

    with pytest.raises(UsageError, match="n is a whole number"):
        Box("a", None)


@pytest.mark.parametrize(
    "door",
    [door for door in table() if door.function is not None and door.parameters and not isinstance(door.function, type)],
    ids=str,
)
def test_every_public_function_is_checked(door):
    """Functions that the protocol `Extractor` only describes, and `load`, which checks itself, apart."""
    if door.name.startswith("fc.backbones.Extractor.") or door.name in {"fc.load", "fc.Bundle.load"}:
        return
    if door.name == "fc.CachedEmbedder.fit_transform":  # scikit-learn's own
        return
    assert hasattr(door.function, "__wrapped__")


@pytest.mark.parametrize(
    "door",
    [door for door in table() if hasattr(door.function, "__wrapped__") and door.parameters],
    ids=str,
)
def test_an_unknown_keyword_names_the_public_function_and_the_nearest_argument(door):
    if door.name == "fc.CachedEmbedder.transform":  # wrapped by scikit-learn
        return
    wrong = f"{door.parameters[-1].name}z"
    instance = [None] if "." in door.function.__qualname__ else []
    with pytest.raises(
        TypeError, match=rf"{door.name.rpartition('.')[2]}\(\) has no argument '{wrong}'\. Did you mean '"
    ):
        door.function(*instance, **{wrong: 0})


def test_arguments_of_the_selection_are_known():
    with pytest.raises(TypeError, match=r"^train\(\) has no argument 'heads'\. Did you mean 'head'\?$"):
        fc.train("pets.fcache", heads="ridge")
    with pytest.raises(TypeError, match=r"^evaluate\(\) has no argument 'splits'\. Did you mean 'split'\?$"):
        fc.evaluate("pets.fch", "pets.fcache", splits="test")
