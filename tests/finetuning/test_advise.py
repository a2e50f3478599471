"""`advise`: what is measured when there is time for it, and advice that can be followed."""

from __future__ import annotations

import json
import math
import re
import shlex
import shutil
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import featcache as fc
from featcache.backbones import tiny_backbone
from featcache.cli import main
from featcache.core.errors import GridEdgeWarning, MissingVectorsError, UsageError
from featcache.core.progress import Budget, Deadline, OutOfTimeError, Silent, seconds_of
from featcache.finetuning.advise import Advice, advise, draw_advice
from featcache.finetuning.advise.choose import ALL_BLOCKS, SCRATCH
from featcache.finetuning.advise.report import command
from featcache.finetuning.advise.trials import try_depth, try_heads
from featcache.heads import resolve_head
from featcache.metrics.near_duplicates import NOTHING
from featcache.metrics.splits import folds
from featcache.training.activations import StoredItems, extract_known
from featcache.training.dataset import FeatureDataset
from featcache.training.leakage import folds_without_leakage
from featcache.training.selection import Selection
from tests.training.sides import sides_of

from .advise_making import names_of, outcome, reason_of, store_of, synthetic

pytestmark = pytest.mark.slow

LONG = 10_000.0


@pytest.fixture(scope="module")
def early(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Advice]:
    """A store whose first block alone tells the classes apart, and the advice for it."""
    path = synthetic(tmp_path_factory.mktemp("early") / "s.fcache", 4, classes=4, early=7.0, last=0.0, views=(0.0, 0.0))
    return path, advise(path, budget=LONG, progress=False)


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory, draw_images: Callable[..., Path]) -> tuple[Path, Advice]:
    """Images with a network, all strategies tried, and the advice for them."""
    root = draw_images(tmp_path_factory.mktemp("images") / "photos", each=4)
    path = root.parent / "s.fcache"
    fc.extract(root, path, backbone=tiny_backbone(), progress=False)
    return path, advise(path, budget=LONG, backbone=tiny_backbone(), progress=False)


def test_what_an_early_block_alone_knows_asks_for_all_blocks(
    early: tuple[Path, Advice], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = early[1]
    assert found.recommendation == ALL_BLOCKS
    decided = next(c for c in found.comparisons if {c["a"], c["b"]} == {ALL_BLOCKS, "softmax"})
    assert decided["better"] == ALL_BLOCKS
    assert found.reasons[0].startswith("The stack on all blocks: better than the linear probe by +")
    assert found.depth is not None
    assert found.depth["best"] == "b.0:mean_std"
    # The 12 items cannot show that later blocks are no better.
    assert found.depth["similarity"] is None
    assert found.depth["similarity_at_least"] == pytest.approx(1 / 3)
    assert "on 12 items" in found.depth["similarity_unknown"]
    # What cannot be tried says why.
    for kind in ("finetune --from", "finetune", SCRATCH):
        assert "test:net" in reason_of(found, kind)
        assert next(cost for cost in found.costs if cost["strategy"] == kind)["seconds"] is None
    # Nobody has the network, so the blocks that are stored are named; they have no views, as pooled has.
    words = shlex.split(found.command)[1:]
    assert words[-6:] == ["--views", "first", "--layers", "b.0:mean_std", "b.1:mean_std", "pooled"]
    monkeypatch.chdir(tmp_path)
    assert main(words) == 0
    assert fc.load("HEAD.fch").report["views"] == ["0"]


def accuracy_by_hand(vectors: np.ndarray, y: np.ndarray) -> float:
    """Of softmax heads on (n, K, d) vectors of K views, by 3 folds; answers are for view 0."""
    n, k, d = vectors.shape
    right = np.zeros(n)
    for train, test in folds(y, np.arange(n), 3, 0):
        X, groups = vectors[train].reshape(-1, d), np.repeat(train, k)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", GridEdgeWarning)
            head = resolve_head("softmax").make().fit(X, np.repeat(y[train], k), groups=groups)
        right[test] = head.predict(vectors[test, 0]) == y[test]
    return float(right.mean())


def test_heads_on_pooled_learn_from_all_views_and_blocks_from_one(early: tuple[Path, Advice]) -> None:
    path, found = early
    parts = sides_of(path, "images")
    X, y, items = fc.open(path).arrays(layers="pooled", views=True)
    trained = np.array([parts[item.sha256] == "train" for item in items])
    vectors, y = X[trained].reshape(12, 3, -1), y[trained].reshape(12, 3)[:, 0]
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
    return {name: told[name] for name in told.keys() - {"store", "command", "floor", "seconds", "parts", "costs"}}


def test_the_hold_out_takes_no_part_and_the_seed_decides(tmp_path: Path) -> None:
    path = synthetic(tmp_path / "t.fcache", 20, early=5.0, last=0.0)
    found = advise(path, budget=1e-6, progress=False)
    parts = sides_of(path, "images")
    assert found.held_out == list(parts.values()).count("test") == 7  # of 40, each with a chance of 0.2
    assert found.items == 33
    assert [measured["fits"] for measured in found.strategies] == [1]  # one fold is answered in any case
    # Other vectors of the held-out items, and nothing changes.
    rng = np.random.default_rng(1)
    vectors, y = {}, []
    for name in fc.open(path).space().layers:
        X, labels, items = fc.open(path).arrays(layers=name)
        spoiled = np.array([parts[item.sha256] == "test" for item in items])
        X[spoiled] = 100 * rng.normal(size=(spoiled.sum(), X.shape[1]))
        vectors[name], y = X, labels.tolist()
    again = advise(store_of(tmp_path / "s.fcache", y, vectors), budget=1e-6, progress=False)
    assert without_times(again) == without_times(found)


def test_the_smallest_budget_leaves_one_part(early: tuple[Path, Advice]) -> None:
    found = advise(early[0], budget=1e-6, progress=False)
    assert [part["name"] for part in found.parts if part["seconds"] is not None] == ["softmax, fold 1"]
    assert names_of(found) == ["softmax"] == [found.recommendation]
    assert found.runner_up is found.depth is None
    assert "nothing else was measured" in found.reasons[0]
    assert "0:00 of 0:00 are left" in reason_of(found, "learning curve")
    assert found.budget < found.floor <= found.seconds
    # A network that nothing could use is not loaded.
    assert "to load and use it would take" in reason_of(found, "what needs the network")
    assert reason_of(found, "finetune") == "the network was not loaded, as the budget is too small"
    # What was not tried is estimated.
    costs = {cost["strategy"]: cost for cost in found.costs}
    softmax = found.strategies[0]
    whole = softmax["seconds"] / softmax["fits"] * found.items / softmax["learned"]
    assert costs["softmax"]["seconds"] == costs["knn"]["seconds"] == pytest.approx(whole)
    for name in (ALL_BLOCKS, "knn", "mlp"):
        assert costs[name]["seconds"] > 0
        assert (costs[name]["bytes"], costs[name]["how"]) == (0, "estimated")


def test_what_the_budget_leaves_out_is_not_read(tmp_path: Path) -> None:
    wide = np.random.default_rng(0).normal(size=(10, 200_000))
    layers = {"b.0:mean_std": wide, "b.1:mean_std": wide, "pooled": wide[:, :4]}
    path, budget = store_of(tmp_path / "s.fcache", ["a", "b"] * 5, layers), Budget(1e-6)
    dataset = FeatureDataset.from_store(fc.open(path), "pooled")
    items, drawn, _, _ = folds_without_leakage(dataset, np.arange(10), NOTHING, 5, 0)
    stored, whole = (
        StoredItems(path, items, Selection("images"), 0, None, "no network", lambda: None),
        outcome("softmax", np.ones(10)),
    )
    assert stored.select(list(layers)).widths == [200_000, 200_000, 4]
    tracemalloc.start()
    try:
        assert try_depth(stored, list(layers), drawn, whole, budget, Silent()) == (None, None)
        assert set(try_heads(stored, list(layers), drawn, whole, budget, Silent())[0]) == {"softmax"}
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [part["name"] for part in budget.parts] == [
        "accuracy by depth", *(f"{name}, fold 1 of 5" for name in (ALL_BLOCKS, "knn", "mlp")),
    ]  # fmt: skip
    # The vectors of a block alone are 8 MB.
    assert most < 2e6


def test_a_class_of_one_item_and_too_few_classes_are_refused(tmp_path: Path) -> None:
    X = np.random.default_rng(0).normal(size=(10, 4))
    path = store_of(tmp_path / "s.fcache", ["a"] * 8 + ["b"] * 2, {"pooled": X})
    with pytest.raises(UsageError, match="'b' has one independent image among the 8"):
        advise(path, progress=False)
    with pytest.raises(UsageError, match="one class"):
        advise(store_of(tmp_path / "t.fcache", ["a"] * 10, {"pooled": X}), progress=False)
    with pytest.raises((UsageError, MissingVectorsError), match="pooled"):
        advise(store_of(tmp_path / "u.fcache", ["a", "b"] * 5, {"b.0:mean_std": X}), progress=False)


def test_a_budget_is_above_nothing(tmp_path: Path) -> None:
    for budget in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(UsageError, match="above 0"):
            advise(tmp_path, budget=budget, progress=False)
    assert [seconds_of(text) for text in ("90", "90s", "10m", "1.5h", " 2 min ")] == [90, 90, 600, 5400, 120]
    for text in ("", "0", "-1m", "m", "1d", "nan", "1e3"):
        with pytest.raises(UsageError, match="above 0"):
            seconds_of(text)


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
    assert re.search(r"--budget [1-9]\d*m would be enough\.$", said)
    assert f"Next:  {expected.command}" in shown
    assert "so no smaller budget can be kept" in shown
    assert "Not measured: finetune --from, finetune, finetune --init scratch: the network was not loaded" in shown
    assert main(["advise", str(path), "--budget", "soon"]) == 2


def test_everything_is_tried_where_there_is_time(tried: tuple[Path, Advice], tmp_path: Path) -> None:
    path, found = tried
    assert names_of(found) == ["softmax", ALL_BLOCKS, "mlp", "knn", "finetune --from body.1", "finetune"]
    # Every fold was tried, so all answered the same items.
    assert {measured["items"] for measured in found.strategies} == {found.items} == {6}
    assert "only the code of" in reason_of(found, SCRATCH)
    # What was extracted serves what is trained next.
    layers = fc.open(path).space().layers
    assert layers["body.0:mean_std"].rows == 8
    assert len(layers["body.0:none"].views) == 4
    learned = [point["learned"] for point in found.learning_curve]
    assert learned == sorted(learned)
    assert all(cost["seconds"] > 0 for cost in found.costs if cost["strategy"] != SCRATCH)
    assert fc.open(path).verify().ok
    # All of it is plain JSON.
    told = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert set(told) == set(Advice.__dataclass_fields__)
    assert {told["recommendation"], told["runner_up"]} <= set(names_of(found))
    assert set(names_of(found)) <= {cost["strategy"] for cost in told["costs"]}
    draw_advice(found, tmp_path / "advice.png")
    with Image.open(tmp_path / "advice.png") as image:
        assert image.format == "PNG"
        assert min(image.size) > 500
    with pytest.raises(UsageError, match=r"advice\.png"):
        draw_advice(found, tmp_path / "advice.jpg")


def test_what_is_advised_can_be_done(
    tried: tuple[Path, Advice], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, found = tried
    monkeypatch.chdir(tmp_path)
    # No command has the network, so what needs it is a line of Python.
    given = {"source": "photos", "space": None, "labels": None, "seed": 3}
    for name in ("finetune --from body.1", "finetune"):
        line = command(name, str(path), given, in_python=True)
        assert eval(line, {"fc": fc, "backbone": tiny_backbone()}) is None  # saved
        assert fc.load("HEAD.fch").head == "finetune"
        Path("HEAD.fch").unlink()
    # A head on what is stored needs no network.
    assert found.recommendation in ("softmax", ALL_BLOCKS)
    for name in ("softmax", ALL_BLOCKS):
        layers = ["body.0:mean_std", "body.1:mean_std", "pooled"]
        assert main(shlex.split(command(name, str(path), given, layers, in_python=True))[1:]) == 0
        assert fc.load("HEAD.fch").head == name.partition(" ")[0]
        Path("HEAD.fch").unlink()


def test_commands() -> None:
    given = {"source": None, "seed": 3}
    told = {name: command(name, "s.fcache", given) for name in ("knn", ALL_BLOCKS, "finetune --from b.1", SCRATCH)}
    assert told == {
        "knn": "featcache train s.fcache -o HEAD.fch --head knn --seed 3 --layers pooled",
        ALL_BLOCKS: "featcache train s.fcache -o HEAD.fch --head stack --seed 3 --layers all-blocks",
        "finetune --from b.1": "featcache finetune s.fcache -o HEAD.fch --from b.1 --yes --seed 3",
        SCRATCH: "featcache finetune s.fcache -o HEAD.fch --init scratch --seed 3",
    }


def test_an_extraction_that_takes_longer_than_was_thought_ends(
    draw_images: Callable[..., Path], tmp_path: Path
) -> None:
    root, store = draw_images(tmp_path / "photos", each=3), tmp_path / "s.fcache"
    fc.extract(root, store, backbone=tiny_backbone(), progress=False)
    left = iter([1.0] * 10)  # of the check of the images and some of them
    with pytest.raises(OutOfTimeError, match="ended as the budget was spent"):
        extract_known(
            fc.open(store), tiny_backbone(), ["body.0:mean_std"], progress=Deadline(lambda: next(left, 0.0), Silent())
        )
    assert fc.open(store).verify().ok
    extract_known(fc.open(store), tiny_backbone(), ["body.0:mean_std"], progress=Silent())
    assert fc.open(store).space().layers["body.0:mean_std"].rows == 6


def test_missing_images_leave_parts_out(draw_images: Callable[..., Path], tmp_path: Path) -> None:
    root = draw_images(tmp_path / "photos", each=3)
    fc.extract(root, tmp_path / "s.fcache", backbone=tiny_backbone(), progress=False)
    shutil.rmtree(root)
    found = advise(tmp_path / "s.fcache", budget=LONG, backbone=tiny_backbone(), progress=False)
    assert names_of(found) == ["softmax", "mlp", "knn"]
    assert "where the store knows it" in reason_of(found, ALL_BLOCKS)
    assert "where the store knows" in reason_of(found, "speed of finetune")
    assert found.depth is None
