"""Views are random by (seed, image, index) alone, and are what their policy says."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from featcache.core.recipe import StandardTransform
from featcache.images.augmentation import Augmentation, AugmentedView, views_beside

TRANSFORM = StandardTransform((36,), (28, 32), "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
STILL = Augmentation(flip=0.0, brightness=0.0, contrast=0.0, saturation=0.0)


def sha256(number: int) -> bytes:
    return hashlib.sha256(b"%d" % number).digest()


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    smooth = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(smooth).resize((width, height), Image.Resampling.BICUBIC)


def numbers(seed: int, image: bytes, index: int) -> list[float]:
    """The random numbers as docs/format.md describes them, by Python's integers."""
    stream = hashlib.shake_256(f"featcache view {seed} {image.hex()} {index}".encode()).digest(26 * 8)
    return [(int.from_bytes(stream[i : i + 8], "little") >> 11) / 2**53 for i in range(0, 26 * 8, 8)]


def reference(image: Image.Image, policy: Augmentation, seed: int, key: bytes, index: int) -> np.ndarray:
    """The view step by step, the colors in float64 and rounded at the end; for images of a usual shape."""
    drawn = numbers(seed, key, index)
    for area, ratio in zip(drawn[:10], drawn[10:20], strict=True):
        wanted = image.width * image.height * np.interp(area, [0, 1], policy.scale)
        aspect = math.exp(np.interp(ratio, [0, 1], np.log(policy.ratio)))
        w, h = round(math.sqrt(wanted * aspect)), round(math.sqrt(wanted / aspect))
        if w <= image.width and h <= image.height:
            break
    left, top = math.floor(drawn[20] * (image.width - w + 1)), math.floor(drawn[21] * (image.height - h + 1))
    made = image.resize((32, 28), Image.Resampling.BICUBIC, box=(left, top, left + w, top + h))
    x = np.asarray(made, dtype=np.float64)
    if drawn[22] < policy.flip:
        x = x[:, ::-1]
    weights = np.array([0.299, 0.587, 0.114])
    brightness, contrast, saturation = (
        1 + change * (2 * u - 1)
        for change, u in zip((policy.brightness, policy.contrast, policy.saturation), drawn[23:], strict=True)
    )
    x = brightness * x
    mean = (x @ weights).mean()
    x = mean + contrast * (x - mean)
    grey = (x @ weights)[..., None]
    x = grey + saturation * (x - grey)
    return np.clip(np.rint(x), 0, 255)


@pytest.mark.parametrize("size", [(64, 48), (48, 64), (60, 60)])
def test_a_view_is_what_the_policy_says_step_by_step(size: tuple[int, int]) -> None:
    image = noise(*size)
    for number in range(20):
        view = AugmentedView(Augmentation(), 3, 1 + number % 4)
        made = view.pixels(image, TRANSFORM, sha256(number)).astype(int)
        expected = reference(image, view.policy, 3, sha256(number), view.index)
        # Pillow's gray is rounded to a level first.
        assert np.abs(made - expected).max() <= 1, number


def test_the_same_image_gives_the_same_views_whatever_came_before() -> None:
    image, views = noise(64, 48), views_beside(4, 7)
    first = [view.pixels(image, TRANSFORM, sha256(1)) for view in views]
    for view in reversed(views):
        view.pixels(noise(30, 90), TRANSFORM, sha256(2))
    again = [view.pixels(image, TRANSFORM, sha256(1)) for view in reversed(views)][::-1]
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)
    different = [*first, *(view.pixels(image, TRANSFORM, sha256(2)) for view in views)]
    different += [view.pixels(image, TRANSFORM, sha256(1)) for view in views_beside(4, 8)]
    assert len({picture.tobytes() for picture in different}) == 9


def test_a_whole_image_without_changes_is_the_image_resized() -> None:
    whole = replace(STILL, scale=(1.0, 1.0), ratio=(1.0, 1.0))
    image = noise(50, 50)
    made = AugmentedView(whole, 0, 1).pixels(image, TRANSFORM, sha256(0))
    np.testing.assert_array_equal(made, np.asarray(image.resize((32, 28), Image.Resampling.BICUBIC)))


def test_half_of_the_views_are_mirrored() -> None:
    ramp = Image.fromarray(np.repeat(np.arange(0, 240, 4, dtype=np.uint8)[None, :, None], 60, 0).repeat(3, 2))
    view = AugmentedView(replace(STILL, flip=0.5), 0, 1)
    mirrored = sum(
        int(picture[0, 0, 0]) > int(picture[0, -1, 0])
        for picture in (view.pixels(ramp, TRANSFORM, sha256(i)) for i in range(400))
    )
    assert 160 < mirrored < 240  # four standard deviations


def test_areas_and_shapes_keep_to_the_policy() -> None:
    """In an image whose red is the column and whose green is the row, a view tells where it was cut out."""
    columns, rows = np.meshgrid(np.arange(250), np.arange(250))
    image = Image.fromarray(np.stack([columns, rows, 0 * rows], axis=2).astype(np.uint8))
    transform = replace(TRANSFORM, interpolation="nearest", crop=(500, 500))
    shares, ratios = [], []
    for i in range(150):
        made = AugmentedView(STILL, 0, 1).pixels(image, transform, sha256(i)).astype(int)
        w, h = (np.ptp(made[..., axis]) + 1 for axis in (0, 1))
        shares.append(w * h / 250**2)
        ratios.append(w / h)
    assert 0.39 < min(shares) < 0.45
    assert 0.95 < max(shares) < 1.01
    assert 0.74 < min(ratios) < 0.82
    assert 1.22 < max(ratios) < 1.35
    # Areas are uniform, but for the large ones that do not fit and are drawn again.
    assert 0.6 < np.mean(shares) < 0.75


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 90),
    st.integers(1, 90),
    st.integers(0, 2**70),
    st.integers(1, 10**6),
    st.binary(min_size=32, max_size=32),
)
def test_any_image_has_views(width: int, height: int, seed: int, index: int, key: bytes) -> None:
    made = AugmentedView(Augmentation(), seed, index).pixels(
        Image.new("RGB", (width, height), (9, 99, 199)), TRANSFORM, key
    )
    assert made.shape == (28, 32, 3)
    assert made.dtype == np.uint8
    # One color stays one, wherever it was cut out.
    assert (np.ptp(made.reshape(-1, 3), axis=0) == 0).all()


@pytest.mark.parametrize("size", [(400, 3), (3, 400)])
def test_of_a_strip_the_middle_is_taken(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size)
    image.paste((200, 200, 200), (size[0] // 2 - 6, size[1] // 2 - 6, size[0] // 2 + 6, size[1] // 2 + 6))
    made = AugmentedView(replace(STILL, scale=(1.0, 1.0)), 0, 1).pixels(image, TRANSFORM, sha256(1))
    assert made.min() > 190


def test_of_an_image_with_a_margin_the_margin_is_never_seen() -> None:
    framed = Image.new("RGB", (75, 64), (255, 0, 255))
    framed.paste((0, 255, 0), (9, 13, 69, 53))
    transform = replace(TRANSFORM, interpolation="nearest")
    for i in range(50):
        made = AugmentedView(STILL, 0, 1).pixels(framed, transform, sha256(i), box=(9.0, 13.0, 69.0, 53.0))
        assert (made == (0, 255, 0)).all()
        assert (AugmentedView(STILL, 0, 1).pixels(framed, transform, sha256(i)) != made).any()


def test_names_tell_policy_seed_and_index() -> None:
    policy = Augmentation()
    text = json.dumps(asdict(policy), sort_keys=True, separators=(",", ":"))
    assert policy.to_json() == text
    assert policy.digest == hashlib.sha256(text.encode()).hexdigest()
    # A name that changes would leave the views of all stores behind.
    assert [view.name for view in views_beside(3, 5)] == ["8ce690ef423a3ad5-5-1", "8ce690ef423a3ad5-5-2"]
    assert views_beside(1, 5) == []
    assert {replace(policy, flip=0.25).digest, replace(policy, implementation="pillow/2").digest}.isdisjoint(
        {policy.digest}
    )
