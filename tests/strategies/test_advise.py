"""`advise`: what is measured when there is time for it, and a recommendation that claims nothing unmeasured."""

from __future__ import annotations

import json
import math
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.main import get_command

import featcache as fc
from featcache.backbones import tiny_backbone
from featcache.cli import main
from featcache.cli.advising import seconds_of
from featcache.cli.app import app
from featcache.errors import MissingVectorsError, UsageError
from featcache.store import holdout
from featcache.strategies.advise import Advice, advise
from featcache.strategies.advise.figure import draw_advice
from featcache.strategies.advise.outcome import compare
from featcache.strategies.advise.rule import recommend
from featcache.strategies.advise.words import reasons

from .advise_making import outcome, store_of, synthetic

pytestmark = pytest.mark.usefixtures("one_thread")

LONG = 10_000.0


@pytest.fixture(scope="module")
def early(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Advice]:
    """A store whose first block alone tells the classes apart, and the advice for it."""
    path = synthetic(tmp_path_factory.mktemp("early") / "s.fcache", 20, early=5.0, last=0.0)
    return path, advise(path, budget=LONG, progress=False)


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory, draw_pictures: Callable[..., Path]) -> tuple[Path, Advice]:
    """Pictures with a network, all strategies tried, and the advice for them."""
    root = draw_pictures(tmp_path_factory.mktemp("pictures") / "photos", each=5)
    path = root.parent / "s.fcache"
    fc.extract(root, path, backbone=tiny_backbone(), progress=False)
    return path, advise(path, budget=LONG, backbone=tiny_backbone(), progress=False)


def reason_of(advice: Advice, name: str) -> str:
    return next(part["reason"] for part in advice.parts if part["name"] == name and part["reason"])


def names_of(advice: Advice) -> list[str]:
    return [measured["name"] for measured in advice.strategies]


def test_what_an_early_block_alone_knows_asks_for_all_blocks(early: tuple[Path, Advice]) -> None:
    found = early[1]
    assert found.recommendation == "multilayer"
    decided = next(c for c in found.comparisons if {c["a"], c["b"]} == {"multilayer", "softmax"})
    assert decided["better"] == "multilayer"
    # All comparisons with one strategy hold together at 95 %.
    expected = 1 - 0.05 / (len(found.strategies) - 1)
    assert {c["confidence"] for c in found.comparisons} == {pytest.approx(expected)}
    assert "better than the softmax on the frozen network's vectors by +" in found.reasons[0]
    assert found.depth is not None
    assert found.depth["best"] == "b.0:mean_std"
    # The 32 items cannot show that later blocks are no better.
    assert found.depth["similarity"] is None
    assert found.depth["similarity_at_least"] == pytest.approx(1 / 3)
    assert "on 32 items" in found.depth["similarity_unknown"]
    # Nobody has the network, so the blocks that are stored are named.
    assert shlex.split(found.command)[-4:] == ["--layers", "b.0:mean_std", "b.1:mean_std", "pooled"]
    words = shlex.split(found.command)[1:]
    get_command(app).commands["train"].make_context("train", words[1:])  # type: ignore[attr-defined]


def without_times(advice: Advice) -> object:
    told = advice.to_dict()
    for kind in ("strategies", "learning_curve"):
        told[kind] = [{name: value for name, value in one.items() if name != "seconds"} for one in told[kind]]
    return {name: told[name] for name in told.keys() - {"store", "command", "seconds", "parts", "costs"}}


def test_the_hold_out_takes_no_part_and_the_seed_decides(early: tuple[Path, Advice], tmp_path: Path) -> None:
    path = early[0]
    found = advise(path, budget=1e-6, progress=False)
    parts = holdout.kept(fc.open(path).catalogue, "pictures")
    assert found.held_out == list(parts.values()).count("test") == 8
    assert {measured["items"] for measured in found.strategies} == {32}
    # Other vectors of the held-out items, and nothing changes.
    rng = np.random.default_rng(1)
    opened = fc.open(path)
    vectors, y = {}, []
    for name in opened.space().layers:
        X, labels, items = opened.arrays(layers=name)
        spoiled = np.array([parts[item.sha256] == "test" for item in items])
        X[spoiled] = 100 * rng.normal(size=(spoiled.sum(), X.shape[1]))
        vectors[name], y = X, labels.tolist()
    again = advise(store_of(tmp_path / "s.fcache", y, vectors), budget=1e-6, progress=False)
    assert without_times(again) == without_times(found)


def test_what_cannot_be_tried_says_why(early: tuple[Path, Advice]) -> None:
    _, found = early
    for kind in ("tune", "finetune", "scratch"):
        assert "test:net" in reason_of(found, kind)
        cost = next(cost for cost in found.costs if cost["strategy"] == kind)
        assert cost["seconds"] is None


def test_the_smallest_budget_leaves_one_part(early: tuple[Path, Advice]) -> None:
    found = advise(early[0], budget=1e-6, progress=False)
    assert [part["name"] for part in found.parts if part["seconds"] is not None] == ["softmax"]
    assert names_of(found) == ["softmax"]
    assert found.recommendation == "softmax"
    assert found.runner_up is None
    assert found.depth is None
    assert "nothing else was measured" in found.reasons[0]
    assert "0:00 of 0:00 are left" in reason_of(found, "learning curve")


def test_few_items_are_left_out_one_by_one(tmp_path: Path) -> None:
    found = advise(synthetic(tmp_path / "s.fcache", 4, early=1.0, last=1.0), budget=1e-6, progress=False)
    assert found.folds == 3  # a fold for each item of a class that is not held out
    assert found.recommendation == "softmax"
    wide = compare(outcome("knn", np.eye(6)[0]), outcome("softmax", np.eye(6)[1]), np.arange(6))
    assert wide is not None
    told = reasons(recommend(["softmax"], lambda a, b: None), ["softmax", "knn"], [wide], None, None, {})
    assert told[1].startswith("Little is known from 6 independent items: on 6 items a difference has to be about")


@pytest.mark.parametrize("budget", [0.0, -1.0, math.nan, math.inf])
def test_a_budget_is_above_nothing(tmp_path: Path, budget: float) -> None:
    with pytest.raises(UsageError, match="above 0"):
        advise(tmp_path, budget=budget, progress=False)


def test_everything_is_tried_where_there_is_time(tried: tuple[Path, Advice]) -> None:
    path, found = tried
    assert names_of(found) == ["softmax", "multilayer", "mlp", "tune body.1", "finetune", "knn"]
    # Every fold was tried, so all answered the same items.
    assert {measured["items"] for measured in found.strategies} == {found.items} == {8}
    assert "only its own code knows" in reason_of(found, "scratch")
    # What was extracted serves what is trained next.
    layers = fc.open(path).space().layers
    assert layers["body.0:mean_std"].rows == 10
    assert len(layers["body.0:none"].views) == 4
    assert [point["learned"] for point in found.learning_curve] == sorted(
        point["learned"] for point in found.learning_curve
    )
    for cost in found.costs:
        if cost["strategy"] != "scratch":
            assert cost["seconds"] is not None
            assert cost["seconds"] > 0
    assert fc.open(path).verify().ok


def test_missing_images_leave_parts_out(draw_pictures: Callable[..., Path], tmp_path: Path) -> None:
    root = draw_pictures(tmp_path / "photos", each=3)
    fc.extract(root, tmp_path / "s.fcache", backbone=tiny_backbone(), progress=False)
    shutil.rmtree(root)
    found = advise(tmp_path / "s.fcache", budget=LONG, backbone=tiny_backbone(), progress=False)
    assert names_of(found) == ["softmax", "mlp", "knn"]
    assert "where the store knows it" in reason_of(found, "multilayer")
    assert "where the store knows" in reason_of(found, "finetune")
    assert "tune body.1" not in names_of(found)
    assert found.depth is None


def test_json_is_complete_and_plain(tried: tuple[Path, Advice]) -> None:
    told = json.loads(json.dumps(tried[1].to_dict(), allow_nan=False))
    assert set(told) == set(Advice.__dataclass_fields__)
    strategies = {measured["name"] for measured in told["strategies"]}
    assert {told["recommendation"], told["runner_up"]} <= strategies
    assert strategies <= {cost["strategy"] for cost in told["costs"]}


@pytest.mark.parametrize("which", ["early", "tried"])
def test_the_figure_is_drawn(which: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    _, found = request.getfixturevalue(which)
    draw_advice(found, tmp_path / "advice.png")
    with Image.open(tmp_path / "advice.png") as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 500
    with pytest.raises(UsageError, match="PNG"):
        draw_advice(found, tmp_path / "advice.jpg")


def test_the_command_line_says_the_same(
    early: tuple[Path, Advice], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, figure = early[0], tmp_path / "advice.png"
    expected = advise(path, budget=0.001, progress=False)
    assert main(["advise", str(path), "--budget", "0.001s", "--figure", str(figure), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["strategies"][0]["accuracy"] == expected.strategies[0]["accuracy"]
    assert told["reasons"] == expected.reasons
    assert told["figure"] == str(figure)
    assert figure.exists()
    assert main(["advise", str(path), "--budget", "0.001s"]) == 0
    shown = capsys.readouterr().out
    assert "Recommended: softmax" in shown
    assert "Not measured: learning curve: it would take about" in shown
    assert f"Next:  {expected.command}" in shown
    assert main(["advise", str(path), "--budget", "soon"]) == 2


def test_budgets_in_words() -> None:
    assert [seconds_of(text) for text in ("90", "90s", "10m", "1.5h", " 2 min ")] == [90, 90, 600, 5400, 120]
    for text in ("", "0", "-1m", "m", "1d", "nan", "1e3"):
        with pytest.raises(UsageError, match="budget"):
            seconds_of(text)


def test_a_store_without_pooled_is_told_apart(tmp_path: Path) -> None:
    path = store_of(tmp_path / "s.fcache", ["a", "b"] * 5, {"b.0:mean_std": np.zeros((10, 2))})
    with pytest.raises((UsageError, MissingVectorsError), match="pooled"):
        advise(path, progress=False)
