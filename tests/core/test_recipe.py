"""The fingerprint: what changes it, what does not, and that it never drifts."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featcache.core.errors import StoreFormatError
from featcache.core.recipe import CustomTransform, PixelPath, Recipe, StandardTransform, weights_digest

finite = st.floats(allow_nan=False, allow_infinity=False)
three = st.tuples(finite, finite, finite)
sizes = st.integers(1, 2000)
transforms = st.one_of(
    st.builds(
        StandardTransform,
        resize=st.one_of(st.tuples(sizes), st.tuples(sizes, sizes)),
        crop=st.tuples(sizes, sizes),
        interpolation=st.sampled_from(["bilinear", "bicubic", "lanczos"]),
        mean=three,
        std=three,
        implementation=st.sampled_from(["pillow/1", "pillow/2"]),
    ),
    st.builds(CustomTransform, name=st.text(), version=st.text()),
)
pixel_paths = st.builds(
    PixelPath,
    transform=transforms,
    decoder=st.text(),
    exif_orientation=st.text(),
    alpha=st.text(),
    sixteen_bit=st.text(),
    chip=st.none() | st.text(),
    scaled=st.none() | st.text(),
)
recipes = st.builds(
    Recipe,
    backbone=st.text(),
    weights=st.text(),
    pixels=pixel_paths,
    precision=st.sampled_from(["float32", "bfloat16"]),
    runtime=st.none() | st.text(),
    detection=st.none() | st.text(),
)

LITE0_LIKE = Recipe(
    "bundled:efficientnet_lite0",
    "0" * 64,
    PixelPath(StandardTransform((256,), (224, 224), "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))),
)
BEFORE = dataclasses.replace(
    LITE0_LIKE,
    pixels=PixelPath(dataclasses.replace(LITE0_LIKE.pixels.transform, implementation="pillow/1"), "pillow/1"),
)
"""The same by the code that was the default before."""


def test_golden_fingerprints() -> None:
    """These never change: every stored vector hangs on them."""
    assert BEFORE.to_json() == (
        '{"backbone":"bundled:efficientnet_lite0","format":1,"pixels":{"alpha":"on white","decoder":"pillow/1",'
        '"exif_orientation":"applied","sixteen_bit":"scaled to 8","transform":{"crop":[224,224],'
        '"implementation":"pillow/1","interpolation":"bicubic","mean":[0.5,0.5,0.5],"resize":[256],'
        '"std":[0.5,0.5,0.5]}},"precision":"float32","weights":"' + "0" * 64 + '"}'
    )
    assert BEFORE.fingerprint == "8b191f0c26f4b48c6ef89fe06a19fd581de7868aacf8b887a91eaed78039f564"
    # Another decoder and another way to resize are another recipe; nothing else of it changed.
    assert LITE0_LIKE.differences(BEFORE) == [
        ("pixels.decoder", "simplejpeg/1", "pillow/1"),
        ("pixels.transform.implementation", "pillow/2", "pillow/1"),
    ]
    assert LITE0_LIKE.fingerprint == "bd271d56ced9ab202e5416e305837771af8700747dce2e24e9d14ec6a9740b5c"
    scaled = dataclasses.replace(LITE0_LIKE, pixels=dataclasses.replace(LITE0_LIKE.pixels, scaled="dct/1"))
    assert scaled.fingerprint == "0d8ca25068013d1c1ef79e557e62ac5219119067e33ac09525e7288aae1c04bc"
    pixels = PixelPath(CustomTransform("mine", "3"), "pillow/1")
    custom = Recipe("module:net", "f" * 64, pixels, "bfloat16", "torch", "a" * 64)
    assert custom.fingerprint == "131c15e8de8ed8e61e68562f02e9e94a8d33360ba11bdeefc3618e5d9ba3673f"


@given(recipes)
def test_a_recipe_reads_back_as_itself(recipe: Recipe) -> None:
    back = Recipe.from_json(recipe.to_json())
    assert back == recipe
    assert back.fingerprint == recipe.fingerprint


@given(recipes, recipes)
def test_equal_fingerprints_mean_equal_recipes(one: Recipe, other: Recipe) -> None:
    assert (one.fingerprint == other.fingerprint) == (one == other)
    assert (one.differences(other) == []) == (one == other)


def fields_of(value: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for field in dataclasses.fields(value):
        inner = getattr(value, field.name)
        if dataclasses.is_dataclass(inner):
            found += fields_of(inner, (*path, field.name))
        else:
            found.append((*path, field.name))
    return found


def changed(value: Any, path: tuple[str, ...], data: st.DataObject) -> Any:
    name, *rest = path
    old = getattr(value, name)
    if rest:
        return dataclasses.replace(value, **{name: changed(old, tuple(rest), data)})
    kinds: dict[str, st.SearchStrategy[Any]] = {
        "resize": st.one_of(st.tuples(sizes), st.tuples(sizes, sizes)),
        "crop": st.tuples(sizes, sizes),
        "mean": three,
        "std": three,
        "format": sizes,
    }
    return dataclasses.replace(value, **{name: data.draw(kinds.get(name, st.text()).filter(lambda v: v != old))})


@given(recipes, st.data())
def test_any_change_of_any_field_changes_the_fingerprint(recipe: Recipe, data: st.DataObject) -> None:
    for path in fields_of(recipe):
        other = changed(recipe, path, data)
        assert other.fingerprint != recipe.fingerprint, path
        assert ".".join(path) in [name for name, _, _ in recipe.differences(other)]


def test_the_fields_are_those_that_change_vectors() -> None:
    """Layer, view, storage dtype, device, batch size, path and time cannot enter."""
    assert {".".join(path) for path in fields_of(LITE0_LIKE)} == {
        "backbone", "weights", "precision", "runtime", "detection", "format",
        "pixels.decoder", "pixels.exif_orientation", "pixels.alpha", "pixels.sixteen_bit",
        "pixels.scaled", "pixels.chip",
        "pixels.transform.resize", "pixels.transform.crop", "pixels.transform.interpolation",
        "pixels.transform.mean", "pixels.transform.std", "pixels.transform.implementation",
    }  # fmt: skip


@given(recipes)
def test_the_order_of_the_fields_does_not_matter(recipe: Recipe) -> None:
    def turned(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: turned(value[name]) for name in reversed(value)}
        return value

    text = json.dumps(turned(json.loads(recipe.to_json())), indent=2)
    assert Recipe.from_json(text).fingerprint == recipe.fingerprint


def test_whole_numbers_and_floats_of_one_value_are_one_recipe() -> None:
    whole = StandardTransform((256,), (224, 224), "bicubic", (0, 0, 0), (1, 1, 1))
    floats = StandardTransform((256,), (224, 224), "bicubic", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    prints = [dataclasses.replace(LITE0_LIKE, pixels=PixelPath(t)).fingerprint for t in (whole, floats)]
    assert prints[0] == prints[1]


def test_another_process_sees_the_same_fingerprint() -> None:
    code = (
        "from featcache.core.recipe import *; import sys;"
        "print(Recipe.from_json(sys.argv[1]).fingerprint); assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, LITE0_LIKE.to_json()],
        capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7"},
    )  # fmt: skip
    assert done.stdout.strip() == LITE0_LIKE.fingerprint


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", '{"format": 2}', '{"format": true}',
        LITE0_LIKE.to_json().replace('"format":1', '"format":2'),
        LITE0_LIKE.to_json().replace('"precision":"float32",', ""),
        LITE0_LIKE.to_json().replace('"precision"', '"new":1,"precision"'),
        LITE0_LIKE.to_json().replace("[0.5,0.5,0.5]", "[0.5,0.5]"),
        LITE0_LIKE.to_json().replace('"bicubic"', "3"),
    ],
)  # fmt: skip
def test_what_is_no_recipe_of_this_format_is_refused(text: str) -> None:
    with pytest.raises(StoreFormatError):
        Recipe.from_json(text)


tensors = st.dictionaries(st.text(max_size=5), st.binary(max_size=20), min_size=1, max_size=5)


@given(tensors, st.randoms())
def test_the_weights_digest_ignores_order_alone(named: dict[str, bytes], random: Any) -> None:
    listed = [(name, (len(data),), "uint8", data) for name, data in named.items()]
    shuffled = random.sample(listed, len(listed))
    assert weights_digest(listed) == weights_digest(shuffled)
    name, shape, dtype, data = listed[0]
    for other in (
        (name + "x", shape, dtype, data), (name, (*shape, 1), dtype, data),
        (name, shape, "int8", data), (name, shape, dtype, data + b"x"),
    ):  # fmt: skip
        if other[0] in named and other[0] != name:
            continue
        assert weights_digest([other, *listed[1:]]) != weights_digest(listed)


def test_two_tensors_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="two tensors"):
        weights_digest([("a", (1,), "uint8", b"x"), ("a", (1,), "uint8", b"y")])
