"""`advise`: what is measured when there is time for it, and a recommendation that claims nothing unmeasured."""

from __future__ import annotations

import json
import math
import re
import shlex
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import featcache as fc
from featcache.cli import main
from featcache.core.errors import GridEdgeWarning, MissingVectorsError, UsageError
from featcache.core.progress import Silent
from featcache.finetuning.advise import Advice, advise
from featcache.finetuning.advise.budget import Budget, seconds_of
from featcache.finetuning.advise.figure import draw_advice
from featcache.finetuning.advise.frozen import measured_depth, measured_heads
from featcache.finetuning.advise.learning_items import learning_items
from featcache.finetuning.advise.outcome import compare
from featcache.finetuning.advise.rule import recommend
from featcache.finetuning.advise.situation import Situation
from featcache.finetuning.advise.words import reasons
from featcache.heads import resolve_head
from featcache.metrics.splits import folds
from featcache.training.dataset import FeatureDataset

from .advise_making import names_of, outcome, reason_of, store_of, synthetic

LONG = 10_000.0


@pytest.fixture(scope="module")
def early(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Advice]:
    """A store whose first block alone tells the classes apart, and the advice for it."""
    path = synthetic(tmp_path_factory.mktemp("early") / "s.fcache", 4, classes=4, early=7.0, last=0.0, views=(0.0, 0.0))
    return path, advise(path, budget=LONG, progress=False)


def test_what_an_early_block_alone_knows_asks_for_all_blocks(
    early: tuple[Path, Advice], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = early[1]
    assert found.recommendation == "multilayer"
    decided = next(c for c in found.comparisons if {c["a"], c["b"]} == {"multilayer", "softmax"})
    assert decided["better"] == "multilayer"
    # All comparisons with one strategy hold together at 95 %.
    expected = 1 - 0.05 / (len(found.strategies) - 1)
    assert [c["confidence"] for c in found.comparisons] == pytest.approx([expected] * len(found.comparisons))
    assert "better than the softmax on the frozen network's vectors by +" in found.reasons[0]
    assert found.depth is not None
    assert found.depth["best"] == "b.0:mean_std"
    # The 12 items cannot show that later blocks are no better.
    assert found.depth["similarity"] is None
    assert found.depth["similarity_at_least"] == pytest.approx(1 / 3)
    assert "on 12 items" in found.depth["similarity_unknown"]
    # Nobody has the network, so the blocks that are stored are named.
    words = shlex.split(found.command)[1:]
    assert words[-4:] == ["--layers", "b.0:mean_std", "b.1:mean_std", "pooled"]
    # Blocks have no views, so without this the command would miss those of the blocks.
    assert words[-6:-4] == ["--views", "first"]
    monkeypatch.chdir(tmp_path)
    assert main(words) == 0
    assert fc.load("HEAD.fch").report["views"] == ["0"]


def accuracy_by_hand(vectors: np.ndarray, y: np.ndarray) -> float:
    """Of softmax heads on (n, K, d) vectors of K views, by 3 folds; answers are for view 0."""
    n, k, d = vectors.shape
    right = np.zeros(n)
    for train_rows, test in folds(y, np.arange(n), 3, 0):
        X, groups = vectors[train_rows].reshape(-1, d), np.repeat(train_rows, k)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", GridEdgeWarning)
            head = resolve_head("softmax").make().fit(X, np.repeat(y[train_rows], k), groups=groups)
        right[test] = head.predict(vectors[test, 0]) == y[test]
    return float(right.mean())


def test_heads_on_pooled_learn_from_all_views_and_blocks_from_one(early: tuple[Path, Advice]) -> None:
    path, found = early
    parts = fc.open(path).holdout("images")
    X, y, items = fc.open(path).arrays(layers="pooled", views=True)
    learned = np.array([parts[item.sha256] == "train" for item in items])
    vectors, y = X[learned].reshape(12, 3, -1), y[learned].reshape(12, 3)[:, 0]
    assert len(found.views) == 3
    assert any("learned from all 3 stored views of each image, as train does" in text for text in found.reasons)
    all_views, first = accuracy_by_hand(vectors, y), accuracy_by_hand(vectors[:, :1], y)
    assert all_views != first
    assert found.strategies[0]["accuracy"]["value"] == pytest.approx(all_views)
    assert found.learning_curve[-1]["accuracy"]["value"] == pytest.approx(all_views)
    assert found.depth is not None
    assert found.depth["layers"][-1]["layer"] == "pooled"
    assert found.depth["layers"][-1]["accuracy"]["value"] == pytest.approx(first)


def without_times(advice: Advice) -> object:
    told = advice.to_dict()
    for kind in ("strategies", "learning_curve"):
        told[kind] = [{name: value for name, value in one.items() if name != "seconds"} for one in told[kind]]
    return {name: told[name] for name in told.keys() - {"store", "command", "seconds", "parts", "costs"}}


def test_the_hold_out_takes_no_part_and_the_seed_decides(tmp_path: Path) -> None:
    path = synthetic(tmp_path / "t.fcache", 20, early=5.0, last=0.0)
    found = advise(path, budget=1e-6, progress=False)
    parts = fc.open(path).holdout("images")
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
    # What was not tried is estimated.
    costs = {cost["strategy"]: cost for cost in found.costs}
    softmax = found.strategies[0]
    whole = softmax["seconds"] / softmax["fits"] * found.items / softmax["learned"]
    assert costs["softmax"]["seconds"] == costs["knn"]["seconds"] == pytest.approx(whole)
    assert costs["mlp"]["seconds"] > 0
    for name in ("multilayer", "knn", "mlp"):
        assert costs[name]["bytes"] == 0
        assert costs[name]["how"].startswith("estimated")


def test_what_the_budget_leaves_out_is_not_read(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    wide = rng.normal(size=(10, 200_000))
    path = store_of(
        tmp_path / "s.fcache", ["a", "b"] * 5, {"b.0:mean_std": wide, "b.1:mean_std": wide, "pooled": wide[:, :4]}
    )
    dataset = FeatureDataset.from_store(fc.open(path), "pooled")
    items = learning_items(dataset, np.arange(10), 0, Silent())
    layers = ["b.0:mean_std", "b.1:mean_std", "pooled"]
    at = Situation(
        path, dataset.recipe.fingerprint, "images", None, 0, None, "no network", items, Budget(1e-6), Silent(),
        Silent(), outcome("softmax", np.ones(10)), layers,
    )  # fmt: skip
    assert at.widths(layers) == [200_000, 200_000, 4]
    tracemalloc.start()
    try:
        assert measured_depth(at) is None
        assert measured_heads(at) == []
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [part.name for part in at.budget.parts] == ["accuracy by depth", "multilayer", "knn", "mlp, fold 1 of 5"]
    # The vectors of a block alone are 8 MB.
    assert most < 2e6


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
    said = next(line for line in shown.splitlines() if line.startswith("Not measured, as the budget is too small: "))
    assert "learning curve (" in said
    assert re.search(r"About --budget [1-9]\d*m would do\.$", said)
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


def test_the_figure_is_drawn(early: tuple[Path, Advice], tmp_path: Path) -> None:
    _, found = early
    draw_advice(found, tmp_path / "advice.png")
    with Image.open(tmp_path / "advice.png") as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 500
    with pytest.raises(UsageError, match="PNG"):
        draw_advice(found, tmp_path / "advice.jpg")
