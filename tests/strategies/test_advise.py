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
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import binomtest
from typer.main import get_command

import featcache as fc
from featcache.backbones import tiny_backbone
from featcache.cli import main
from featcache.cli.advising import seconds_of
from featcache.cli.app import app
from featcache.errors import MissingVectorsError, UsageError
from featcache.labelled_vectors import LabelledVectors
from featcache.progress import Silent
from featcache.store import StoreWriter, holdout
from featcache.store.source_records import Record, SourceRecords
from featcache.strategies.advise import Advice, advise
from featcache.strategies.advise.budget import Budget
from featcache.strategies.advise.depth import by_depth, probed_blocks
from featcache.strategies.advise.figure import draw_advice
from featcache.strategies.advise.learning_items import learning_items, shared
from featcache.strategies.advise.outcome import Outcome, compare, sign_test
from featcache.strategies.advise.probes import probe
from featcache.strategies.advise.rule import confidence_for, in_order, recommend
from featcache.strategies.advise.words import reasons

from ..store.making import keys, recipe

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = ("softmax", "multilayer", "mlp", "tune b.1", "tune b.0", "finetune", "scratch", "knn")
LONG = 10_000.0


def outcome(name: str, right: np.ndarray, rows: np.ndarray | None = None) -> Outcome:
    rows = np.arange(len(right)) if rows is None else rows
    return Outcome(name, rows, np.asarray(right, float), np.zeros(len(right)), 1.0, 1.0, 1)


def store_of(path: Path, y: list[str], vectors: dict[str, np.ndarray]) -> Path:
    """A store with these vectors, whose network and images nobody has."""
    contents = keys(len(y))
    with StoreWriter(path) as writer:
        space = writer.space(recipe())
        for position, name in enumerate(vectors):
            space.declare(name, "0", position, "float32")
        space.append(contents, {(name, "0"): X.astype(np.float32) for name, X in vectors.items()})
        space.seal()
        SourceRecords(writer.catalogue, "pictures", "/nowhere").save(
            [
                Record(f"{i:05}.jpg", key, label, None, None, 1, 2, 3, 4, 5)
                for i, (key, label) in enumerate(zip(contents, y, strict=True))
            ]
        )
    return path


def synthetic(path: Path, each: int, *, early: float, last: float, d: int = 6) -> Path:
    """Two classes of *each* items, whose means are so many deviations apart in an early block and in ``pooled``."""
    rng = np.random.default_rng(0)
    y = np.arange(2 * each) % 2

    def cloud(apart: float) -> np.ndarray:
        return np.hstack([(apart * y)[:, None], np.zeros((len(y), d - 1))]) + rng.normal(size=(len(y), d))

    vectors = {"b.0:mean_std": cloud(early), "b.1:mean_std": cloud((early + last) / 2), "pooled": cloud(last)}
    return store_of(path, ["ab"[number] for number in y], vectors)


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


def test_equal_strategies_leave_the_softmax_and_no_claim(tmp_path: Path) -> None:
    path = synthetic(tmp_path / "s.fcache", 30, early=2.5, last=2.5)
    outcomes = {}
    for name, layers, head in (
        ("softmax", "pooled", "softmax"),
        ("multilayer", "b.0:mean_std+b.1:mean_std+pooled", "ridge"),
        ("knn", "pooled", "centroid"),
    ):
        examples = LabelledVectors.from_store(fc.open(path), layers)
        items = learning_items(examples, np.arange(60), 0)
        outcomes[name] = probe(name, items.examples, items.folds, head, 0, Silent())
    units = items.examples.units
    choice = recommend(list(outcomes), lambda a, b: compare(outcomes[a], outcomes[b], units))
    assert choice.name == "softmax"
    assert choice.over is None
    told = reasons(choice, list(outcomes), [], None, None, {})
    assert "none of the 2 others is better beyond chance" in told[0]


def test_what_an_early_block_alone_knows_asks_for_all_blocks(early: tuple[Path, Advice]) -> None:
    found = early[1]
    assert found.recommendation == "multilayer"
    decided = next(c for c in found.comparisons if {c["a"], c["b"]} == {"multilayer", "softmax"})
    assert decided["better"] == "multilayer"
    assert "better than the softmax on the frozen network's vectors by +" in found.reasons[0]
    assert found.depth is not None
    assert found.depth["best"] == "b.0:mean_std"
    assert found.depth["similarity"] == pytest.approx(1 / 3)
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


@given(st.lists(st.tuples(st.floats(0, 50), st.floats(0, 50)), max_size=8), st.floats(1, 100))
def test_no_part_begins_whose_estimate_does_not_fit(parts: list[tuple[float, float]], seconds: float) -> None:
    now = 0.0
    budget = Budget(seconds, lambda: now)
    for number, (estimate, takes) in enumerate(parts):
        left = seconds - now

        def work(takes: float = takes) -> bool:
            nonlocal now
            now += takes
            return True

        done = budget.run(str(number), estimate, work)
        assert (done is True) == (estimate <= max(0.0, left))
        assert (budget.parts[-1].reason is None) == (done is True)
        assert budget.parts[-1].seconds == (pytest.approx(takes) if done else None)
    assert len(budget.parts) == len(parts)


def test_few_items_are_left_out_one_by_one(tmp_path: Path) -> None:
    found = advise(synthetic(tmp_path / "s.fcache", 4, early=1.0, last=1.0), budget=1e-6, progress=False)
    assert found.folds == 3  # a fold for each item of a class that is not held out
    assert found.recommendation == "softmax"
    wide = compare(outcome("knn", np.eye(6)[0]), outcome("softmax", np.eye(6)[1]), np.arange(6))
    assert wide is not None
    told = reasons(recommend(["softmax"], lambda a, b: None), ["softmax", "knn"], [wide], None, None, {})
    assert told[1].startswith("Little is known from 6 independent items: on 6 items a difference of less than about")


def test_a_class_of_one_item_is_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = store_of(tmp_path / "s.fcache", ["a"] * 8 + ["b"] * 2, {"pooled": rng.normal(size=(10, 4))})
    with pytest.raises(UsageError, match="'b' has one independent image alone among the 7"):
        advise(path, progress=False)
    path = store_of(tmp_path / "t.fcache", ["a"] * 8, {"pooled": rng.normal(size=(8, 4))})
    with pytest.raises(UsageError, match="one class"):
        advise(path, progress=False)


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


def answered() -> st.SearchStrategy[list[Outcome]]:
    """Outcomes of some strategies, the softmax among them, each on some of 40 items and more or less often right."""

    def made(kinds: list[str], seed: int, shares: list[float], parts: list[int]) -> list[Outcome]:
        rng = np.random.default_rng(seed)
        hard = rng.random(40)
        found = []
        for kind, share, part in zip(["softmax", *kinds], shares, parts, strict=False):
            rows = np.arange(40) if kind == "softmax" else np.flatnonzero(np.arange(40) % 3 <= part)
            found.append(outcome(kind, (0.8 * hard + 0.2 * rng.random(40) < share)[rows], rows))
        return found

    return st.builds(
        made,
        st.lists(st.sampled_from(NAMES[1:]), unique=True, max_size=5),
        st.integers(0, 999),
        st.lists(st.floats(0, 1), min_size=6, max_size=6),
        st.lists(st.integers(0, 2), min_size=6, max_size=6),
    )


@settings(deadline=None, max_examples=15)
@given(answered(), st.integers(1, 3))
def test_the_rule_claims_only_what_its_intervals_show(outcomes: list[Outcome], together: int) -> None:
    units = np.arange(40) // together
    by_name = {found.name: found for found in outcomes}
    names = list(by_name)
    made = []

    def compared(a: str, b: str):
        found = compare(by_name[a], by_name[b], units, confidence=confidence_for(len(names)))
        made.append(found)
        return found

    choice = recommend(names, compared)
    if choice.name == "softmax":
        assert choice.over is None
        if not choice.contradictory:
            for name in names[1:]:
                assert compared(name, "softmax").better != name
    else:
        against = compared(choice.name, "softmax")
        assert against.low > 0
        assert against.p < 0.05
        assert choice.over == against
        cheaper = in_order(names)[1 : in_order(names).index(choice.name)]
        for name in cheaper:  # each is no better than the softmax beyond doubt, or worse than another
            rivals = [compared(other, name).better for other in names if other != name]
            assert compared(name, "softmax").better != name or set(rivals) & (set(names) - {name})
    told = reasons(choice, in_order(names), [c for c in made if c is not None], None, None, {})
    assert ("better than" in told[0]) == (choice.over is not None)
    if choice.second is not None:
        assert choice.runner_up != choice.name
        assert any("may be chance" in text for text in told) == (choice.second.better is None)
    for found in choice.worse:
        assert found.better == found.a
        assert found.low > 0


def test_of_equally_good_ones_the_cheaper_is_taken() -> None:
    rng = np.random.default_rng(0)
    base, good = rng.random(300) < 0.6, rng.random(300) < 0.95
    better = good.copy()
    better[np.flatnonzero(~good)[:2]] = True
    given = {"softmax": base, "multilayer": base, "tune b.1": good, "finetune": better, "knn": better}
    by_name = {name: outcome(name, right) for name, right in given.items()}
    choice = recommend(list(given), lambda a, b: compare(by_name[a], by_name[b], np.arange(300)))
    assert choice.name == "tune b.1"
    assert choice.runner_up == "finetune"
    assert {found.b for found in choice.worse} == {"softmax", "multilayer"}


def test_the_order_is_from_cheap_to_dear() -> None:
    assert in_order(["knn", "tune b.1", "finetune", "softmax", "tune b.0", "multilayer"]) == [
        "softmax", "multilayer", "tune b.1", "tune b.0", "finetune", "knn",
    ]  # fmt: skip


@given(st.lists(st.sampled_from([-1, 0, 1]), max_size=40))
def test_the_sign_test_is_the_binomial_one(gains: list[int]) -> None:
    above, below = gains.count(1), gains.count(-1)
    expected = 1.0 if not above + below else binomtest(above, above + below).pvalue
    assert sign_test(np.array(gains, float)) == pytest.approx(expected)


def test_a_handful_of_units_shows_nothing() -> None:
    # The bootstrap alone would trust four units out of twenty.
    right = np.zeros(20)
    right[:4] = 1
    found = compare(outcome("knn", right), outcome("softmax", np.zeros(20)), np.arange(20))
    assert found is not None
    assert found.low > 0
    assert found.better is None


def test_only_items_that_both_answered_are_compared() -> None:
    a = outcome("knn", np.ones(10), np.arange(10))
    b = outcome("softmax", np.r_[np.zeros(5), np.ones(5)], np.arange(5, 15))
    found = compare(a, b, np.arange(20))
    assert found is not None
    assert (found.items, found.difference) == (5, 1.0)
    assert compare(a, outcome("mlp", np.ones(3), np.arange(12, 15)), np.arange(20)) is None


def test_depth_is_where_nothing_later_is_better() -> None:
    rng = np.random.default_rng(0)
    rights = [rng.random(400) < share for share in (0.4, 0.9, 0.9, 0.9)]
    found = by_depth("abcd", [0.25, 0.5, 0.75, 1.0], [outcome(n, r) for n, r in zip("abcd", rights, strict=True)],
                     np.arange(400), 0)  # fmt: skip
    assert found.similarity == 0.5
    assert found.late_gain is not None
    assert found.late_gain.b == "b"
    assert probed_blocks([str(i) for i in range(3)]) == (["0", "1", "2"], [0.25, 0.5, 0.75])
    many, depths = probed_blocks([str(i) for i in range(40)])
    assert len(many) == 12
    assert (many[0], many[-1], depths[-1]) == ("0", "39", 40 / 41)


@given(st.integers(0, 99), st.floats(0.05, 1))
def test_a_draw_keeps_units_whole_and_every_class(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    y, units = rng.integers(0, 3, 30), rng.integers(0, 12, 30)
    taken = shared(y, units, share, np.random.default_rng(seed))
    assert set(y[taken]) == set(y)
    assert not set(units[taken]) & set(np.delete(units, taken))


def test_a_store_without_pooled_is_told_apart(tmp_path: Path) -> None:
    path = store_of(tmp_path / "s.fcache", ["a", "b"] * 5, {"b.0:mean_std": np.zeros((10, 2))})
    with pytest.raises((UsageError, MissingVectorsError), match="pooled"):
        advise(path, progress=False)
