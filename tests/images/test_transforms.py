"""The network's image equals that of timm and torchvision.

Pixel for pixel, or where the crop alone is computed, to two gray levels.
"""

from __future__ import annotations

import io
import resource
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from packaging.requirements import Requirement
from PIL import Image
from timm.data.config import resolve_data_config
from timm.data.transforms_factory import create_transform
from torchvision import transforms
from torchvision.models import ResNet50_Weights
from torchvision.transforms.functional import InterpolationMode

from featcache.backbones.activations import Axes
from featcache.backbones.families import timm as timm_family
from featcache.backbones.families import torchvision as torchvision_family
from featcache.backbones.network import Network
from featcache.core.recipe import PixelPath, StandardTransform
from featcache.images import transforms as transforms_module
from featcache.images.decode import decode_rgb
from featcache.images.transforms import IMPLEMENTATIONS, PixelTransform

HALF = (0.5, 0.5, 0.5)
LEVELS = {"pillow/1": 0, "pillow/2": 2}
BOTH = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
SIDE = st.one_of(st.integers(1, 8), st.integers(200, 300), st.integers(1, 700))


def picture(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(width * 1000 + height)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def ours(transform: StandardTransform, image: Image.Image) -> torch.Tensor:
    network = Network(torch.nn.Identity(), "", PixelPath(transform), Axes())
    return network.to_input(PixelTransform(transform)(image)[None])[0]


def assert_close(implementation: str, transform: StandardTransform, image: Image.Image, published: Any) -> None:
    made = ours(replace(transform, implementation=implementation), image)
    levels = (made - published(image)) * torch.tensor(transform.std)[:, None, None] * 255
    assert levels.abs().max() <= LEVELS[implementation] + 1e-3


def assert_levels(implementation: str, transform: StandardTransform, image: Image.Image, reference: Any) -> None:
    made = PixelTransform(replace(transform, implementation=implementation))(image)
    assert np.abs(made.astype(int) - np.asarray(reference(image))).max() <= LEVELS[implementation]


def test_every_implementation_has_its_bound() -> None:
    assert LEVELS.keys() == set(IMPLEMENTATIONS)
    assert StandardTransform((1,), (1, 1), "box", HALF, HALF).implementation == IMPLEMENTATIONS[0]


@pytest.fixture(scope="module")
def lite0() -> tuple[StandardTransform, transforms.Compose]:
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    published = create_transform(**resolve_data_config(model=model))  # type: ignore[no-untyped-call]
    config: Any = model.pretrained_cfg
    return timm_family.standard_transform("tf_efficientnet_lite0", config), published


# The published transforms take an image 1 pixel wide and 700 high to 256 × 179200: such sizes one by one.
@BOTH
@settings(max_examples=40, deadline=None)
@given(width=SIDE, height=SIDE)
@example(1, 1)
@example(1, 40)
@example(40, 1)
@example(640, 32)
@example(31, 633)
@example(257, 256)
@example(224, 224)
@example(300, 400)  # here Pillow resizes the rows of the whole image first, but the columns of the crop
@example(134, 243)
@example(720, 1280)
@example(300, 700)
def test_as_timm(
    implementation: str, lite0: tuple[StandardTransform, transforms.Compose], width: int, height: int
) -> None:
    if max(width, height) > 60 * min(width, height):
        width = height
    transform, published = lite0
    assert_close(implementation, transform, picture(width, height), published)


@BOTH
@settings(max_examples=40, deadline=None)
@given(width=SIDE, height=SIDE)
@example(1, 1)
@example(1, 40)
@example(40, 1)
@example(640, 32)
@example(233, 232)
@example(270, 405)
def test_as_torchvision(implementation: str, width: int, height: int) -> None:
    if max(width, height) > 60 * min(width, height):
        height = width
    published = ResNet50_Weights.IMAGENET1K_V2.transforms()
    transform = torchvision_family.standard_transform("resnet50", published)
    assert_close(implementation, transform, picture(width, height), published)


@BOTH
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"])
@pytest.mark.parametrize("size", [(90, 61), (20, 300), (150, 100), (100, 200), (1, 1)])
def test_two_numbers_leave_the_aspect_aside(implementation: str, interpolation: str, size: tuple[int, int]) -> None:
    transform = StandardTransform((48, 64), (40, 50), interpolation, HALF, HALF)
    reference = transforms.Compose(
        [transforms.Resize((48, 64), InterpolationMode(interpolation)), transforms.CenterCrop((40, 50))]
    )
    assert_levels(implementation, transform, picture(*size), reference)


@BOTH
@settings(max_examples=40, deadline=None)
@given(width=st.integers(1, 90), height=st.integers(1, 90), side=st.integers(5, 40), crop=st.tuples(SIDE, SIDE))
def test_crops_of_any_size_even_larger_than_the_image(
    implementation: str, width: int, height: int, side: int, crop: tuple[int, int]
) -> None:
    transform = StandardTransform((side,), crop, "bilinear", HALF, HALF)
    reference = transforms.Compose([transforms.Resize(side), transforms.CenterCrop(crop)])
    assert_levels(implementation, transform, picture(width, height), reference)


@BOTH
def test_an_image_smaller_than_the_crop_is_padded_with_black(implementation: str) -> None:
    transform = StandardTransform((10,), (13, 16), "bilinear", HALF, HALF, implementation)
    white = PixelTransform(transform)(Image.new("RGB", (10, 10), (255, 255, 255)))
    assert white.shape == (13, 16, 3)
    assert white[1:11, 3:13].min() == 255
    assert int(white.sum()) == 255 * 3 * 100


def whole_and_crop_only(
    monkeypatch: pytest.MonkeyPatch, transform: StandardTransform, image: Image.Image
) -> tuple[np.ndarray, np.ndarray]:
    """The image cut out of the whole resized one, and made without that, both by the older code."""
    made = PixelTransform(replace(transform, implementation="pillow/1"))
    monkeypatch.setattr(transforms_module, "MAX_RESIZED", 1 << 60)
    whole = made(image)
    monkeypatch.setattr(transforms_module, "MAX_RESIZED", 0)
    return whole.astype(int), made(image).astype(int)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos", "hamming"])
@pytest.mark.parametrize("short", [1, 2, 5, 50, 230, 250, 256, 257, 300, 417])
def test_the_crop_alone_is_the_crop_of_the_whole(
    monkeypatch: pytest.MonkeyPatch, interpolation: str, short: int
) -> None:
    transform = StandardTransform((256,), (224, 224), interpolation, HALF, HALF)
    long = 2500 if short >= 50 else 600  # the whole one has (256 / short)² times as many pixels
    for size in ((short, long), (long, short)):
        whole, crop_only = whole_and_crop_only(monkeypatch, transform, picture(*size))
        assert np.abs(whole - crop_only).max() <= 1, size


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(width=42, height=271, side=45, crop=(200, 4))  # sums that end in a half, along both axes
@given(width=SIDE, height=SIDE, side=st.integers(5, 60), crop=st.tuples(SIDE, SIDE))
def test_the_crop_alone_with_crops_of_any_size(
    monkeypatch: pytest.MonkeyPatch, width: int, height: int, side: int, crop: tuple[int, int]
) -> None:
    transform = StandardTransform((side,), crop, "bilinear", HALF, HALF)
    whole, crop_only = whole_and_crop_only(monkeypatch, transform, picture(width, height))
    assert np.abs(whole - crop_only).max() <= 1


@pytest.mark.parametrize(
    ("size", "side", "crop"),
    [((59, 227), 60, (24, 73)), ((63, 138), 55, (115, 6)), ((64, 117), 55, (92, 132)), ((131, 26), 41, (17, 110))],
)
def test_the_crop_alone_is_made_in_the_order_of_the_whole(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], side: int, crop: tuple[int, int]
) -> None:
    """Rows before columns or the other way round: of an image cut smaller Pillow would choose otherwise."""
    transform = StandardTransform((side,), crop, "bicubic", HALF, HALF)
    whole, crop_only = whole_and_crop_only(monkeypatch, transform, picture(*size))
    assert np.abs(whole - crop_only).max() <= 1


@pytest.mark.parametrize("interpolation", ["nearest", "box"])
def test_the_crop_alone_where_filters_jump_from_pixel_to_pixel(
    monkeypatch: pytest.MonkeyPatch, interpolation: str
) -> None:
    transform = StandardTransform((48, 64), (40, 50), interpolation, HALF, HALF)
    for size in ((71, 2003), (2003, 71), (13, 13)):
        whole, crop_only = whole_and_crop_only(monkeypatch, transform, picture(*size))
        assert (np.abs(whole - crop_only) <= 1).mean() > 0.95, size


@BOTH
@pytest.mark.parametrize("size", [(1, 60_000_000), (60_000_000, 1), (400, 440_000)])
def test_an_absurd_aspect_costs_no_memory(implementation: str, size: tuple[int, int]) -> None:
    """The whole resized image would have up to 3.9 million megapixels."""
    image = Image.new("RGB", size, (10, 200, 30))
    middle = (size[0] // 2, size[1] // 2)
    image.paste((250, 0, 0), (middle[0], middle[1], middle[0] + 400, middle[1] + 400))
    transform = StandardTransform((256,), (224, 224), "bicubic", HALF, HALF, implementation)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    got = PixelTransform(transform)(image)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000
    assert got.shape == (224, 224, 3)
    # The crop's last corner lies right of and below the middle, its first one does not; between them it is blurred.
    np.testing.assert_allclose(got[-1, -1].astype(int), (250, 0, 0), atol=12)
    np.testing.assert_allclose(got[0, 0].astype(int), (10, 200, 30), atol=12)


def test_what_this_version_cannot_do_is_refused() -> None:
    for transform in (
        StandardTransform((256,), (224, 224), "spline", HALF, HALF),
        StandardTransform((256,), (224, 224), "bicubic", HALF, HALF, implementation="other/7"),
    ):
        with pytest.raises(ValueError, match="no such way to resize"):
            PixelTransform(transform)


@BOTH
def test_the_whole_way_from_a_jpeg(implementation: str) -> None:
    out = io.BytesIO()
    picture(500, 375).save(out, "JPEG", quality=90)
    published = ResNet50_Weights.IMAGENET1K_V2.transforms()
    transform = torchvision_family.standard_transform("resnet50", published)
    image = decode_rgb(out.getvalue())
    np.testing.assert_array_equal(np.asarray(image), np.asarray(Image.open(out).convert("RGB")))
    assert_close(implementation, transform, image, published)


@pytest.mark.parametrize("size", [(9000, 40), (40, 9000), (8193, 300), (60, 3100)])
def test_long_images_whose_middle_is_cut_out_first(size: tuple[int, int]) -> None:
    """Far from the corner Pillow's single precision is too coarse for the place of the crop."""
    transform = StandardTransform((24,), (20, 22), "bicubic", HALF, HALF)
    reference = transforms.Compose([transforms.Resize(24, InterpolationMode.BICUBIC), transforms.CenterCrop((20, 22))])
    assert_levels("pillow/2", transform, picture(*size), reference)


def test_no_release_that_resizes_in_another_order_is_asked_for() -> None:
    """On 300 x 900 pixels of noise 11.3 and 13.0 differ by up to 21 levels; the recipe names both ``pillow/1``."""
    project = Path(__file__).parents[2] / "pyproject.toml"
    wanted = [Requirement(one) for one in tomllib.loads(project.read_text())["project"]["dependencies"]]
    (pillow,) = [one.specifier for one in wanted if one.name == "pillow"]
    assert Image.__version__ in pillow
    assert not list(pillow.filter(["11.0.0", "11.3.0", "12.3.0"]))
