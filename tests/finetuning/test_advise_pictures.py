"""`advise` on pictures whose network is there: everything is tried, and what is advised can be done."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

import featcache as fc
from featcache.backbones import tiny_backbone
from featcache.cli import main
from featcache.finetuning.advise import Advice, advise
from featcache.finetuning.advise.figure import draw_advice
from featcache.finetuning.advise.words import command

from .advise_making import names_of, reason_of

pytestmark = pytest.mark.slow

LONG = 10_000.0


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory, draw_images: Callable[..., Path]) -> tuple[Path, Advice]:
    """Pictures with a network, all strategies tried, and the advice for them."""
    root = draw_images(tmp_path_factory.mktemp("images") / "photos", each=4)
    path = root.parent / "s.fcache"
    fc.extract(root, path, backbone=tiny_backbone(), progress=False)
    return path, advise(path, budget=LONG, backbone=tiny_backbone(), progress=False)


def test_everything_is_tried_where_there_is_time(tried: tuple[Path, Advice]) -> None:
    path, found = tried
    assert names_of(found) == ["softmax", "multilayer", "mlp", "knn", "tune body.1", "finetune"]
    # Every fold was tried, so all answered the same items.
    assert {measured["items"] for measured in found.strategies} == {found.items} == {6}
    assert "only its own code knows" in reason_of(found, "scratch")
    # What was extracted serves what is trained next.
    layers = fc.open(path).space().layers
    assert layers["body.0:mean_std"].rows == 8
    assert len(layers["body.0:none"].views) == 4
    assert [point["learned"] for point in found.learning_curve] == sorted(
        point["learned"] for point in found.learning_curve
    )
    for cost in found.costs:
        if cost["strategy"] != "scratch":
            assert cost["seconds"] is not None
            assert cost["seconds"] > 0
    assert fc.open(path).verify().ok


def test_json_is_complete_and_plain(tried: tuple[Path, Advice]) -> None:
    told = json.loads(json.dumps(tried[1].to_dict(), allow_nan=False))
    assert set(told) == set(Advice.__dataclass_fields__)
    strategies = {measured["name"] for measured in told["strategies"]}
    assert {told["recommendation"], told["runner_up"]} <= strategies
    assert strategies <= {cost["strategy"] for cost in told["costs"]}


def test_the_figure_is_drawn(tried: tuple[Path, Advice], tmp_path: Path) -> None:
    """Also with trials and with what was not tried; `test_advise` has what is refused."""
    draw_advice(tried[1], tmp_path / "advice.png")
    with Image.open(tmp_path / "advice.png") as picture:
        assert picture.format == "PNG"


def test_what_is_advised_can_be_done(
    tried: tuple[Path, Advice], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, found = tried
    monkeypatch.chdir(tmp_path)
    # No command has the network, so what needs it is a line of Python.
    given = {"source": "photos", "space": None, "labels": None, "seed": 3}
    expected = {"multilayer": "softmax", "tune body.1": "tune", "finetune": "finetune"}
    for name, head in expected.items():
        line = command(name, str(path), given, in_python=True)
        bundle = eval(line, {"fc": fc, "backbone": tiny_backbone()})
        assert bundle is None  # saved
        assert fc.load("HEAD.fch").head == head
        Path("HEAD.fch").unlink()
    # A head on what is stored needs no network.
    assert found.recommendation in ("softmax", "multilayer")
    assert main(shlex.split(command("softmax", str(path), given, in_python=True))[1:]) == 0
    assert fc.load("HEAD.fch").head == "softmax"
