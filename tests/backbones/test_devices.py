"""A device that is not here is refused at once, before anything is loaded or made."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import featcache as fc
from featcache.backbones import Backbone, get
from featcache.backbones.compute import check_device
from featcache.cli import main
from featcache.core.errors import UnknownNameError, UsageError
from featcache.core.recipe import StandardTransform

NOT_HERE = [
    ("gpu", UnknownNameError, "are cuda"),
    ("cdua", UnknownNameError, "Did you mean 'cuda'"),
    ("", UnknownNameError, "No device is called ''"),
    ("cuda:99", UsageError, "finds no cuda device|There is no device"),
    ("cuda:x", UsageError, "a number from 0 on"),
    ("cuda:", UsageError, "a number from 0 on"),
    ("cpu:1", UsageError, "has no number"),
]


@pytest.mark.parametrize(("device", "error", "message"), NOT_HERE)
def test_a_device_that_is_not_here(device: str, error: type[UsageError], message: str) -> None:
    with pytest.raises(error, match=message):
        get("bundled:efficientnet_lite0", device=device)
    transform = StandardTransform((8,), (8, 8), "bilinear", (0.5,) * 3, (0.5,) * 3)
    with pytest.raises(error, match=message):
        Backbone.from_module(nn.Flatten(), transform=transform, name="mine", device=device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, so a cuda device is rightly taken")
@pytest.mark.parametrize("options", [{}, {"precision": "bfloat16"}])
def test_no_gpu_at_all(options: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="finds no cuda device on this machine"):
        get("bundled:efficientnet_lite0", device="cuda", **options)


def test_the_processor_is_here() -> None:
    check_device("cpu")
    assert get("bundled:efficientnet_lite0", device="cpu").device == "cpu"


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "cpu:1"])
def test_extract_ends_with_2_and_makes_no_store(
    photos: Path, tmp_path: Path, device: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["extract", str(photos), "-o", str(tmp_path / "s.fcache"), "--device", device]) == 2
    said = capsys.readouterr().err
    assert "unexpected" not in said
    assert said.count("error: ") == 1
    with pytest.raises(UsageError):
        fc.backbones.get("bundled:efficientnet_lite0", device=device)
    assert not (tmp_path / "s.fcache").exists()
