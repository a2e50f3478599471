"""Weights: digested by content, checked against the network, read without running code."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from featcache.backbones import get
from featcache.backbones.families import timm as timm_family
from featcache.backbones.weights import digest_of, load_into, read_weights
from featcache.core.errors import UnknownNameError, UsageError, WeightsError
from tests.backbones.making import randomised


def small() -> nn.Sequential:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 7))
    randomised(module)
    return module


@pytest.fixture(scope="module")
def resnet() -> dict[str, torch.Tensor]:
    return dict(randomised(timm.create_model("resnet18", pretrained=False)).state_dict())


def digest(path: Path) -> str:
    return get("timm:resnet18", path).recipe.weights


def test_the_digest_is_of_the_tensors_not_of_the_file(tmp_path: Path, resnet: dict[str, torch.Tensor]) -> None:
    torch.save(resnet, tmp_path / "a.pth")
    save_file(resnet, tmp_path / "a.safetensors")
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in reversed(resnet.items())}}, tmp_path / "b.pt")
    first = digest(tmp_path / "a.pth")
    assert digest(tmp_path / "a.safetensors") == first
    assert digest(tmp_path / "b.pt") == first
    changed = {key: value.clone() for key, value in resnet.items()}
    changed["layer1.0.conv1.weight"][0, 0, 0, 0] += 1e-6
    torch.save(changed, tmp_path / "c.pth")
    assert digest(tmp_path / "c.pth") != first


def test_the_classifier_takes_no_part(tmp_path: Path, resnet: dict[str, torch.Tensor]) -> None:
    torch.save(resnet, tmp_path / "a.pth")
    torch.save(resnet | {"fc.weight": torch.ones(7, 512), "fc.bias": torch.ones(7)}, tmp_path / "seven.pth")
    torch.save({k: v for k, v in resnet.items() if not k.startswith("fc.")}, tmp_path / "none.pth")
    assert digest(tmp_path / "a.pth") == digest(tmp_path / "seven.pth") == digest(tmp_path / "none.pth")


def test_the_digest_sees_names_shapes_types_and_statistics() -> None:
    first = digest_of(small())
    assert digest_of(small()) == first
    assert digest_of(nn.Sequential(small())) != first
    for change in range(2):
        module = small()
        if change == 0:
            module[1].running_mean[2] += 1
        else:
            module.double()
        assert digest_of(module) != first
    moved = small().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert digest_of(moved) == first


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"0.weight": torch.ones(4, 3, 5, 5)}, r"1 of another shape \(0\.weight \(4, 3, 5, 5\) for \(4, 3, 3, 3\)\)"),
        ({"0.bias": None}, r"1 missing \(0\.bias\)"),
        ({"extra": torch.ones(2)}, r"1 unexpected \(extra\)"),
        (
            {"0.bias": None, "1.bias": None, "1.weight": None, "1.running_mean": None, "new": torch.ones(1)},
            r"4 missing \(0\.bias, 1\.weight, 1\.bias …\); 1 unexpected \(new\)",
        ),
        ({"3.weight": torch.ones(2, 4)}, "of another shape"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, torch.Tensor | None], message: str) -> None:
    module = small()
    before = digest_of(module)
    tensors = {k: v for k, v in (dict(small().state_dict()) | change).items() if v is not None}
    with pytest.raises(WeightsError, match=f"The weights in here do not fit this network: .*{message}"):
        load_into(module, tensors, "here")
    assert digest_of(module) == before


def test_a_classifier_of_another_size_is_accepted_where_it_is_one() -> None:
    module = small()
    tensors = dict(small().state_dict()) | {"0.bias": torch.full((4,), 5.0), "3.weight": torch.ones(2, 4)}
    load_into(module, tensors, "here", classifier="3")
    assert module[0].bias.tolist() == [5.0] * 4
    assert module[3].weight.shape == (7, 4)


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path(self.target),)  # type: ignore[return-value]


def test_a_pickle_is_not_run(tmp_path: Path) -> None:
    torch.save({"weight": Payload(tmp_path / "ran")}, tmp_path / "evil.pth")
    torch.save(small(), tmp_path / "module.pth")
    for name in ("evil.pth", "module.pth"):
        with pytest.raises(WeightsError, match=r"cannot be read as weights.*save the state dict alone"):
            read_weights(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_files_that_hold_no_weights(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="There is no file"):
        read_weights(tmp_path / "none.pth")
    for name in ("a.pth", "a.safetensors"):
        for content in (b"", b"-1", b"(", b"no weights at all", b"\x80\x02garbage", b"PK\x03\x04garbage"):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(WeightsError, match="cannot be read"):
                read_weights(tmp_path / name)
    for held in ([1, 2], {}, {"a": 3}, torch.ones(2)):
        torch.save(held, tmp_path / "b.pth")
        with pytest.raises(WeightsError, match="does not hold a state dict"):
            read_weights(tmp_path / "b.pth")
    torch.save(dict(small().state_dict()), tmp_path / "cut.pth")
    whole = (tmp_path / "cut.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match="cannot be read"):
        read_weights(tmp_path / "cut.pth")


def test_a_file_in_the_folder_of_weights_needs_no_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resnet: dict[str, torch.Tensor]
) -> None:
    monkeypatch.setenv("FEATCACHE_CACHE", str(tmp_path))
    timm_family.weights_folder().mkdir()
    path = timm_family.weights_folder() / "timm_resnet18.a1_in1k.safetensors"
    save_file(resnet, path)
    backbone = get("timm:resnet18.a1_in1k")
    assert backbone.network.weights_file == path
    assert backbone.recipe.weights == digest(path)


@pytest.mark.parametrize(
    ("name", "file", "address"),
    [
        ("timm:resnet18.a1_in1k", "model.safetensors", "https://huggingface.co/timm/resnet18.a1_in1k/"),
        ("torchvision:resnet18", "resnet18-f37072fd.pth", "https://download.pytorch.org/models/"),
    ],
)
def test_a_download_that_is_impossible_says_what_to_put_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, file: str, address: str
) -> None:
    for variable in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")  # nothing answers there
    monkeypatch.setenv("FEATCACHE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    if name.startswith("timm:") and timm_family._cached_file(timm.get_pretrained_cfg("resnet18.a1_in1k").to_dict()):
        pytest.skip("these weights were downloaded before")
    with pytest.raises(WeightsError, match=r"cannot be downloaded.*--weights FILE") as caught:
        _ = get(name).recipe
    folder = tmp_path / ("cache/weights" if name.startswith("timm:") else "torch/hub/checkpoints")
    for part in (name, file, address, str(folder)):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("bundled:efficientnet_lite", "efficientnet_lite0"),
        ("timm:resnet81", "resnet18"),
        ("torchvision:resnet5", "resnet50"),
        ("torchvision:resnet50.IMAGENET1K_V3", "IMAGENET1K_V2"),
        ("bundle:efficientnet_lite0", "bundled:efficientnet_lite0"),
        ("efficientnet_lite0", "bundled:efficientnet_lite0"),
    ],
)
def test_unknown_names_offer_near_ones(name: str, near: str) -> None:
    with pytest.raises(UnknownNameError, match=f"Did you mean .*'{near}'"):
        _ = get(name).recipe


def test_names_that_can_be_no_backbone(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="from_module"):
        get("module:mine")
    with pytest.raises(UsageError, match="no file of weights"):
        get("timm:resnet18", tmp_path / "none.pth")
