"""The spaces of one backbone are told apart by what differs in their recipes, and by nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from featcache.store.spaces import Space, distinctions, named
from tests.store.making import recipe

if TYPE_CHECKING:
    from featcache.core.recipe import Recipe


def spaces(*recipes: Recipe) -> list[Space]:
    return [Space(one.fingerprint, one, {}) for one in recipes]


PLAIN = recipe()


@pytest.mark.parametrize(
    ("others", "words"),
    [
        ([], [""]),
        ([recipe("test:another")], ["", ""]),
        ([replace(PLAIN, pixels=replace(PLAIN.pixels, scaled="dct/1"))], ["without scaled", "scaled dct/1"]),
        (
            [replace(PLAIN, precision="bfloat16", runtime="openvino")],
            ["precision float32", "precision bfloat16, runtime openvino"],
        ),
        ([replace(PLAIN, weights="ab" * 32)], [f"weights {PLAIN.weights[:12]}", "weights abababababab"]),
        (
            [replace(PLAIN, pixels=replace(PLAIN.pixels, transform=replace(PLAIN.pixels.transform, crop=(24, 40))))],
            ["crop 32 × 32", "crop 24 × 40"],
        ),
        (
            [
                replace(PLAIN, pixels=replace(PLAIN.pixels, decoder="pillow/1")),
                replace(PLAIN, pixels=replace(PLAIN.pixels, scaled="dct/1")),
            ],
            ["decoder simplejpeg/1", "decoder pillow/1", "decoder simplejpeg/1, scaled dct/1"],
        ),
    ],
)
def test_what_differs_is_named(others: list[Recipe], words: list[str]) -> None:
    assert distinctions(spaces(PLAIN, *others)) == words


def test_a_list_in_a_sentence() -> None:
    other = replace(PLAIN, precision="bfloat16", runtime="torch")
    assert named(spaces(PLAIN, other)) == (
        f"{PLAIN.fingerprint[:12]} (test:net, precision float32); "
        f"{other.fingerprint[:12]} (test:net, precision bfloat16, runtime torch)"
    )
    assert named(spaces(PLAIN)) == f"{PLAIN.fingerprint[:12]} (test:net)"
